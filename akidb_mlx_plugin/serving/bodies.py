"""The body of a request, checked: OpenAI's fields and a few of ours, and Cohere's."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from akidb_mlx_plugin.serving.problems import ProblemError
from akidb_mlx_plugin.types import Kind, Overflow

_Body = TypeVar("_Body", bound=BaseModel)
_LONGEST_NAME = 60


def _to_texts(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("must be a text or a list of texts")
    if not value:
        raise ValueError("holds no text; send at least one")
    for index, text in enumerate(value):
        if isinstance(text, int | list) and not isinstance(text, bool):
            raise ValueError(
                "holds token ids, which belong to another model's tokenizer: send texts. "
                "LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False"
            )
        if not isinstance(text, str):
            raise ValueError(f"holds {type(text).__name__} at position {index}, where a text is expected")
    return value


class EmbeddingsBody(BaseModel):
    """The body of `POST /v1/embeddings`.

    Attributes:
        model: one of those that `GET /v1/models` lists.
        input: a text, or several.
        dimensions: length of the vectors, for models that were trained for several.
        encoding_format: numbers, or the float32 bytes in base64.
        user: accepted for OpenAI's clients, and ignored.
        input_type: which of the model's prompts goes before each text.
        task: name of another of the model's prompts.
        prompt: the caller's own prompt.
        normalize: scale vectors to unit length; defaults to the checkpoint's setting.
        overflow: cut texts that are longer than the model takes, or refuse the request; defaults to the server's
            configuration.
    """

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    model: str
    input: Annotated[list[str], BeforeValidator(_to_texts)]
    dimensions: int | None = Field(default=None, ge=1)
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
    input_type: Kind = "document"
    task: str | None = Field(default=None, min_length=1)
    prompt: str | None = None
    normalize: bool | None = None
    overflow: Overflow | None = None


def _to_documents(value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError("must be a list of texts")
    return [each["text"] if isinstance(each, dict) and each.keys() == {"text"} else each for each in value]


class RerankBody(BaseModel):
    """The body of `POST /v1/rerank`, in Cohere's form.

    Attributes:
        model: one of the server's rerankers.
        query: what is asked.
        documents: the texts, plain or as {"text": …}.
        top_n: how many of the best to return; None for all.
        return_documents: whether to return the texts, too.
    """

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    model: str
    query: str = Field(min_length=1)
    documents: Annotated[list[str], BeforeValidator(_to_documents)] = Field(min_length=1)
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = False


def parse_body(schema: type[_Body], content: bytes) -> _Body:
    """Return a body, checked.

    Raises:
        ProblemError: 400 with the name of the first wrong field; the message quotes none of the input.
    """
    try:
        return schema.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if fault["type"] in ("json_invalid", "model_type"):
        raise ProblemError(400, f"the body is not a JSON object: {fault['msg']}", code="invalid_json")
    field = str(fault["loc"][0])[:_LONGEST_NAME]
    if fault["type"] == "extra_forbidden":
        raise ProblemError(400, f"unknown field {field!r}", code="unknown_field", param=field)
    message = fault["msg"].removeprefix("Value error, ")
    raise ProblemError(400, f"{field}: {message[:1].lower()}{message[1:]}", code="invalid_value", param=field)
