"""Checkpoints saved in float64, which MLX does not read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from golden_models import GOLDEN, embed, farthest, read_golden

from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.checkpoints.tensors import read_tensors
from akidb_mlx_plugin.errors import ModelNotFoundError


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def _write(file: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    header, data = {}, b""
    for name, (dtype, values) in tensors.items():
        raw = values.tobytes()
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("name", ["bert_all_pooling", "lfm2_bidirectional"])
def test_vectors_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / name / "model", tmp_path / "model"))
    files = list(folder.rglob("*.safetensors"))
    for file in files:
        tensors = read_tensors(file)
        _write(file, {k: ("F64", np.array(v.astype(mx.float32)).astype(np.float64)) for k, v in tensors.items()})
        with pytest.raises(RuntimeError, match="F64"):
            mx.load(str(file))
    golden = read_golden(name)
    checkpoint = read_checkpoint(folder)
    assert farthest(embed(checkpoint, load_model(checkpoint), golden.texts), golden.vectors["document"]) < 1e-5


def test_what_lies_beside_them_keeps_its_format(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5], [0.0, 3.0]])
    stored = {
        "double": ("F64", values),
        "single": ("F32", values.astype(np.float32)),
        "half": ("F16", values.astype(np.float16)),
        # The upper half of a float32 is a bfloat16.
        "brain": ("BF16", (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)),
        "whole": ("I64", values.astype(np.int64)),
        "packed": ("U32", np.array([4_000_000_000], np.uint32)),
        "flag": ("BOOL", np.array([True, False])),
        "scalar": ("F64", np.array(2.5)),
        "empty": ("F32", np.zeros((0, 3), np.float32)),
    }
    _write(tmp_path / "x.safetensors", stored)
    tensors = read_tensors(tmp_path / "x.safetensors")
    formats = {name: str(value.dtype).removeprefix("mlx.core.") for name, value in tensors.items()}
    kept = {"half": "float16", "brain": "bfloat16", "whole": "int64", "packed": "uint32", "flag": "bool"}
    assert formats == {name: kept.get(name, "float32") for name in stored}
    for name in ("double", "single", "half", "brain"):
        assert np.array_equal(np.array(tensors[name].astype(mx.float32)), values)
    assert tensors["packed"].tolist() == [4_000_000_000]
    assert tensors["flag"].tolist() == [True, False]
    assert tensors["scalar"].item() == 2.5
    assert tensors["empty"].shape == (0, 3)


def test_a_format_that_nobody_reads_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "x.safetensors", {"a": ("F64", np.ones(2)), "b": ("F8_E4M3", np.ones(2, np.uint8))})
    with pytest.raises(ModelNotFoundError, match="has b in the format F8_E4M3"):
        read_tensors(tmp_path / "x.safetensors")
