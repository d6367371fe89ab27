"""Names that other packages have for arguments: refused, with the right one."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction
from akidb_mlx_lancedb import MLXEmbeddings, MLXReranker
from pydantic import ValidationError

from akidb_mlx_plugin import CrossEncoder, EmbeddingConfig, EmbeddingService, InvalidInputError
from akidb_mlx_plugin.argument_names import _BOTH, _CONFIGURED, _MEANT
from akidb_mlx_plugin.config import MLXConfig

# What is typed, and what each maker says it is.
TYPED = [
    ("model_name", "it is model="),
    ("model_name_or_path", "it is model="),
    ("dim", "it is dimension="),
    ("dimensions", "it is dimension="),
    ("truncate_dim", "it is dimension="),
    ("normalize_embeddings", "it is normalize="),
    ("Normalize_Embeddings", "it is normalize="),
    ("pooling_mode", "it is pooling="),
    ("device_name", "it is device="),
    ("devise", "did you mean device="),
    ("zzz", "the arguments are .*dimension"),
    ("batch_size", "it is the setting mlx.batch_size of the configuration, or AKIDB_EMBEDDING__MLX__BATCH_SIZE"),
    ("torch_dtype", "it is the setting mlx.dtype"),
    ("truncate", "it is overflow="),
]
MAKERS: dict[str, Any] = {"Chroma": MLXEmbeddingFunction, "service": EmbeddingService, "LanceDB": MLXEmbeddings.create}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(("name", "right"), TYPED, ids=[name for name, _ in TYPED])
def test_makers(maker: str, name: str, right: str) -> None:
    said = right.replace("model=", "name=") if maker == "LanceDB" else right
    with pytest.raises(InvalidInputError, match=f"no argument '{name}'; {said}"):
        MAKERS[maker](**{name: 1})


def test_the_databases_have_a_name_of_their_own_for_the_model() -> None:
    with pytest.raises(InvalidInputError, match="no argument 'model'; it is name="):
        MLXEmbeddings.create(model="minilm-l6-v2")
    with pytest.raises(InvalidInputError, match="no argument 'name'; it is model="):
        MLXEmbeddingFunction(name="minilm-l6-v2")  # type: ignore[call-arg]
    with pytest.raises(InvalidInputError, match="no argument 'prompt_name'; it is query_task= or document_task="):
        MLXEmbeddingFunction(prompt_name="clustering")  # type: ignore[call-arg]


def test_what_has_no_answer_here() -> None:
    with pytest.raises(InvalidInputError, match="no argument 'trust_remote_code': no code of a checkpoint runs here"):
        MLXEmbeddingFunction("minilm-l6-v2", trust_remote_code=True)  # type: ignore[call-arg]
    with pytest.raises(InvalidInputError, match="no argument 'max_seq_length': the limit is the model's own"):
        MLXEmbeddings.create(name="minilm-l6-v2", max_seq_length=128)


def test_a_function_of_lancedb_made_without_create_ignores_nothing() -> None:
    with pytest.raises(ValidationError, match="no argument 'model_name'; it is name="):
        MLXEmbeddings(model_name="minilm-l6-v2")  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="no argument 'device'"):
        MLXEmbeddings(device="cpu")  # type: ignore[call-arg]


def test_rerankers() -> None:
    with pytest.raises(InvalidInputError, match="no argument 'model_name'; it is model="):
        CrossEncoder(model_name="ms-marco-minilm-l6")  # type: ignore[call-arg]
    with pytest.raises(InvalidInputError, match="no argument 'activation_fn'; it is activation="):
        CrossEncoder("ms-marco-minilm-l6", activation_fn="sigmoid")  # type: ignore[call-arg]
    with pytest.raises(InvalidInputError, match="no argument 'model_name'; it is model="):
        MLXReranker(model_name="ms-marco-minilm-l6")  # type: ignore[call-arg]

    with pytest.raises(InvalidInputError, match="no argument 'query_prompt'; it is instruction="):
        CrossEncoder("ms-marco-minilm-l6", query_prompt="which")  # type: ignore[call-arg]


def test_what_a_service_takes_from_the_configuration() -> None:
    with pytest.raises(InvalidInputError, match=r"no argument 'cache_folder'; it is the setting mlx.cache_dir of"):
        EmbeddingService("minilm-l6-v2", cache_folder="models")  # type: ignore[call-arg]


def test_the_model_of_a_service_has_its_name_too() -> None:
    with EmbeddingService(model="minilm-l6-v2", device="cpu") as service:
        assert service.config.mlx.model == "minilm-l6-v2"
    with pytest.raises(InvalidInputError, match="the model is named twice: 'a' and model='b'"):
        EmbeddingService("a", model="b")


def test_signatures_stay_what_they_are() -> None:
    for made in (MLXEmbeddingFunction, EmbeddingService, CrossEncoder, MLXReranker):
        kinds = {parameter.kind for parameter in inspect.signature(made).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds
    with pytest.raises(TypeError):
        MLXEmbeddingFunction(*range(20))  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("embedding: {mlx: {model_name: x}}", r"'mlx.model_name' = 'x' \(file .*\); it is mlx.model"),
        ("embedding: {model_name: x}", r"'model_name' = 'x' \(file .*\); it is mlx.model"),
        ("embedding: {mlx: {dimensions: 8}}", "; it is mlx.dimension"),
        ("embedding: {mock: {dim: 8}}", "; it is mock.dimension"),
        ("embedding: {mlx: {normalize_embeddings: true}}", "; it is mlx.normalize"),
        ("embedding: {mlx: {torch_dtype: float16}}", "; it is mlx.dtype"),
    ],
)
def test_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        EmbeddingConfig.load(file)


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKIDB_EMBEDDING__MLX__MODEL_NAME", "x")
    with pytest.raises(InvalidInputError, match=r"environment AKIDB_EMBEDDING__MLX__MODEL_NAME.*; it is mlx.model"):
        EmbeddingConfig.load()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt_name": "query"}, "use encode_query or encode_document"),
        ({"batch_size": 64}, "it is the setting mlx.batch_size"),
        ({"normalize_embeddings": True}, "it is normalize="),
        ({"truncate_dim": 8}, "it is dimension="),
        ({"convert_to_tensor": True}, "NumPy arrays in float32; leave it out"),
        ({"show_progress_bar": True}, "leave it out"),
        ({"sentences": ["a"]}, "it is texts="),
        ({"device": "mps"}, "given when the model is named"),
    ],
    ids=str,
)
def test_methods(given: dict[str, object], message: str) -> None:
    with EmbeddingService(mode="mock") as service:
        for method in (service.encode, service.encode_query, service.encode_document):
            with pytest.raises(InvalidInputError, match=message):
                method(**given)  # type: ignore[arg-type]
    with CrossEncoder("ms-marco-minilm-l6") as encoder, pytest.raises(InvalidInputError, match="every entry has its"):
        encoder.rank("a", ["b"], return_documents=True)  # type: ignore[call-arg]


def test_every_right_name_exists() -> None:
    makers = (MLXEmbeddingFunction, CrossEncoder, EmbeddingService.encode)
    known = {name for maker in makers for name in inspect.signature(maker).parameters}
    assert set(_MEANT) <= known | set(_CONFIGURED)
    assert {name.rstrip("=,") for said in _BOTH.values() for name in said.split() if "=" in name} <= known
    assert set(_CONFIGURED) <= set(MLXConfig.model_fields)
