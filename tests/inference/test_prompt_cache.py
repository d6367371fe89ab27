"""The cached prompt of a causal model: the same vectors from fewer tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint_helpers import change, copy_golden
from golden_models import GOLDEN, farthest, read_golden

from akidb_mlx_plugin.inference import engine as engine_module
from akidb_mlx_plugin.inference import prompts as prompts_module
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.inference.prompts import PromptStore, Start
from akidb_mlx_plugin.models.base import Encoder
from akidb_mlx_plugin.nn import attention
from akidb_mlx_plugin.nn import layout as layouts
from akidb_mlx_plugin.nn.attention import attend
from akidb_mlx_plugin.nn.batch import Block, Pick, Prefix, TokenBatch, Tokens, take

# Ten tokens with every tokenizer here, not counting an opening one; the last is a space.
PROMPT = "the question of time: "
# Sixteen tokens, the last of which changes if the text continues its word.
CUT_PROMPT = "the question of time and the work of the que"
CAUSAL = ("llama", "llama_scaled", "ministral", "ministral3", "mistral", "qwen2", "qwen3", "qwen3_window", "qwen3_yarn")
TEXTS = ("one", "what is it", "", "stion of people and water", "a garden between them", "Stone, paper; (river) 42")


class Watched:
    """The numbers of tokens that an embedder's encoder computes."""

    def __init__(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed: list[int] = []
        self.known: list[int] = []
        self.prompts: list[int] = []
        assert embedder._engine.model is not None
        kind = type(embedder._engine.model.encoder)
        compute_prefix = kind.compute_prefix

        def counted_batch(batch: TokenBatch, prefix: Prefix | None = None) -> Tokens:
            self.computed.append(batch.ids.size)
            self.known.append(prefix.length if prefix else 0)
            return Tokens.from_batch(batch, prefix)

        def counted_prefix(encoder: Encoder, tokens: Tokens) -> Prefix:
            self.prompts.append(tokens.ids.size)
            return compute_prefix(encoder, tokens)

        monkeypatch.setattr(engine_module, "Tokens", SimpleNamespace(from_batch=counted_batch))
        monkeypatch.setattr(kind, "compute_prefix", counted_prefix)


def whole(embedder: Embedder, texts: Sequence[str], prompt: str) -> Any:
    """Return the vectors with every text computed from its first token on."""
    longest, embedder._engine.prompts._most_tokens = embedder._engine.prompts._most_tokens, 0
    try:
        return embedder.embed(texts, prompt=prompt).embeddings
    finally:
        embedder._engine.prompts._most_tokens = longest


Load = Callable[..., Embedder]


@pytest.fixture
def load() -> Iterator[Load]:
    """A function that loads a checkpoint of tests/golden, or a folder, until the end of the test."""
    with ExitStack() as loaded:

        def open_one(name: str | Path) -> Embedder:
            folder = name if isinstance(name, Path) else GOLDEN / name / "model"
            return loaded.enter_context(Embedder.load(folder, device="cpu"))

        yield open_one


class TestVectors:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", CAUSAL)
    @pytest.mark.parametrize("layout", ["cpu", "gpu"])
    @pytest.mark.parametrize("prompt", [PROMPT, CUT_PROMPT])
    def test_are_those_of_whole_texts(
        self, name: str, layout: str, prompt: str, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedder = load(name)
        texts = [*read_golden(name).texts, *TEXTS]
        if layout == "gpu":
            monkeypatch.setattr(layouts, "_emulated", True)
        expected = whole(embedder, texts, prompt)
        watched = Watched(embedder, monkeypatch)
        response = embedder.embed(texts, prompt=prompt)
        assert farthest(response.embeddings, expected) < 1e-5
        assert max(watched.known) >= 9
        for text, vector in zip(texts[-6:], expected[-6:], strict=True):
            assert np.abs(embedder.embed([text], prompt=prompt).embeddings[0] - vector).max() < 1e-5

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
    @pytest.mark.parametrize("layout", ["cpu", "gpu"])
    def test_are_those_of_sentence_transformers(
        self, name: str, layout: str, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        golden, embedder = read_golden(name), load(name)
        if layout == "gpu":
            monkeypatch.setattr(layouts, "_emulated", True)
        watched = Watched(embedder, monkeypatch)
        vectors = embedder.embed(golden.texts, kind="query").embeddings
        assert farthest(vectors, golden.vectors["query"]) < 1e-5
        assert min(watched.known) >= 9

    @pytest.mark.slow
    def test_of_many_threads_are_the_same_and_the_prompt_is_computed_once(
        self, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedder = load("qwen3")
        texts = [*read_golden("qwen3").texts, *TEXTS]
        expected = whole(embedder, texts, PROMPT)
        watched = Watched(embedder, monkeypatch)
        with ThreadPoolExecutor(8) as threads:
            answers = threads.map(
                lambda i: embedder.embed([texts[i % len(texts)]], prompt=PROMPT).embeddings[0], range(96)
            )
            vectors = np.stack(list(answers))
        assert np.abs(vectors - expected[np.arange(96) % len(texts)]).max() < 1e-5
        assert watched.prompts == [10]

    def test_of_means_without_the_prompt(self, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = copy_golden("qwen3", tmp_path / "m")
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
        change(folder / "1_Pooling" / "config.json", **{**pooling, "pooling_mode": "mean", "include_prompt": False})
        embedder = load(folder)
        expected = whole(embedder, TEXTS, PROMPT)
        watched = Watched(embedder, monkeypatch)
        assert farthest(embedder.embed(TEXTS, prompt=PROMPT).embeddings, expected) < 1e-5
        assert min(watched.known) >= 9


class TestTokens:
    def test_of_a_query_alone_are_computed(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        embedder = load("qwen3")
        watched = Watched(embedder, monkeypatch)
        usages = [embedder.embed(["(42"], prompt=PROMPT).usage for _ in range(3)]
        row = len(embedder._tokenizer.encode([PROMPT + "(42"]).ids[0])
        assert [usage.total_tokens for usage in usages] == [row] * 3
        assert (watched.prompts, watched.computed) == ([10], [row - 10] * 3)

    def test_that_merge_with_the_text_are_computed_anew_for_all_of_a_batch(
        self, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedder = load("qwen3")
        watched = Watched(embedder, monkeypatch)
        embedder.embed(["(42"], prompt=CUT_PROMPT)
        embedder.embed(["(42", "stion of people"], prompt=CUT_PROMPT)
        assert watched.known == [16, 15]
        assert watched.prompts == [16]

    def test_of_a_text_that_is_cut_within_the_prompt(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        embedder = load("qwen3")
        prompt = "the question of time and the work of people is " * 4
        watched = Watched(embedder, monkeypatch)
        response = embedder.embed(["one", "two"], prompt=prompt)
        assert response.usage.truncated == 2
        assert farthest(response.embeddings, whole(embedder, ["one", "two"], prompt)) < 1e-5
        assert watched.known[0] == embedder._checkpoint.max_tokens - 1

    @pytest.mark.parametrize(
        "name",
        ["bert", "gemma3_text_causal", "lfm2", "llama_both_ways", "phi3", "qwen3_both_ways", "qwen3_window_both_ways"],
    )
    def test_are_all_computed_where_one_may_depend_on_the_next(
        self, name: str, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedder = load(name)
        watched = Watched(embedder, monkeypatch)
        embedder.embed(TEXTS, prompt=PROMPT)
        assert set(watched.known) == {0}
        assert embedder._engine.model is not None
        assert embedder._engine.model.encoder.prefix_token_bytes == 0

    def test_of_a_prefix_are_refused_by_an_encoder_that_has_none(self, load: Load) -> None:
        embedder = load("bert")
        assert embedder._engine.model is not None
        with pytest.raises(NotImplementedError, match="BertEncoder does not support a prefix"):
            embedder._engine.model.encoder.compute_prefix(Tokens(mx.array([1]), mx.array([0]), (Block(0, 1, 1),)))

    @pytest.mark.parametrize("mode", ["mean", "weightedmean"])
    def test_are_all_computed_where_those_of_the_prompt_are_pooled(
        self, mode: str, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = copy_golden("qwen3", tmp_path / "m")
        change(folder / "1_Pooling" / "config.json", pooling_mode=mode)
        embedder = load(folder)
        watched = Watched(embedder, monkeypatch)
        embedder.embed(TEXTS, prompt=PROMPT)
        assert set(watched.known) == {0}


class TestStore:
    @pytest.fixture
    def embedder(self, load: Load) -> Embedder:
        return load("qwen3")

    def test_keeps_the_prompts_used_last(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
        watched = Watched(embedder, monkeypatch)
        wordings = [f"{word} question of time: " for word in ("the", "that", "this", "their", "new")]
        for wording in [*wordings[:4], wordings[0], wordings[4], wordings[0]]:
            embedder.embed(["one"], prompt=wording)
        assert len(watched.prompts) == 5
        embedder.embed(["one"], prompt=wordings[1])
        assert len(watched.prompts) == 6
        assert len(embedder._engine.prompts._kept) == 4

    def test_keeps_no_more_bytes_than_it_may(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
        assert embedder._engine.model is not None
        size = embedder._engine.model.encoder.prefix_token_bytes
        for wording in (PROMPT, CUT_PROMPT):
            embedder.embed(["one"], prompt=wording)
        kept = embedder._engine.prompts._kept.values()
        assert [prefix.nbytes for prefix in kept] == [10 * size, 16 * size]
        monkeypatch.setattr(prompts_module, "_MOST_BYTES", 20 * size)
        embedder.embed(["one"], prompt=PROMPT)
        assert [prefix.length for prefix in kept] == [10]
        assert embedder._engine.model is not None
        small = PromptStore(embedder._engine.model.encoder, ("lasttoken",), pool_prompt=True)
        assert small.group([tuple(range(21))], [range(30)]) == {Start((), 0, 0): [0]}
        assert small.group([tuple(range(20))], [range(30)]) == {Start(tuple(range(20)), 20, 0): [0]}

    @pytest.mark.parametrize(("length", "known"), [(7, 0), (8, 8), (1024, 1024), (1025, 0)])
    def test_takes_prompts_that_are_worth_it(self, length: int, known: int, embedder: Embedder) -> None:
        prompt = tuple(range(length))
        (start,) = embedder._engine.prompts.group([prompt], [[*prompt, 5]])
        assert start == Start(prompt if known else (), known, 0)

    def test_rows_that_leave_the_prompt_early_go_whole(self, embedder: Embedder) -> None:
        prompt = tuple(range(20))
        rows = [[*prompt, 7], [*prompt[:17], 7], [*prompt[:3], 7, 7], [*prompt[:16]], [7]]
        groups = embedder._engine.prompts.group([prompt] * 4 + [()], rows)
        assert groups == {Start(prompt, 17, 0): [0, 1], Start((), 0, 0): [2, 3, 4]}

    def test_is_emptied_when_the_model_is_closed(self, embedder: Embedder) -> None:
        embedder.embed(["one"], prompt=PROMPT)
        assert embedder._engine.prompts._kept
        embedder.close()
        assert not embedder._engine.prompts._kept


class TestAttention:
    @pytest.mark.parametrize("layout", ["cpu", "gpu", "slices"])
    @pytest.mark.parametrize("window", [None, 1, 4, 9, 30])
    @pytest.mark.parametrize("padded", [False, True])
    def test_from_keys_and_values_before_every_text(
        self, layout: str, window: int | None, padded: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(layouts, "_emulated", layout == "gpu")
        if layout == "slices":
            for name, number in (("_MAX_SCORES", 1), ("_MASKED_QUERIES", 3), ("_FEWEST_QUERIES", 2)):
                monkeypatch.setattr(attention, name, number)
        heads, key_heads, size, before = 4, 2, 8, 7
        blocks = (Block(0, 2, 11, (11, 5) if padded else None), Block(22, 1, 1))
        with mx.stream(mx.cpu):
            q, k, v = (
                mx.random.normal((23, h, size), key=mx.random.key(h + i))
                for i, h in enumerate((heads, key_heads, key_heads))
            )
            prefix = tuple(
                mx.random.normal((before, h, size), key=mx.random.key(9 + i))
                for i, h in enumerate((heads, key_heads, key_heads))
            )
            out = attend(
                q,
                k,
                v,
                blocks,
                scale=0.3,
                causal=True,
                window=window,
                before=(prefix[1].swapaxes(0, 1), prefix[2].swapaxes(0, 1)),
            )
            for first, length in ((0, 11), (11, 5 if padded else 11), (22, 1)):
                text = [mx.concatenate([p, x[first : first + length]]) for p, x in zip(prefix, (q, k, v), strict=True)]
                alone = (Block(0, 1, before + length),)
                expected = attend(*text, alone, scale=0.3, causal=True, window=window)[before:]
                assert np.abs(np.array(out[first : first + length]) - np.array(expected)).max() < 1e-5

    @pytest.mark.parametrize("window", [None, 1, 4, 9, 30])
    @pytest.mark.parametrize(("before", "causal"), [(0, True), (7, True), (0, False)])
    @pytest.mark.parametrize(
        ("pick", "places"),
        [
            (Pick.last, [10, 15, 22, 36, 40, 41]),
            (Pick.first, [0, 11, 22, 33, 37, 41]),
            (partial(Pick.first, skip=3), [3, 14, 25, 36, 40, 41]),
        ],
        ids=["last", "first", "after a prompt"],
    )
    def test_of_one_token_alone(
        self, window: int | None, before: int, causal: bool, pick: Callable[[Sequence[Block]], Pick], places: list[int]
    ) -> None:
        blocks = (Block(0, 3, 11, (11, 5, 1)), Block(33, 2, 4), Block(41, 1, 1))
        with mx.stream(mx.cpu):
            q, k, v = (mx.random.normal((42, h, 8), key=mx.random.key(i)) for i, h in enumerate((4, 2, 2)))
            prefix = tuple(mx.random.normal((2, before, 8), key=mx.random.key(i)) for i in (8, 9)) if before else None
            picked = pick(blocks)
            assert picked.places.tolist() == places
            out = attend(
                take(q, picked), k, v, blocks, scale=0.3, causal=causal, window=window, before=prefix, pick=picked
            )
            every = attend(q, k, v, blocks, scale=0.3, causal=causal, window=window, before=prefix)
            # At place 25 there is padding, and what it sees does not matter.
            real = [i for i, place in enumerate(places) if place != 25]
            assert np.abs(np.array(out)[real] - np.array(every[picked.places])[real]).max() < 1e-5


class TestLastLayer:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "name",
        [*CAUSAL, "camembert", "gemma3_text_causal", "gte", "lfm2", "llama_both_ways", "modernbert_bias", "phi3"],
    )
    @pytest.mark.parametrize("layout", ["cpu", "gpu"])
    def test_of_the_tokens_that_are_pooled_gives_the_vectors_of_sentence_transformers(
        self, name: str, layout: str, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        golden, embedder = read_golden(name), load(name)
        if layout == "gpu":
            monkeypatch.setattr(layouts, "_emulated", True)
        assert farthest(embedder.embed(golden.texts).embeddings, golden.vectors["document"]) < 1e-5

    def test_computes_no_other_tokens(self, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
        embedder = load("qwen3")
        assert embedder._engine.model is not None
        rows: list[int] = []
        compute = (mlp := type(embedder._engine.model.encoder.layers[0].mlp)).__call__
        monkeypatch.setattr(mlp, "__call__", lambda self, x: rows.append(len(x)) or compute(self, x))
        tokens = embedder.embed(["a garden between them"]).usage.total_tokens
        assert rows == [tokens, tokens, 1]
