"""Seeded damage to the files of a checkpoint: values of other types, sizes and places, bytes cut and flipped."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

# What stands in for a value: other types, the ends of ranges, and what text is easily mistaken for.
_STRANGE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    7,
    1_000_000,
    2**31,
    2**63,
    -(2**63),
    1e308,
    -0.5,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "0",
    "../..",
    "/",
    "mean",
    "\x00",
    "\ud800",
    [],
    [1],
    ["x"],
    [[]],
    {},
    {"x": 1},
    {"type": "linear"},
    [0] * 50,
)
_TYPES = ("bert", "roberta", "qwen3", "gemma3_text", "modernbert", "t5", "mamba", "no-such")


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON value with one to three entries changed, removed, added or moved."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _mutate_once(value, rng)
    return value


def _mutate_once(value: Any, rng: random.Random) -> Any:
    places = list(_places(value))
    if not places or rng.random() < 0.03:
        return copy.deepcopy(rng.choice(_STRANGE))
    parent, key = rng.choice(places)
    action = rng.random()
    if action < 0.12:
        del parent[key]
    elif action < 0.2:
        other_parent, other_key = rng.choice(places)
        parent[key] = json.loads(json.dumps(other_parent[other_key])) if other_parent is not parent[key] else None
    elif action < 0.3 and isinstance(parent[key], int) and not isinstance(parent[key], bool):
        parent[key] = rng.choice((parent[key] + 1, parent[key] - 1, parent[key] * 2, -parent[key], str(parent[key])))
    elif action < 0.33:
        parent[key] = _nested(rng.choice((5, 200)))
    elif action < 0.36 and key == "model_type":
        parent[key] = rng.choice(_TYPES)
    else:
        parent[key] = copy.deepcopy(rng.choice(_STRANGE))
    return value


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        for key in list(value):
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list):
        for i in range(min(len(value), 20)):
            yield value, i
            yield from _places(value[i])


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def mutate_file(file: Path, target: Path, rng: random.Random) -> None:
    """Write a damaged copy of a JSON or a safetensors file."""
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        target.write_bytes(_mutate_tensors(content, rng))
    elif rng.random() < 0.08:
        target.write_bytes(_mutate_bytes(content, rng))
    else:
        value = mutate_json(json.loads(content), rng)
        target.write_text(json.dumps(value), encoding="utf-8", errors="surrogatepass")


def _mutate_tensors(content: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.2:
        return _mutate_bytes(content, rng)
    header = mutate_json(json.loads(content[8 : 8 + length]), rng)
    if rng.random() < 0.3 and isinstance(header, dict) and header:
        entry = header[rng.choice(list(header))]
        if isinstance(entry, dict):
            entry["dtype"] = rng.choice(("F16", "F64", "I8", "I64", "U8", "BOOL", "F8_E4M3", "BF16", "C64", "X9"))
    text = json.dumps(header).encode("utf-8", "replace")
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    action = rng.random()
    if action < 0.3:
        return content[: rng.randrange(len(content) + 1)]
    if action < 0.4:
        return content + rng.randbytes(rng.randrange(1, 40))
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 3, 20))):
        # The beginning holds what is parsed.
        damaged[rng.randrange(min(len(damaged), 2000))] = rng.randrange(256)
    return bytes(damaged)
