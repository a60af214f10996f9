"""Units at the edge: integers inside, text only where a person reads.

Sizes are printed in binary units (KiB, MiB, GiB) with the exact number of bytes; rates and
counts are decimal. The two families never share a number.
"""

from __future__ import annotations

import re

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
_COUNT_SUFFIXES = ("", "K", "M", "B", "T")

_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>B|[KMGTP]iB|[kKMGTP]B)")


def bytes_text(count: int) -> str:
    """`131072` -> `128 KiB (131,072 B)`; below 1 KiB only `512 B`."""
    short = bytes_short(count)
    return short if abs(count) < 1024 else f"{short} ({count:,} B)"


def bytes_short(count: int) -> str:
    """`131072` -> `128 KiB`, three significant digits, binary units."""
    return _scaled(count, 1024, _BINARY, space=" ")


def count_text(count: int) -> str:
    """`8030261248` -> `8,030,261,248 (8.03 B)`; below a thousand only the number."""
    if abs(count) < 1000:
        return str(count)
    return f"{count:,} ({count_short(count)})"


def count_short(count: int) -> str:
    """`8030261248` -> `8.03 B` (billion); at most two decimals, decimal units."""
    return _scaled(count, 1000, _COUNT_SUFFIXES, space=" ", decimals=2)


def rate_text(per_second: float, unit: str) -> str:
    """`rate_text(3.35e12, 'B')` -> `3.35 TB/s`, `rate_text(41.6, 'tokens')` -> `41.6 tokens/s`.

    Bytes (`B`), `FLOP` and the like take a decimal prefix; a plural word takes none.
    """
    if unit.endswith("s"):
        return f"{_digits(per_second)} {unit}/s"
    prefixed = tuple(prefix + unit for prefix in _DECIMAL_PREFIXES)
    return f"{_scaled(per_second, 1000, prefixed, space=' ')}/s"


def seconds_text(seconds: float) -> str:
    """``8 s``, ``3 min 20 s``, ``2 h 5 min``: two units at most."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def parse_bytes(text: str) -> int:
    """`5 GB` -> 5000000000, `64MiB` -> 67108864. Raises ValueError on anything else.

    A unit is required: a bare number does not say whether it is GB or GiB.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example '512 MiB', '5 GB' or '4096 B'")
    unit = match["unit"]
    power = "BKMGTP".index(unit[0].upper())
    scale: int = (1024 if "i" in unit else 1000) ** power
    whole, _, fraction = match["number"].partition(".")
    exact = int(whole + fraction) * scale
    divisor: int = 10 ** len(fraction)
    if exact % divisor:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return exact // divisor


def _scaled(
    value: float, base: int, names: tuple[str, ...], space: str, decimals: int | None = None
) -> str:
    scaled = float(value)
    for position, name in enumerate(names):
        last = position == len(names) - 1
        text = _digits(scaled, decimals)
        # 1023.99 KiB must become 1 MiB, not "1024 KiB"
        if last or abs(float(text.replace(",", ""))) < base:
            return f"{text}{space}{name}" if name else text
        scaled /= base
    raise AssertionError("names is never empty")


def _digits(value: float, decimals: int | None = None) -> str:
    if decimals is None:
        decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
