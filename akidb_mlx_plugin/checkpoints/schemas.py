"""Schemas of the JSON files next to the weights: types and ranges, with errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from akidb_mlx_plugin.errors import ModelNotFoundError

_LARGEST_SIDE = 1 << 24
Side = Annotated[int, Field(ge=1, le=_LARGEST_SIDE)]


def _check_encodable(text: str) -> str:
    """Check that a text has no unpaired surrogate, which no tokenizer accepts."""
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_check_encodable)]


class Schema(BaseModel):
    """A JSON object; unknown keys are kept as extras."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class PoolingSettings(Schema):
    """`1_Pooling/config.json`; before sentence-transformers 5.5 it had a flag for each mode."""

    pooling_mode: str | list[str] | None = None
    include_prompt: bool | None = None
    embedding_dimension: Side | None = None
    word_embedding_dimension: Side | None = None
    pooling_mode_cls_token: bool | None = None
    pooling_mode_max_tokens: bool | None = None
    pooling_mode_mean_tokens: bool | None = None
    pooling_mode_mean_sqrt_len_tokens: bool | None = None
    pooling_mode_weightedmean_tokens: bool | None = None
    pooling_mode_lasttoken: bool | None = None


class DenseSettings(Schema):
    """`2_Dense/config.json`."""

    in_features: Side
    out_features: Side
    bias: bool = True
    activation_function: str | None = None
    use_residual: bool | None = None


class SentenceConfig(Schema):
    """`config_sentence_transformers.json`."""

    prompts: dict[str, Text | None] | None = None
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    truncate_dim: Side | None = None


class TokenizerConfig(Schema):
    """The keys of `tokenizer_config.json` that set the maximum length and how texts end."""

    # transformers writes 1e30 for a tokenizer without a limit.
    model_max_length: int | float | None = Field(default=None, ge=1)
    add_eos_token: bool | None = None
    eos_token: str | dict[str, Any] | None = None


Known = TypeVar("Known", bound=Schema)


def validate(schema: type[Known], value: Mapping[str, Any], file: Path) -> Known:
    """Return a JSON object validated by its schema.

    Args:
        schema: the schema.
        value: the object.
        file: the file it is from, for the message.
    Raises:
        ModelNotFoundError: a value of another type or out of range; file and key are named.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"][:2])
        raise ModelNotFoundError(
            f"{file}: {key} cannot be {str(first.get('input'))[:80]!r} ({first['msg'].lower()})"
        ) from error
