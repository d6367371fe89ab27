"""Counts in config.json that the weights contradict are rejected before a module is built."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.checkpoints.sizes import check_sizes
from akidb_mlx_plugin.errors import ModelNotFoundError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ("bert", {"num_hidden_layers": 1_000_000}),
        ("bert", {"num_attention_heads": 10**9, "hidden_size": 10**9}),
        ("bert", {"vocab_size": 10**12}),
        ("qwen3", {"num_hidden_layers": 10**9}),
        ("qwen3", {"head_dim": 10**9}),
        ("gemma3_text", {"intermediate_size": 10**10}),
        ("t5", {"num_layers": 10**7}),
        ("t5", {"d_kv": 10**9}),
        ("albert", {"num_hidden_groups": 10**7}),
        ("nomic_bert_moe", {"num_experts": 10**8}),
    ],
)
def test_refused_in_little_memory(tmp_path: Path, base: str, change: dict[str, Any]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / base / "model", folder)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelNotFoundError, match="|".join(change)):
        load_model(read_checkpoint(folder))
    # In KiB on Linux, in bytes on macOS.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000 * (
        1024 if mx.metal.is_available() else 1
    )


def test_what_fits_and_what_others_check() -> None:
    tensors = {"a": mx.zeros((8, 4)), "b": mx.zeros(3)}
    check_sizes({"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": None, "head_dim": "x"}, tensors)
    with pytest.raises(ModelNotFoundError, match="num_hidden_layers is 3, but its weights have 2 tensors"):
        check_sizes({"num_hidden_layers": 3}, tensors)
    check_sizes({"hidden_size": 128}, tensors)
    with pytest.raises(
        ModelNotFoundError, match="hidden_size is 129, but the longest axis of its weights has 8 entries"
    ):
        check_sizes({"hidden_size": 129}, tensors)
    with pytest.raises(ModelNotFoundError, match="vocab_size is inf"):
        check_sizes({"vocab_size": float("inf")}, tensors)
