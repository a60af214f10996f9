"""Numbers as people read them."""

from __future__ import annotations

import pytest

from llamagen.units import bytes_short, bytes_text, count_text, parse_bytes, rate_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1 KiB (1,024 B)"),
        (131072, "128 KiB (131,072 B)"),
        (2_471_645_608, "2.3 GiB (2,471,645,608 B)"),
        (2**20 - 1, "1 MiB (1,048,575 B)"),  # never "1024 KiB"
        (5 * 2**60, "5,120 PiB (5,764,607,523,034,234,880 B)"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert bytes_text(count) == text
    assert text.startswith(bytes_short(count))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1,000 (1 K)"),
        (999_999, "999,999 (1 M)"),
        (8_030_261_248, "8,030,261,248 (8.03 B)"),
        (405_853_388_800, "405,853,388,800 (405.85 B)"),
    ],
)
def test_counts(count: int, text: str) -> None:
    assert count_text(count) == text


def test_rates() -> None:
    assert rate_text(3.35e12, "B") == "3.35 TB/s"
    assert rate_text(989e12, "FLOP") == "989 TFLOP/s"
    assert rate_text(41.62, "tokens") == "41.6 tokens/s"
    assert rate_text(12_345.0, "tokens") == "12,345 tokens/s"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096 B", 4096),
        ("64MiB", 64 * 2**20),
        ("5 GB", 5 * 10**9),
        ("5kB", 5000),
        ("5KB", 5000),
        ("1.5 GiB", 3 * 2**29),
    ],
)
def test_parse(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["5", "5 G", "-1 GB", "1e3 B", "0.5 B", "GB", "5 gb", "٥ GB"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a (size|whole number)"):
        parse_bytes(text)
