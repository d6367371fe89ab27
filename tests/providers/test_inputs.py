"""What may be embedded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.types import BatchEmbeddingRequest
from akidb_mlx_plugin.validation import check_request, list_inputs


@pytest.mark.parametrize("texts", [[""], ["a", "日本語", "🙂", "\0"], np.array(["numpy"])])
def test_texts(texts: Any) -> None:
    check_request(BatchEmbeddingRequest(list_inputs(texts)))


@pytest.mark.parametrize("inputs", ["bare", b"bytes", None, 5, {"a": 1}])
def test_not_a_list(inputs: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"got {type(inputs).__name__}"):
        list_inputs(inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no texts"),
        (["a", None], "text 1 is NoneType.*leave it out"),
        ([b"a"], "text 0 is bytes.*decode"),
        (["a", 1.5], "text 1 is float"),
        (["a", "b\ud800"], r"text 1 holds a lone surrogate \(character 1\)"),
    ],
)
def test_unusable_texts(inputs: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_request(BatchEmbeddingRequest(inputs))


def test_the_text_is_not_in_the_message() -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_request(BatchEmbeddingRequest(["secret \udfff"]))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("dimension", [0, -1, True, 1.5, "8"])
def test_unusable_dimension(dimension: Any) -> None:
    with pytest.raises(InvalidInputError, match="dimension"):
        check_request(BatchEmbeddingRequest(["a"], dimension=dimension))


def test_unknown_kind() -> None:
    with pytest.raises(InvalidInputError, match="'document' or 'query', got 'title'"):
        check_request(BatchEmbeddingRequest(["a"], kind="title"))  # type: ignore[arg-type]


def test_a_bare_string_in_a_request_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"put a single text in \[ \]"):
        check_request(BatchEmbeddingRequest("abc"))
