"""Texts that nobody would write end in vectors or an error of this package, through every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from fuzzing import ODD_CHARACTERS, fuzz
from golden_models import GOLDEN
from hypothesis import strategies as st

from akidb_mlx_plugin import Embedder, InvalidInputError

pytestmark = pytest.mark.slow

# WordPiece, byte-level BPE, Unigram and SentencePiece's BPE with byte fallback.
_NAMES = ("bert", "roberta", "xlm_roberta", "t5", "qwen3", "gemma3_text", "llama", "modernbert")
_PIECES = st.one_of(
    st.text(st.characters(), max_size=20),
    st.text(st.sampled_from(ODD_CHARACTERS), max_size=20),
    st.sampled_from(
        ["<pad>", "[SEP]", "</s>", "<|endoftext|>", "<bos>", "[MASK]", "##a", "▁", "Ġ", "<0x0A>", "👩‍👩‍👧", "ﷺ", "ß"]
    ),
)
_REPEATED = st.builds(lambda piece, count: piece * count, _PIECES, st.sampled_from([100, 5000]))
_TEXTS = st.lists(st.one_of(_PIECES, _PIECES, _REPEATED), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def embedders() -> Iterator[list[Embedder]]:
    """A loaded model of each kind."""
    loaded = [Embedder.load(GOLDEN / name / "model", device="cpu") for name in _NAMES]
    yield loaded
    for embedder in loaded:
        embedder.close()


def test_texts(request: pytest.FixtureRequest, embedders: list[Embedder]) -> None:
    def embed(given: tuple[int, list[str], bool]) -> None:
        number, texts, query = given
        vectors = embedders[number].embed(texts, kind="query" if query else "document").embeddings
        assert vectors.shape[0] == len(texts)
        assert np.isfinite(vectors).all()

    fuzz(request, st.tuples(st.integers(0, len(_NAMES) - 1), _TEXTS, st.booleans()), embed, usual=40)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "x" * 10_000 + "\ud83d"])
def test_unpaired_surrogates_are_named(text: str, embedders: list[Embedder]) -> None:
    with pytest.raises(InvalidInputError, match="surrogate"):
        embedders[0].embed(["fine", text])
