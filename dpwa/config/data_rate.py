"""Data rates as people write them, such as 20 MB/s, in bytes per second; and what is meant by a misspelt one.

pydantic's ByteSize would be shorter, but takes MB and mb for the same, and a number without a unit for bytes.

Must not know: the config and its keys. Runs in: any thread; pure.
"""

from __future__ import annotations

import math
import re
from difflib import get_close_matches

__all__ = ["DATA_RATE_PATTERN", "bytes_per_s", "expected_rate", "hint_for_rate"]

_THOUSANDS = {"k": 1000, "M": 1000**2, "G": 1000**3}
_UNITS: dict[str, float] = {
    "B/s": 1,
    **{f"{prefix}B/s": factor for prefix, factor in _THOUSANDS.items()},
    **{f"{prefix}iB/s": 1024**power for power, prefix in enumerate("KMG", start=1)},
    **{f"{prefix}bit/s": factor / 8 for prefix, factor in _THOUSANDS.items()},
}
"""Bytes per second in one of each unit."""

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"

DATA_RATE_PATTERN = f"{_NUMBER} ?(?:{'|'.join(_UNITS)})"
"""What a rate looks like, as a regular expression; a rate of 0 has this form, too, but `bytes_per_s` refuses it."""

_RATE = re.compile(DATA_RATE_PATTERN)
_ALMOST_A_RATE = re.compile(rf"(-?{_NUMBER})\s*([A-Za-z/ ]*)")


def bytes_per_s(text: str) -> float | None:
    """Bytes per second; None if the text is not a rate above 0.

    Args:
        text: a decimal number and a unit: B/s, kB/s, MB/s, GB/s (powers of 1000), KiB/s, MiB/s, GiB/s (powers of
            1024), kbit/s, Mbit/s or Gbit/s (powers of 1000, 8 bits to the byte). Case matters, since b and B differ.
    """
    if not _RATE.fullmatch(text):
        return None
    unit = text.lstrip("0123456789. ")
    rate = float(text[: -len(unit)]) * _UNITS[unit]
    return rate if 0 < rate < math.inf else None


def expected_rate() -> str:
    """What is expected of a rate, in words."""
    return f'expected a rate above 0 with its unit, such as "20 MB/s" (units {", ".join(_UNITS)})'


def hint_for_rate(value: object) -> str:
    """What to write instead of a value that is not a rate; empty if that cannot be guessed.

    Args:
        value: anything, as it stood in the file.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = f"{value:.12g}"
    if not isinstance(value, str):
        return ""
    if value.lower() in ("none", "off", "no", "unlimited"):
        return _NO_LIMIT
    match = _ALMOST_A_RATE.fullmatch(value.strip())
    if match is None:
        return ""
    number, unit = match.groups()
    if float(number) <= 0:
        return _NO_LIMIT
    if not unit:
        return f'; write the unit, too: "{number} MB/s" or another'
    near = _nearest_unit(unit)
    return f'; did you mean "{number} {near}"?' if near else ""


_NO_LIMIT = "; leave the key out for no limit"


def _nearest_unit(unit: str) -> str | None:
    """The unit that was probably meant: another case, another way to write "per second", or a slip of the finger."""
    spelt_out = re.sub(r"(?:/|p| / | per )?(?:s|sec|second)?$", "", unit) + "/s"
    if unit.endswith("bps"):  # with p and a small b bits are meant
        spelt_out = unit[:-3] + "bit/s"
    for wanted in (unit, spelt_out):
        for known in _UNITS:
            if known.lower() == wanted.lower():
                return known
    near = get_close_matches(unit, _UNITS, n=1)
    return near[0] if near else None
