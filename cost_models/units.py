"""Where human units become SI and back: tokens (K, M binary), bytes (GiB), rates (GB/s, Gbit/s), seconds.

Inside the project everything is bytes, seconds and FLOP; only text that a person wrote or reads passes here.
    2M tokens = 2 * 2**20        50 GB/s = 50e9 bytes/s        400 Gbit/s = 50e9 bytes/s        80 GiB = 80 * 2**30
"""

from __future__ import annotations

import math
import re

from cost_models.errors import InputError

_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_RATES = {"B/s": 1.0, "MB/s": 1e6, "GB/s": 1e9, "TB/s": 1e12, "Mbit/s": 1e6 / 8, "Gbit/s": 1e9 / 8, "Tbit/s": 1e12 / 8}
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_NUMBER = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?(?:[eE][+-]?[0-9]{1,2})?)\s*([A-Za-z/]*)\s*\Z")


def parse_tokens(text: str, name: str = "--ctx") -> int:
    """Tokens from `2M`, `128K` or `131072`; K and M are binary, as in the published context lengths.

    >>> parse_tokens("2M"), parse_tokens("1.5K"), parse_tokens("4096")
    (2097152, 1536, 4096)
    """
    legal = "a positive number of tokens such as 4096, 128K or 2M (K = 1024, M = 1048576)"
    match = _NUMBER.match(text)
    if match is None:
        raise InputError(f"{name} {text!r} is not {legal}")
    suffix = match[2]
    if suffix == "m":
        raise InputError(f"{name} {text!r}: lower-case m is milli; write {text.strip()[:-1]}M (M = 1048576 tokens)")
    if suffix not in ("", "K", "k", "M"):
        raise InputError(f"{name} {text!r}: unit {suffix!r} is unknown; give {legal}")
    value = float(match[1]) * {"": 1, "K": 1024, "k": 1024, "M": 2**20}[suffix]
    if value < 1 or value != int(value) or value > 2**40:
        raise InputError(f"{name} {text!r} is not a whole number of tokens from 1 to 2^40; give {legal}")
    return int(value)


def _parse(
    text: object, units: dict[str, float] | dict[str, int], name: str, example: str, divide: bool = False
) -> float:
    match = _NUMBER.match(text) if isinstance(text, str) else None
    if match is None or match[2] not in units:
        raise InputError(
            f"{name}: {text!r} is not a number with one of the units {', '.join(units)} (as in {example!r})"
        )
    value = float(match[1]) / units[match[2]] if divide else float(match[1]) * units[match[2]]
    if not math.isfinite(value):
        raise InputError(f"{name}: {text!r} is not finite")
    return value


def parse_bytes(text: object, name: str) -> int:
    """
    >>> parse_bytes("80 GiB", "memory")
    85899345920
    """
    return round(_parse(text, _BYTES, name, "80 GiB"))


def parse_rate(text: object, name: str) -> float:
    """
    >>> parse_rate("400 Gbit/s", "nic")
    50000000000.0
    """
    return _parse(text, _RATES, name, "50 GB/s")


def parse_seconds(text: object, name: str) -> float:
    """
    >>> parse_seconds("5 us", "latency")
    5e-06
    """
    return _parse(text, _PER_SECOND, name, "5 us", divide=True)


def show_tokens(tokens: float) -> str:
    """
    >>> show_tokens(2 * 2**20), show_tokens(131072), show_tokens(1000)
    ('2M', '128K', '1000')
    """
    for unit, size in (("M", 2**20), ("K", 2**10)):
        if tokens >= size and tokens * 4 % size == 0:
            return f"{tokens / size:g}{unit}"
    return f"{tokens:g}" if tokens == int(tokens) and tokens < 1e6 else f"{tokens:,.0f}"


def show_bytes(count: float) -> str:
    """
    >>> show_bytes(3 * 2**30), show_bytes(5e5), show_bytes(1010 * 2**20)
    ('3.00 GiB', '488 KiB', '1010 MiB')
    """
    size = abs(count)
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{count / scale:.0f} {unit}" if size >= 100 * scale else f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def show_seconds(seconds: float, digits: int = 3) -> str:
    """
    >>> show_seconds(12.345), show_seconds(0.0123), show_seconds(2e-6), show_seconds(0), show_seconds(12.345, 4)
    ('12.3 s', '12.3 ms', '2 us', '0 s', '12.35 s')
    >>> show_seconds(1667.2), show_seconds(0.9999), show_seconds(123456)
    ('1,667 s', '1 s', '123,456 s')
    >>> show_seconds(0.573, 2)
    '570 ms'
    """
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        shown = float(f"{seconds / scale:.{digits}g}")
        if shown >= 1:
            return f"{seconds:,.0f} s" if shown >= 1000 else f"{shown:.{max(digits, len(str(int(shown))))}g} {unit}"
    return f"{seconds * 1e9:.{digits}g} ns" if seconds > 0 else "0 s"


def show_rate(bytes_per_s: float) -> str:
    """
    >>> show_rate(50e9)
    '50 GB/s'
    """
    if bytes_per_s >= 1e12:
        return f"{bytes_per_s / 1e12:.3g} TB/s"
    return f"{bytes_per_s / 1e9:.3g} GB/s" if bytes_per_s >= 1e9 else f"{bytes_per_s / 1e6:.3g} MB/s"
