"""Dates, times and durations as Arrow's integer counts, so that no unit is guessed or rounded."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa

_NS_PER_UNIT = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_NS_PER_DAY = 86_400 * 10**9
# Attoseconds in each of numpy's fixed-length units.
_AS = {"W": 7 * 86_400, "D": 86_400, "h": 3_600, "m": 60, "s": 1}
_ATTOSECONDS = {unit: seconds * 10**18 for unit, seconds in _AS.items()} | {
    unit: 10**exponent for unit, exponent in {"ms": 15, "us": 12, "ns": 9, "ps": 6, "fs": 3, "as": 0}.items()
}
_AS_PER_NS = 10**9
_EPOCH = dt.datetime(1970, 1, 1)


def count_units(value: Any, kind: pa.DataType) -> int:
    """Return a moment or duration in a column's units.

    Args:
        value: Python's datetime, date, time or timedelta, or numpy's datetime64 or timedelta64 in any unit.
        kind: a temporal type.
    Raises:
        ValueError: another kind of value, a time zone where the column has none or vice versa, or more digits or years
            than the column keeps.
    """
    if pa.types.is_timestamp(kind):
        nanoseconds, unit = _moment_ns(value, kind), _NS_PER_UNIT[kind.unit]
    elif pa.types.is_date(kind):
        # A date64 counts milliseconds, but in whole days.
        days = _whole(_date_ns(value), _NS_PER_DAY, "a day")
        nanoseconds, unit = days * _NS_PER_DAY, _NS_PER_DAY if kind == pa.date32() else 10**6
    elif pa.types.is_time(kind):
        nanoseconds, unit = _time_ns(value), _NS_PER_UNIT[kind.unit]
    elif pa.types.is_duration(kind):
        nanoseconds, unit = _duration_ns(value), _NS_PER_UNIT[kind.unit]
    else:
        raise ValueError(f"values of {kind} cannot be checked; use a timestamp or a duration")
    count = _whole(nanoseconds, unit, f"one unit of {kind}")
    # numpy and pandas use the lowest 64-bit number for a missing value.
    bits = kind.bit_width - 1
    if not -(2**bits) < count < 2**bits:
        raise ValueError(f"{kind} cannot represent it; use a coarser unit")
    return count


def _moment_ns(value: Any, kind: pa.DataType) -> int:
    zone = kind.tz
    if isinstance(value, np.datetime64):
        if zone is not None:
            raise ValueError("a datetime64 has no time zone, and the column has one; give a datetime with tzinfo")
        return _numpy_ns(value)
    if not isinstance(value, dt.datetime):
        raise ValueError(f"{type(value).__name__} is not a point in time; give a datetime")
    if zone is None and value.tzinfo is not None:
        raise ValueError("the column has no time zone, and would lose this one; give value.replace(tzinfo=None)")
    if zone is not None:
        if value.utcoffset() is None:
            raise ValueError(f"it has no time zone, and the column's is {zone}; give a datetime with tzinfo")
        return _datetime_ns(value.replace(tzinfo=None)) - _timedelta_ns(value.utcoffset() or dt.timedelta())
    return _datetime_ns(value)


def _datetime_ns(value: dt.datetime) -> int:
    plain = dt.datetime(value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond)
    # pandas has nanoseconds too.
    return _timedelta_ns(plain - _EPOCH) + int(getattr(value, "nanosecond", 0))


def _date_ns(value: Any) -> int:
    if isinstance(value, np.datetime64):
        return _numpy_ns(value)
    if not isinstance(value, dt.date) or isinstance(value, dt.datetime):
        raise ValueError(f"{type(value).__name__} is not a date; give value.date(), or use a timestamp column")
    return (value.toordinal() - _EPOCH.toordinal()) * _NS_PER_DAY


def _time_ns(value: Any) -> int:
    if not isinstance(value, dt.time):
        raise ValueError(f"{type(value).__name__} is not a time of day; give a datetime.time")
    if value.tzinfo is not None:
        raise ValueError("a time column keeps no time zone; give value.replace(tzinfo=None)")
    seconds = (value.hour * 60 + value.minute) * 60 + value.second
    return (seconds * 10**6 + value.microsecond) * 1000


def _duration_ns(value: Any) -> int:
    if isinstance(value, np.timedelta64):
        return _numpy_ns(value)
    if not isinstance(value, dt.timedelta):
        raise ValueError(f"{type(value).__name__} is not a duration; give a timedelta")
    return _timedelta_ns(value) + int(getattr(value, "nanoseconds", 0))


def _timedelta_ns(value: dt.timedelta) -> int:
    return ((value.days * 86_400 + value.seconds) * 10**6 + value.microseconds) * 1000


def _numpy_ns(value: Any) -> int:
    unit, step = np.datetime_data(value.dtype)
    if unit in ("Y", "M") and isinstance(value, np.datetime64):
        value, unit, step = value.astype("datetime64[D]"), "D", 1
    if unit not in _ATTOSECONDS:
        raise ValueError(f"a {value.dtype} has no fixed length; give it in days or shorter units")
    return _whole(int(value.astype(np.int64)) * step * _ATTOSECONDS[unit], _AS_PER_NS, "a nanosecond")


def _whole(count: int, unit: int, name: str) -> int:
    if count % unit:
        raise ValueError(f"it is finer than {name}, and would be rounded; round it, or use a finer column")
    return count // unit
