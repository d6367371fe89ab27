"""Pairs of texts against tokenizers' own joining and truncation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from golden_rerankers import copy_reranker, edit_json

from akidb_mlx_plugin.checkpoints.cross_encoder import read_cross_encoder
from akidb_mlx_plugin.inference.pair_tokenizer import load_pair_tokenizer
from akidb_mlx_plugin.inference.tokenizer_loading import load_tokenizer

WORDS = ["water", "light", "stone", "river", "paper", "garden", "morning", "window", "music", "letter", "bridge"]


def random_pairs(count: int) -> list[tuple[str, str]]:
    rng = random.Random(0)
    lengths = (1, 2, 3, 5, 9, 20, 21, 22, 23, 24, 40, 90)
    sides = [(rng.choice(lengths), rng.choice(lengths)) for _ in range(count)]
    return [(" ".join(rng.choices(WORDS, k=a)), " ".join(rng.choices(WORDS, k=b))) for a, b in sides]


@pytest.mark.slow
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("name", "room"), [*(("bert", room) for room in (4, 5, 47, 48)), *(("roberta", room) for room in (5, 6, 47, 48))]
)
def test_rows_are_tokenizers_own(name: str, room: int, side: str, tmp_path: Path) -> None:
    folder = copy_reranker(name, tmp_path)
    edit_json(folder / "tokenizer_config.json", model_max_length=room, truncation_side=side)
    pairs = random_pairs(40)
    reference = load_tokenizer(folder).tokenizer
    reference.enable_truncation(room, strategy="longest_first", direction=side)
    expected = reference.encode_batch(pairs)
    rows = load_pair_tokenizer(read_cross_encoder(folder)).encode(pairs)
    assert rows.ids == [encoding.ids for encoding in expected]
    assert rows.truncated == sum(bool(encoding.overflowing) for encoding in expected)
    if name == "bert":
        assert rows.seconds == [encoding.type_ids.index(1) for encoding in expected]
    else:
        assert rows.seconds is None


@pytest.mark.slow
def test_long_texts_are_not_tokenized_in_full(tmp_path: Path) -> None:
    """Megabytes on one side, and on both."""
    tokenizer = load_pair_tokenizer(read_cross_encoder(copy_reranker("bert", tmp_path)))
    few, many = " ".join(WORDS * 20), " ".join(WORDS * 2_000)
    assert (
        tokenizer.encode([("water", many), (many, "water")]).ids
        == tokenizer.encode([("water", few), (few, "water")]).ids
    )
    assert tokenizer.encode([(many, many)]).ids == tokenizer.encode([(few, few)]).ids


def test_a_query_of_several_texts_is_part_of_what_they_share(tmp_path: Path) -> None:
    tokenizer = load_pair_tokenizer(read_cross_encoder(copy_reranker("qwen3_reranker", tmp_path)))
    rows = tokenizer.encode([("where is the water", text) for text in ("stone", "river")])
    alone = tokenizer.encode([("where is the water", "stone")])
    assert rows.ids[0] == alone.ids[0]
    assert len(rows.beginnings[0]) > len(alone.beginnings[0])
    for row, beginning in zip(rows.ids, rows.beginnings, strict=True):
        # Its last tokens may merge with the first of the text.
        assert tuple(row[: len(beginning) - 2]) == beginning[:-2]
