"""Display objects in a notebook as a small table, without scripts or style sheets."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_LONGEST = 120


def facts_table(title: str, facts: Mapping[str, object]) -> str:
    """Return an HTML table of two columns, without values that are None or empty.

    Names and prompts may come from an untrusted collection: everything is escaped, and long values are shortened.

    Args:
        title: the caption.
        facts: value by label; numbers get thousands separators.
    """
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(label)}</th><td style="text-align:left">{_cell(value)}</td></tr>'
        for label, value in facts.items()
        if value is not None and value != "" and value != ()
    )
    return f"<table><caption><b>{escape(title)}</b></caption><tbody>{rows}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    # A prompt's line breaks and trailing space are significant; plain HTML would collapse both.
    text = value if isinstance(value, str) else ", ".join(map(str, value)) if isinstance(value, tuple) else repr(value)
    text = text.replace("\n", "\\n")
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return f'<span style="white-space:pre-wrap">{escape(text)}</span>'
