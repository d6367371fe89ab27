"""The tokenizers of tests/golden/tokenizers.json.gz, written out as folders."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.inference.tokenizer import TextTokenizer

GOLDEN: dict[str, Any] = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "golden/tokenizers.json.gz").read_bytes())
)


CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in GOLDEN["cases"]}


def write_case(name: str, folder: Path) -> Path:
    """Write the files of a case."""
    folder.mkdir(exist_ok=True)
    for file, content in CASES[name]["files"].items():
        (folder / file).write_text(content or GOLDEN["tokenizers"][CASES[name]["tokenizer"]], encoding="utf-8")
    return folder


def change(file: Path, **values: Any) -> None:
    """Change values of a JSON file, created if missing; None removes a value."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    content = {key: value for key, value in (content | values).items() if value is not None}
    file.write_text(json.dumps(content), encoding="utf-8")


def ids_of(folder: Path, *texts: str, rows: int | None = None) -> list[list[int]]:
    return TextTokenizer(folder, 64, rows=rows).encode(texts).ids
