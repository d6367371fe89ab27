"""Number formats of tensors, by what a tensor is for and by architecture: the right vectors, or an error that names it.

Every golden checkpoint is stored again with tensors in other formats. The default run takes one format for each kind of
tensor, and another for the next; `pytest tests/test_tensor_formats.py --complete` takes them all, some minutes.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from golden_models import GOLDEN, NAMES, embed
from numpy.typing import NDArray

from akidb_mlx_plugin.checkpoints.convert import convert_checkpoint
from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.quantization import Scheme
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.checkpoints.recipes import Recipe
from akidb_mlx_plugin.checkpoints.safetensors import read_header
from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.types import Vector

Numbers = NDArray[Any]
# A file of a checkpoint folder, and a tensor in it.
Place = tuple[str, str]
_TEXTS = ["the stone bridge over the river", "a"]
_CLOSE = 1e-5


def _as_bfloat16(values: Numbers) -> Numbers:
    return np.array(mx.array(values.astype(np.float32)).astype(mx.bfloat16).view(mx.uint16))


def _as_integers(dtype: type) -> Callable[[Numbers], Numbers]:
    return lambda values: (values * 16).clip(0 if np.dtype(dtype).kind == "u" else -100, 100).astype(dtype)


def _as_bytes(values: Numbers) -> Numbers:
    """Return eight bits per number, as float8 has them."""
    return np.array(mx.to_fp8(mx.array(values.astype(np.float32))))


FLOATS: dict[str, Callable[[Numbers], Numbers]] = {
    "F64": lambda values: values.astype(np.float64),
    "F32": lambda values: values.astype(np.float32),
    "F16": lambda values: values.astype(np.float16),
    "BF16": _as_bfloat16,
}
OTHERS: dict[str, Callable[[Numbers], Numbers]] = {
    "F8_E4M3": _as_bytes,
    "F8_E5M2": _as_bytes,
    "F8_E8M0": _as_bytes,
    "F8_E4M3FNUZ": _as_bytes,
    "F8_E5M2FNUZ": _as_bytes,
    "I8": _as_integers(np.int8),
    "I16": _as_integers(np.int16),
    "I32": _as_integers(np.int32),
    "I64": _as_integers(np.int64),
    "U8": _as_integers(np.uint8),
    "U32": _as_integers(np.uint32),
    "BOOL": lambda values: values > 0,
    "C64": lambda values: values.astype(np.complex64),
}
_RAW = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "U32": "<u4", "I32": "<i4", "I64": "<i8"}


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture
def complete(request: pytest.FixtureRequest) -> bool:
    """Whether all combinations are asked for."""
    return bool(request.config.getoption("--complete"))


def kind_of(place: Place) -> str:
    """Return what a tensor is for."""
    file, name = place
    if "/" in file or name.startswith("dense."):
        return "dense head"
    if "position" in name or "relative" in name:
        return "position table"
    if re.search(r"norm|\bln_|_ln\b|LayerNorm", name):
        return "norm"
    if name.endswith("bias"):
        return "bias"
    return "embedding" if re.search(r"embed|shared", name) else "linear weight"


class Stored:
    """The tensors of a checkpoint folder as they lie in its files, to be written in other formats."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[Place, tuple[str, Numbers]] = {}
        for file in sorted(folder.rglob("*.safetensors")):
            content = file.read_bytes()
            for name, info in read_header(file).items():
                values = np.frombuffer(content[slice(*info.span)], _RAW[info.dtype]).reshape(info.shape)
                self.tensors[str(file.relative_to(folder)), name] = (info.dtype, values)

    def places(self) -> dict[str, list[Place]]:
        """Return the floating-point tensors by kind."""
        found: dict[str, list[Place]] = {}
        for place, (dtype, _) in self.tensors.items():
            if dtype in FLOATS:
                found.setdefault(kind_of(place), []).append(place)
        return found

    def numbers(self, place: Place) -> Numbers:
        """Return a tensor's numbers."""
        dtype, values = self.tensors[place]
        return np.array(mx.array(values).view(mx.bfloat16).astype(mx.float32)) if dtype == "BF16" else values

    def write(self, target: Path, changed: Mapping[Place, tuple[str, Numbers]]) -> Path:
        """Write a copy of the folder with some tensors in other formats."""
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
        for file in {file for file, _ in self.tensors}:
            header: dict[str, Any] = {}
            data = bytearray()
            for place in self.tensors:
                if place[0] == file:
                    dtype, values = changed.get(place, self.tensors[place])
                    span = [len(data), len(data) + values.nbytes]
                    header[place[1]] = {"dtype": dtype, "shape": values.shape, "data_offsets": span}
                    data += values.tobytes()
            text = json.dumps(header).encode()
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (target / file).write_bytes(len(text).to_bytes(8, "little") + text + data)
        return target

    def rounded(self, target: Path, formats: Mapping[Place, str]) -> Path:
        """Write a copy whose tensors have the numbers that these formats leave of them, in float32."""
        changed = {}
        for place, dtype in formats.items():
            values = FLOATS[dtype](self.numbers(place))
            if dtype == "BF16":
                values = np.array(mx.array(values).view(mx.bfloat16).astype(mx.float32))
            changed[place] = ("F32", values.astype(np.float32))
        return self.write(target, changed)

    def in_formats(self, target: Path, formats: Mapping[Place, str]) -> Path:
        """Write a copy with tensors in these formats."""
        encode = {**FLOATS, **OTHERS}
        return self.write(
            target, {place: (dtype, encode[dtype](self.numbers(place))) for place, dtype in formats.items()}
        )


