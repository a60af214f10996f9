"""results.json of bench.peers as the Markdown of bench/README.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llamagen.units import bytes_short

Results = Mapping[str, Mapping[str, Mapping[str, object]]]

EXPORT = ("builder", "wall", "over `cp`", "peak anonymous", "written", "date")
SPEED = (
    "model and runtime",
    "decode tok/s",
    "of bandwidth",
    "prefill tok/s",
    "of FLOP/s",
    "ratio to ours: decode, prefill",
    "opens in",
    "anonymous",
    "same tokens",
)


def tables(results: Results) -> str:
    """Both tables, each bit width by itself."""
    made: list[str] = []
    machines = {str(row["machine"]) for kind in results.values() for row in kind.values()}
    made.append("Machine: " + "; ".join(sorted(machines)) + ".\n")
    if "export" in results:
        made.append(_table(EXPORT, [_export(n, r) for n, r in results["export"].items()]))
    speed = results.get("speed", {})
    for bits in sorted({str(row["bits"]) for row in speed.values()}):
        rows = [_speed(n, r) for n, r in speed.items() if r["bits"] == bits]
        made.append(f"Weights in {bits}:\n\n" + _table(SPEED, rows))
    return "\n".join(made)


def _export(name: str, row: Mapping[str, object]) -> tuple[str, ...]:
    if row["returncode"]:
        return (name, f"fails: {row['message']}", "", "", "", str(row["date"]))
    return (
        name,
        f"{_number(row, 'seconds'):.1f} s",
        f"{_number(row, 'over_cp'):.2f}",
        bytes_short(int(_number(row, "peak_anonymous"))),
        bytes_short(int(_number(row, "bytes"))),
        str(row["date"]),
    )


def _speed(name: str, row: Mapping[str, object]) -> tuple[str, ...]:
    decode, prefill = _number(row, "decode_tokens_per_s"), _number(row, "prefill_tokens_per_s")
    moved = decode * _number(row, "bytes_per_token") / _number(row, "bandwidth")
    computed = prefill * _number(row, "flops_per_token") / _number(row, "peak_flops")
    ratio = (
        f"{_number(row, 'decode_ratio'):.2f}, {_number(row, 'prefill_ratio'):.2f}"
        if "decode_ratio" in row
        else ""
    )
    same = {True: "yes", False: "no", None: ""}[row.get("same_tokens")]  # type: ignore[index]
    return (
        name,
        f"{decode:.1f}",
        f"{moved:.2f}",
        f"{prefill:.0f}",
        f"{computed:.2f}",
        ratio,
        f"{_number(row, 'load_seconds'):.2f} s",
        bytes_short(int(_number(row, "anonymous"))),
        same,
    )


def _number(row: Mapping[str, object], key: str) -> float:
    value = row[key]
    assert isinstance(value, int | float), key
    return value


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
