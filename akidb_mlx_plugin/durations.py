"""Durations as people write them: "5m", "1h30m", 30, 0, -1."""

from __future__ import annotations

import math
import re
from typing import Any

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_LONGEST_S = 10 * 366 * 86_400.0


def parse_duration(value: Any) -> float:
    """Return a duration in seconds, and -1 for anything negative, which stands for "no limit".

    Args:
        value: seconds as a number or in digits, or numbers with units, such as "5m" or "1h30m".
    Raises:
        ValueError: anything else.
    Source: Ollama's `keep_alive`.
    """
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= _LONGEST_S else math.nan
    elif isinstance(value, str) and len(value) <= 40:
        seconds = _parse_text(value.strip())
    if not abs(seconds) <= _LONGEST_S:
        raise ValueError('a duration is a number of seconds or a text such as "5m" or "1h30m"; -1 stands for no limit')
    return seconds if seconds >= 0 else -1.0


def _parse_text(text: str) -> float:
    sign, digits = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    if re.fullmatch(r"\d+(\.\d+)?", digits):
        return sign * float(digits)
    if not re.fullmatch(rf"({_PART.pattern})+", digits):
        return math.nan
    return sign * sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(digits))
