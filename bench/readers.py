"""Process time of the commands that read, each beside the libraries alone, in turn; run on a quiet machine.

``python -m bench.readers [--rounds N]`` prints the rows of bench/README.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Sequence

LIBRARIES = ("-c", "import pydantic, typer, rich")
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("check", "llama/3.2/1b"),
    ("check",),
    ("list",),
    ("show", "llama/4/scout"),
    ("explain", "llama/3.2/1b", "rope.theta"),
    ("explain", "LG411"),
    ("diff", "llama/2/7b", "llama/3/8b"),
    ("diff", "llama/3.1/70b", "llama/4/scout"),
    ("diff", "llama/3.1/8b", "llama/3.2/11b-vision"),
    ("compat", "llama/2/7b", "llama/3/8b"),
    ("cost", "llama/3.1/405b"),
    ("cost", "llama/4/scout", "--images", "5"),
    ("plot",),
    ("query", "num_kv_heads < num_heads", "--sort", "released", "--first", "3"),
    ("timeline", "rope_theta"),
    ("sql", "select id, params from models order by params desc limit 5"),
    ("sql", "select * from models"),
    ("sql", "select count(*) from layers"),
    ("sql", "select sum(total) from parameters"),
    ("sql", "select count(*) from changes"),
    ("sql", "select count(*) from sources where source is null"),
    ("graph", "llama/3.2/1b", "--as", "svg"),
    ("graph", "llama/4/scout", "--as", "explorer"),
)


def seconds(arguments: Sequence[str]) -> float:
    """User and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=False)
    assert done.returncode in (0, 1), arguments
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="commands that hold this text")
    given = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    chosen = [c for c in COMMANDS if given.only in " ".join(c)]
    print("| command | seconds | over the libraries |\n|---|---|---|")
    for command in chosen:
        arguments = ("-m", "llamagen", *command)
        seconds(arguments)
        pairs = [(seconds(LIBRARIES), seconds(arguments)) for _ in range(given.rounds)]
        libraries, best = (min(column) for column in zip(*pairs, strict=True))
        shown = " ".join(f'"{word}"' if " " in word else word for word in command)
        print(f"| `{shown}` | {best:.2f} | {best / libraries:.1f} |", flush=True)


if __name__ == "__main__":
    main()
