"""Task heads that checkpoints hold in addition to their encoder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from golden_models import GOLDEN, embed, farthest, read_golden

from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import ModelNotFoundError


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def _with_tensors(folder: Path, name: str, prefix: str, more: list[str]) -> Path:
    folder = Path(shutil.copytree(GOLDEN / name / "model", folder / "model"))
    file = folder / "model.safetensors"
    tensors = mx.load(str(file))
    assert isinstance(tensors, dict)
    written = {prefix + key.removeprefix(prefix): value for key, value in tensors.items()}
    written |= {key: mx.ones((2, 2)) for key in more}
    mx.eval(written)
    mx.save_safetensors(str(file), written)
    return folder


HEADS = {
    "gemma3_text": ["score.weight", "lm_head.weight"],
    "lfm2_bidirectional": ["score.weight", "classifier.weight", "classifier.bias"],
    "modernbert": ["head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias", "decoder.bias"],
}


@pytest.mark.parametrize("name", HEADS)
def test_they_are_left_out(name: str, tmp_path: Path) -> None:
    golden = read_golden(name)
    checkpoint = read_checkpoint(_with_tensors(tmp_path, name, "model.", HEADS[name]))
    assert farthest(embed(checkpoint, load_model(checkpoint), golden.texts), golden.vectors["document"]) < 1e-5


@pytest.mark.parametrize("name", HEADS)
def test_what_is_none_is_named(name: str, tmp_path: Path) -> None:
    folder = _with_tensors(tmp_path, name, "model.", ["model.layers.0.score.weight"])
    with pytest.raises(ModelNotFoundError, match=r"unknown tensor .*layers\.0\.score\.weight"):
        load_model(read_checkpoint(folder))
