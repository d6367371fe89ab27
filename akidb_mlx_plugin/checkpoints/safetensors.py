"""List the tensors of a checkpoint's safetensors files from their headers.

Format: eight bytes of little-endian length, that much JSON, then the tensors' bytes end to end.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.hub.files import without_weights

INDEX_NAME = "model.safetensors.index.json"
_LFS_POINTER = b"version https://git-lfs"
_LONGEST_HEADER = 100_000_000
# Bytes per element by dtype.
_BITS = {
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        dtype: as named in the file, such as "F32", "BF16" or "U32".
        shape: its shape.
        span: offsets in the file of its first byte and one past its last.
    """

    dtype: str
    shape: tuple[int, ...]
    span: tuple[int, int] = (0, 0)


def find_weight_files(folder: Path) -> list[Path]:
    """Return the encoder's own safetensors files, without those of dense layers.

    Raises:
        ModelNotFoundError: there is none, or the index names one that is missing.
    """
    whole, index = folder / "model.safetensors", folder / INDEX_NAME
    names = _names_in(index) if index.is_file() else []
    missing = [name for name in names if not (folder / name).is_file()]
    if names and not missing:
        return [folder / name for name in names]
    files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    if missing and files != [whole]:
        raise ModelNotFoundError(f"{index} names {', '.join(missing)}, which {folder} does not have")
    if not files:
        raise ModelNotFoundError(f"{folder} {without_weights(file.name for file in folder.iterdir())}")
    return files


def _names_in(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
            raise ValueError("a file is outside the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotFoundError(f"{index} cannot be read as an index of tensors: {error!r}") from error
    return names


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return the tensors that a file's header lists, by name.

    Raises:
        ModelNotFoundError: damaged, truncated, a Git LFS pointer, or not a safetensors file.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ModelNotFoundError(
                    f"{file} is a Git LFS pointer, not the weights; run 'git lfs pull' in its folder"
                )
            stream.seek(0)
            length = int.from_bytes(stream.read(8), "little")
            if length > min(_LONGEST_HEADER, file.stat().st_size):
                raise ValueError("no valid header")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        _check_layout(header, file.stat().st_size - 8 - length)
        found = {}
        for name, entry in header.items():
            start, stop = (8 + length + place for place in entry["data_offsets"])
            found[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), (start, stop))
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelNotFoundError(
            f"{file} is damaged or not a safetensors file ({error}); download the model again: "
            "akidb-mlx models download --force NAME"
        ) from error


def _check_layout(header: dict[str, Any], size: int) -> None:
    """Check that the tensors fill the bytes after the header contiguously, as the format demands."""
    spans = []
    for name, entry in header.items():
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in _BITS:
            raise ValueError(f"{name} has the unknown dtype {dtype!r}")
        if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
            raise ValueError(f"{name} has an invalid shape or offsets: {shape}, {entry['data_offsets']}")
        if (stop - start) * 8 != math.prod(shape) * _BITS[dtype]:
            raise ValueError(f"{name} of shape {shape} in {dtype} does not take {stop - start} bytes")
        spans.append((start, stop))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise ValueError(f"tensors overlap, or leave a gap, at byte {min(start, end)}")
        end = stop
    if end != size:
        raise ValueError(f"it has {size} bytes of tensors, but its header lists {end}")
