"""Export and speed against the peers; every figure also as a ratio taken in turn within one run.

    python -m bench.peers export --work DIR [--spec llama/3.2/1b] [--only NAME,NAME] [--runs 1]
    python -m bench.peers speed  --work DIR [--only NAME,NAME] [--against NAME] [--rounds 5]
    python -m bench.peers table  --work DIR

DIR holds the checkpoint, every builder's output (5 GB each for Llama-3.2-1B in float32; ``--discard`` keeps none) and
results.json, to which each run adds and from which ``table`` makes the rows of bench/README.md. Peers are installed
at pinned versions on first use (bench/environments.py). ``names`` lists builders and contenders.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.builders import BUILDERS
from bench.checkpoint import checkpoint, parameter_counts
from bench.contenders import CONTENDERS, Running, bytes_per_token, slug
from bench.measure import bandwidth, machine, peak_flops, run
from bench.tables import tables

PROMPT = (1, 17, 90, 3, 250, 41)
Row = dict[str, object]


def export(work: Path, spec: str, names: Sequence[str], runs: int, discard: bool) -> None:
    """Wall time, peak memory and size of each builder's output; `cp` of the checkpoint for the scale."""
    source = checkpoint(spec, work / "checkpoint")
    for name in names:
        builder, out = BUILDERS[name], work / slug(name)
        arguments = builder.arguments(spec, source.resolve(), out.resolve())
        measured, copies = [], []
        for _ in range(runs):
            copies.append(_copy(source, work / "copy"))
            shutil.rmtree(out, ignore_errors=True)
            measured.append(run(arguments))
        last = measured[-1]
        row: Row = {"bits": builder.bits, "returncode": last.returncode}
        if last.returncode:
            row["message"] = last.output.strip().splitlines()[-1][:300] if last.output else ""
        else:
            row |= {
                "seconds": median(m.wall_s for m in measured),
                "over_cp": median(m.wall_s / c for m, c in zip(measured, copies, strict=True)),
                "peak_anonymous": max(m.peak_anonymous for m in measured),
                "peak_resident": max(m.peak_rss for m in measured),
                "bytes": sum(f.stat().st_size for f in out.rglob("*") if f.is_file()),
            }
        shutil.rmtree(work / f"{slug(name)}-cache", ignore_errors=True)
        if discard:
            shutil.rmtree(out, ignore_errors=True)
        _record(work, "export", name, row)


def _copy(source: Path, target: Path) -> float:
    """Seconds of `cp` and `sync` of the checkpoint."""
    done = run(["sh", "-c", f"cp -r '{source}' '{target}' && sync '{target}'/*"])
    shutil.rmtree(target)
    return done.wall_s


def speed(
    work: Path,
    names: Sequence[str],
    against: str | None,
    *,
    rounds: int,
    past: int,
    steps: int,
    probe: int,
) -> None:
    """Each contender in turn with ours of equal bits, a probe of the machine before every round."""
    threads = os.cpu_count() or 1
    for name in names:
        contender = CONTENDERS[name]
        ours = against or next(
            (n for n, c in CONTENDERS.items() if c.ours and c.bits == contender.bits), None
        )
        with Running(contender, work, threads) as theirs:
            if ours is None or ours == name:
                row = _measure([theirs], rounds, past, steps, probe)
            else:
                with Running(CONTENDERS[ours], work, threads) as mine:
                    row = _measure([theirs, mine], rounds, past, steps, probe)
                row["against"] = ours
        row["bits"] = contender.bits
        row["bytes_per_token"] = bytes_per_token(contender, work)
        total, embedding = parameter_counts(work / "checkpoint")
        row["flops_per_token"] = 2 * (total - embedding)
        _record(work, "speed", name, row)


def _measure(running: Sequence[Running], rounds: int, past: int, steps: int, probe: int) -> Row:
    """Of the first, with ratios of rates to the second: above 1 the first is faster."""
    threads = os.cpu_count() or 1
    answers = [r.ask(do="tokens", prompt=PROMPT, steps=8)["tokens"] for r in running]
    prefill: list[list[float]] = []
    decode: list[list[float]] = []
    limits, peaks = [], []
    for number in range(rounds + 1):
        limits.append(bandwidth(threads, width=probe))
        peaks.append(peak_flops(threads))
        pair = [
            (r.seconds(do="prefill", tokens=past), r.seconds(do="decode", steps=steps))
            for r in running
        ]
        if number:  # the first round warms up
            prefill.append([past / p for p, _ in pair])
            decode.append([steps / d for _, d in pair])
    row: Row = {
        **running[0].opened,
        "past": past,
        "prefill_tokens_per_s": median(p[0] for p in prefill),
        "decode_tokens_per_s": median(d[0] for d in decode),
        "bandwidth": median(limits),
        "peak_flops": median(peaks),
    }
    if len(running) > 1:
        row |= {
            "prefill_ratio": median(p[0] / p[1] for p in prefill),
            "decode_ratio": median(d[0] / d[1] for d in decode),
            "same_tokens": answers[0] == answers[1],
        }
    return row


def _record(work: Path, kind: str, name: str, row: Row) -> None:
    """Add a row to results.json, in place of an older one of the name."""
    path = work / "results.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    row = {"date": datetime.date.today().isoformat(), "machine": machine(), **row}
    found.setdefault(kind, {})[name] = row
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({name: row}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["export", "speed", "table", "names"])
    parser.add_argument("--work", type=Path, default=Path("out/bench"))
    parser.add_argument("--spec", default="llama/3.2/1b")
    parser.add_argument("--only", help="names, comma-separated; all by default")
    parser.add_argument("--against", help="the contender that ratios refer to")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--past", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--probe", type=int, default=16384, help="rows of the bandwidth probe")
    parser.add_argument("--discard", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    known = BUILDERS if options.what == "export" else CONTENDERS
    names = options.only.split(",") if options.only else list(known)
    if wrong := [name for name in names if name not in known]:
        parser.error(f"unknown: {', '.join(wrong)}; known: {', '.join(known)}")
    match options.what:
        case "export":
            export(options.work, options.spec, names, options.runs, options.discard)
        case "speed":
            built = [n for n in names if CONTENDERS[n].model(options.work).exists()]
            speed(
                options.work,
                built,
                options.against,
                rounds=options.rounds,
                past=options.past,
                steps=options.steps,
                probe=options.probe,
            )
        case "table":
            print(tables(json.loads((options.work / "results.json").read_text())))
        case "names":
            print("builders:", *BUILDERS, "", "contenders:", *CONTENDERS, sep="\n")


if __name__ == "__main__":
    main()
