"""Write the configuration reference into docs/configuration.md, from the schema and its docstrings.

    python docs/scripts/configuration.py

tests/test_docs.py fails while the page differs from the schema.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from akidb_mlx_plugin.config import ENVIRONMENT_PREFIX, EmbeddingConfig

PAGE = Path(__file__).parents[1] / "configuration.md"
BEGIN, END = (f"<!-- made by docs/scripts/configuration.py: {word} -->" for word in ("begin", "end"))
_VARIABLES = (
    f"Each key has a variable, the section and the key in capitals behind `{ENVIRONMENT_PREFIX}`: "
    f"`{ENVIRONMENT_PREFIX}MODE`, `{ENVIRONMENT_PREFIX}MLX__MODEL`, `{ENVIRONMENT_PREFIX}SERVICE__QUEUE_SIZE`."
)
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def sections() -> dict[str, type[BaseModel]]:
    """Return the schema of each section, by name."""
    fields = EmbeddingConfig.model_fields.items()
    return {
        name: field.annotation
        for name, field in fields
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def meanings(schema: type[BaseModel]) -> dict[str, str]:
    """Return the text of each attribute in a schema's docstring."""
    text = inspect.getdoc(schema) or ""
    _, _, attributes = text.partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", attributes, flags=re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def reference() -> str:
    """Return the whole reference as Markdown: a file with all defaults, and a table for each section."""
    defaults = EmbeddingConfig().model_dump()
    defaults["mlx"]["cache_dir"] = "~/.cache/akidb/models"
    file = yaml.safe_dump({"embedding": defaults}, sort_keys=False)
    parts = [f"```yaml\n{file}```", _VARIABLES, _table(EmbeddingConfig, {"mode": defaults["mode"]})]
    parts += [f"### `{name}`\n\n{_table(schema, defaults[name])}" for name, schema in sections().items()]
    return "\n\n".join(parts)


def write() -> str:
    """Return the page with the reference of today's schema in it."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{rest.partition(END)[2]}"


def _table(schema: type[BaseModel], defaults: dict[str, Any]) -> str:
    meaning, properties = meanings(schema), schema.model_json_schema()["properties"]
    rows = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for name, value in defaults.items():
        shown = yaml.safe_dump(value).removesuffix("...\n").strip()
        rows.append(f"| `{name}` | `{shown}` | {_values(properties[name])} | {meaning[name].rstrip('.')} |")
    return "\n".join(rows)


def _values(schema: dict[str, Any]) -> str:
    kinds = schema.get("anyOf", [schema])
    return " or ".join(_value(kind) for kind in kinds)


def _value(kind: dict[str, Any]) -> str:
    if "enum" in kind:
        return ", ".join(f"`{choice}`" for choice in kind["enum"])
    bounds = ", ".join(f"{sign} {kind[word]:g}" for word, sign in _BOUNDS.items() if word in kind)
    word = {"null": "`null`", "boolean": "`true`, `false`"}.get(kind["type"], kind.get("format", kind["type"]))
    return f"{word} {bounds}".strip()


if __name__ == "__main__":
    PAGE.write_text(write(), encoding="utf-8")
