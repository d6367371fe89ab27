"""LFM2: the decoder, and the encoder made from it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from golden_models import GOLDEN, Golden, Packing, embed, farthest, read_golden

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.inference.packing import pack_exact, pack_padded
from akidb_mlx_plugin.nn.batch import Tokens
from akidb_mlx_plugin.nn.convolution import Neighbors


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def _changed(name: str, changes: dict[str, Any]) -> tuple[Golden, Checkpoint]:
    golden = read_golden(name)
    return golden, replace(golden.checkpoint, config={**golden.checkpoint.config, **changes})


def _difference(golden: Golden, checkpoint: Checkpoint) -> float:
    vectors = embed(checkpoint, load_model(checkpoint), golden.texts)
    assert np.isfinite(vectors).all()
    return farthest(vectors, golden.vectors["document"])


NOTICED: list[tuple[str, dict[str, Any]]] = [
    ("lfm2", {"is_causal": False}),
    ("lfm2", {"architectures": ["Lfm2BidirectionalModel"]}),
    ("lfm2", {"rope_parameters": None}),
    ("lfm2", {"norm_eps": 0.1}),
    ("lfm2_bias", {"is_causal": True}),
    # Bidirectional attention alone does not change the convolutions.
    ("lfm2_bias", {"architectures": ["Lfm2BidirectionalModel"]}),
    ("lfm2_bidirectional", {"architectures": None, "auto_map": None, "is_causal": False}),
    ("lfm2_bidirectional_even", {"architectures": None, "auto_map": None, "is_causal": False}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), NOTICED)
def test_references_notice_a_changed_setting(name: str, changes: dict[str, Any]) -> None:
    assert _difference(*_changed(name, changes)) > 3e-4


OTHER_LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("lfm2", {"layer_types": None, "full_attn_idxs": [1, 3]}),
    ("lfm2", {"rope_parameters": None, "rope_theta": 1000.0}),
    ("lfm2", {"block_ff_dim": 64, "intermediate_size": 1}),
    ("lfm2_bidirectional", {"model_type": "lfm2_bidirectional", "architectures": None}),
    ("lfm2_bidirectional", {"architectures": ["Lfm2BidirectionalForMaskedLM"]}),
    ("lfm2_bidirectional", {"architectures": None, "auto_map": {"AutoModel": "x.Lfm2BidirectionalModel"}}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), OTHER_LAYOUTS)
def test_other_layouts_of_settings_mean_the_same(name: str, changes: dict[str, Any]) -> None:
    assert _difference(*_changed(name, changes)) < 1e-5


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("lfm2_bidirectional", {"is_causal": True}, "sets is_causal"),
        ("lfm2_bidirectional", {"architectures": None, "auto_map": None}, "pooling 'cls'"),
        ("lfm2", {"num_hidden_layers": "4"}, "num_hidden_layers"),
        ("lfm2", {"full_attn_idxs": 3, "layer_types": None}, "full_attn_idxs"),
        ("lfm2", {"block_ffn_dim_multiplier": "wide"}, "block_ffn_dim_multiplier"),
        ("lfm2", {"layer_types": ["conv"]}, "names 1 layers"),
        ("lfm2", {"layer_types": ["sliding_attention"] * 4}, "sliding_attention"),
        ("lfm2", {"intermediate_size": None}, "intermediate_size"),
        ("lfm2", {"conv_L_cache": 4}, "conv.conv.weight of shape"),
        ("lfm2", {"block_auto_adjust_ff_dim": False}, "feed_forward"),
    ],
)
def test_what_would_be_computed_wrong_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        load_model(_changed(name, changes)[1])


@pytest.mark.parametrize("prefix", ["", "lfm2.", "model."])
def test_layouts_of_tensors(tmp_path: Path, prefix: str) -> None:
    folder = Path(shutil.copytree(GOLDEN / "lfm2_bidirectional" / "model", tmp_path / "model"))
    file = folder / "model.safetensors"
    tensors = mx.load(str(file))
    assert isinstance(tensors, dict)
    rewritten = {"lm_head.weight": mx.ones((2, 2))} if prefix else {}
    for name, value in tensors.items():
        # mlx-lm stores a convolution's weights in MLX's layout.
        kernel = name.endswith("conv.conv.weight") and prefix == "model."
        rewritten[prefix + name] = value.swapaxes(1, 2) if kernel else value
    mx.eval(rewritten)
    mx.save_safetensors(str(file), rewritten)
    assert _difference(read_golden("lfm2_bidirectional"), read_checkpoint(folder)) < 1e-5


@pytest.mark.parametrize("offsets", [(-2, -1, 0), (-1, 0, 1), (-2, -1, 0, 1), (0,), (-9, 9)])
@pytest.mark.parametrize("packing", [pack_exact, pack_padded])
def test_a_convolution_stays_within_its_text(packing: Packing, offsets: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 100, length).tolist() for length in (1, 2, 2, 3, 5, 8, 8)]
    table = rng.standard_normal((100, 4), dtype=np.float32)
    taps = rng.standard_normal((len(offsets), 4), dtype=np.float32)
    for batch in packing(texts, 12):
        tokens = Tokens.from_batch(batch)
        mixed = np.array(Neighbors(tokens, offsets).convolve(mx.array(table)[tokens.ids], mx.array(taps)))
        rows = [row for block in batch.blocks for row in mixed[block.start : block.stop].reshape(-1, block.length, 4)]
        for row, index in zip(rows, batch.order, strict=False):
            text = table[texts[index]]
            for i, actual in enumerate(row[: len(text)]):
                near = [(tap, i + offset) for tap, offset in zip(taps, offsets, strict=True)]
                expected = sum((tap * text[j] for tap, j in near if 0 <= j < len(text)), np.zeros(4))
                assert np.allclose(actual, expected, atol=1e-6)
