"""Export by reference of models that fit in no memory here: a full-size checkpoint whose files are sparse.

    python -m bench.huge --work DIR [--spec llama/3.1/405b --spec llama/4/maverick]

The checkpoint has every header, name, shape and shard of a real one; its data are holes, which no export by reference
reads. DIR holds some megabytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from bench.measure import machine, run


def sparse_checkpoint(spec: str, folder: Path, shard_bytes: int = 5_000_000_000) -> int:
    """Write the headers of a bfloat16 checkpoint and holes for its data; the bytes it seems to have."""
    import llamagen
    from llamagen.weights.safetensors import NewTensor, header_bytes

    folder.mkdir(parents=True)
    parameters = llamagen.load(spec).parameters
    groups: list[list[NewTensor]] = [[]]
    for path, parameter in parameters.items():
        tensor = NewTensor(path, "BF16", parameter.shape)
        if groups[-1] and sum(t.nbytes for t in groups[-1]) + tensor.nbytes > shard_bytes:
            groups.append([])
        groups[-1].append(tensor)
    total = 0
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        weight_map |= {tensor.name: name for tensor in group}
        with (folder / name).open("xb") as file:
            header = header_bytes(group)
            size = len(header) + sum(tensor.nbytes for tensor in group)
            file.write(header)
            file.truncate(size)
            total += size
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--spec", action="append")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for spec in options.spec or ["llama/3.1/405b", "llama/4/maverick"]:
        source, out = options.work / "checkpoint", options.work / "folder"
        for folder in (source, out):
            shutil.rmtree(folder, ignore_errors=True)
        size = sparse_checkpoint(spec, source)
        command = ["export", spec, "--checkpoint", str(source), "--weights", "reference"]
        done = run([sys.executable, "-m", "llamagen", *command, "--out", str(out)])
        if done.returncode:
            raise SystemExit(done.output)
        rows.append(
            {
                "spec": spec,
                "checkpoint_bytes": size,
                "files": len(list(source.glob("*.safetensors"))),
                "export_s": round(done.wall_s, 2),
                "peak_anonymous_bytes": done.peak_anonymous,
                "peak_rss_bytes": done.peak_rss,
            }
        )
        for folder in (source, out):
            shutil.rmtree(folder)
    print(json.dumps({"machine": machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
