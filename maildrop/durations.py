"""Times and spans of time as people and programs read them."""

from __future__ import annotations

import re
from datetime import datetime, timezone

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*([smhdw])")


def parse_duration(text: str) -> float:
    """Seconds in ``90``, ``90s``, ``15m``, ``2h``, ``1d 12h``, ``1w``. Raises ValueError."""
    text = text.strip().lower()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        return float(text)
    if not text or re.sub(r"\s+", "", _PART.sub("", text)):
        raise ValueError(f"{text!r} is no span of time such as 90s, 15m, 2h, 3d or 1w")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def tell_duration(seconds: float) -> str:
    """The two largest units: ``45s``, ``12m``, ``3h 5m``, ``2d 4h``."""
    left = max(0, int(seconds))
    if left < 60:
        return f"{left}s"
    days, left = divmod(left, 86400)
    hours, left = divmod(left, 3600)
    minutes = left // 60
    if days:
        return f"{days}d {hours}h" if hours else f"{days}d"
    if hours:
        return f"{hours}h {minutes}m" if minutes else f"{hours}h"
    return f"{minutes}m"


def tell_size(size: int) -> str:
    """``812 B``, ``4.2 KB``, ``31 MB``: powers of 1024."""
    if size < 1024:
        return f"{size} B"
    amount = float(size)
    for unit in ("KB", "MB", "GB"):
        amount /= 1024
        if amount < 1000:
            break
    return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"


def iso_time(seconds: float) -> str:
    """A point in time as JSON has it here: ISO 8601, to the second, in UTC."""
    return datetime.fromtimestamp(int(seconds), timezone.utc).isoformat()