def vectors_of(folder: Path) -> Vector:
    checkpoint = read_checkpoint(folder)
    return embed(checkpoint, load_model(checkpoint), _TEXTS)


def is_refused(folder: Path, original: Path, place: Place, dtype: str) -> bool:
    """Return whether a checkpoint is refused for a tensor; if not, its vectors have to be those of the original."""
    try:
        vectors = vectors_of(folder)
    except ModelNotFoundError as error:
        message = str(error)
    else:
        # The encoder has no use for the tensor.
        assert np.abs(vectors - vectors_of(original)).max() < _CLOSE, f"{place[1]} in {dtype} is taken for numbers"
        return False
    assert place[1] in message, f"{dtype} in {place[1]}: {message}"
    return True


def expect_as_rounded(stored: Stored, folder: Path, formats: Mapping[Place, str]) -> None:
    """Check that tensors in floating-point formats give the vectors of the numbers that these formats leave."""
    expected = vectors_of(stored.rounded(folder / "rounded", formats))
    vectors = vectors_of(stored.in_formats(folder / "m", formats))
    difference = np.abs(vectors - expected).max()
    assert difference < _CLOSE * max(1, np.abs(expected).max()), f"{formats} in {stored.folder}: {difference}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_floating_point_formats(name: str, tmp_path: Path, complete: bool) -> None:
    stored = Stored(GOLDEN / name / "model")
    kinds = stored.places().values()
    start = NAMES.index(name)
    mixed = {place: [*FLOATS][(start + i) % len(FLOATS)] for i, place in enumerate(p for some in kinds for p in some)}
    expect_as_rounded(stored, tmp_path, mixed)
    for places in kinds if complete else ():
        for dtype in FLOATS:
            expect_as_rounded(stored, tmp_path, dict.fromkeys(places, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_holds_no_weights_is_refused_by_name(name: str, tmp_path: Path, complete: bool) -> None:
    stored = Stored(GOLDEN / name / "model")
    refused = 0
    for i, places in enumerate(stored.places().values()):
        turn = NAMES.index(name) + 3 * i
        place = places[turn % len(places)]
        for dtype in OTHERS if complete else [[*OTHERS][turn % len(OTHERS)]]:
            refused += is_refused(stored.in_formats(tmp_path / "m", {place: dtype}), stored.folder, place, dtype)
    assert refused


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [Scheme(32, 4, "affine"), Scheme(32, 8, "mxfp8")], ids=["affine", "mxfp8"])
def test_parts_of_a_quantized_matrix(scheme: Scheme, tmp_path: Path, complete: bool) -> None:
    for turn, name in enumerate(NAMES if complete else NAMES[::7]):
        convert_checkpoint(GOLDEN / name / "model", tmp_path / name, Recipe(scheme, scheme))
        stored = Stored(tmp_path / name)
        paths = [place for place in stored.tensors if place[1].endswith(".scales")]
        file, scales = paths[turn % len(paths)] if paths else ("", "")
        for part in ("weight", "scales", "biases"):
            place = (file, f"{scales.removesuffix('scales')}{part}")
            if place in stored.tensors:
                _try_formats(stored, place, tmp_path / "work", None if complete else turn + len(part))


def _try_formats(stored: Stored, place: Place, folder: Path, turn: int | None) -> None:
    """Store a part of a quantized matrix in all other formats, or in one of them."""
    own = stored.tensors[place][0]
    others = [dtype for dtype in {**FLOATS, **OTHERS} if dtype != own]
    for dtype in others if turn is None else [others[turn % len(others)]]:
        if own in FLOATS and dtype in FLOATS:
            expect_as_rounded(stored, folder, {place: dtype})
            continue
        # Packed words are large numbers.
        with np.errstate(over="ignore"):
            changed = stored.in_formats(folder / "m", {place: dtype})
        is_refused(changed, stored.folder, place, dtype)
