"""CUDA's libraries without a device, as far as ONNX Runtime's published provider asks for them.

The provider registers its kernels, partitions a graph, constructs kernels and checks their inputs as it does on a GPU.
No kernel computes: numbers, and what depends on them, are not proven so.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
READERS = (
    "onnxruntime/capi/libonnxruntime_providers_cuda.so",
    "onnxruntime_genai/libonnxruntime-genai-cuda.so",
)


def site_of(python: Path) -> Path:
    """The packages of an environment's interpreter."""
    (site,) = (python.parents[1] / "lib").glob("python3*/site-packages")
    return site


def build(site: Path, folder: Path) -> Path:
    """Libraries in ``folder`` for what reads them among the packages of ``site``, which has the headers too.

    Raises FileNotFoundError without a compiler, CalledProcessError with its messages.
    """
    if missing := [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]:
        raise FileNotFoundError(f"{missing[0]} is not installed")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    headers = next(site.glob("nvidia/**/driver_types.h")).parent
    source = SOURCE.read_text()
    for library, names in wanted([site / one for one in READERS]).items():
        code, versions = folder / f"{library}.c", folder / f"{library}.map"
        others = [name for name in names if not re.search(rf"\b{name}\(", source)]
        rest = "".join(f"int {name}() {{ return 0; }}\n" for name in others)
        code.write_text(f'#include "{SOURCE}"\n{rest}')
        public = f"global: {' '.join(f'{name};' for name in names)}" if names else ""
        versions.write_text(f"{library} {{ {public} local: *; }};\n")
        options = ("-w", "-shared", "-fPIC", f"-I{headers}", f"-Wl,-soname,{library}")
        run(
            "gcc",
            *options,
            f"-Wl,--version-script={versions}",
            "-o",
            str(folder / library),
            str(code),
        )
    return folder


def build_beside(folder: Path) -> None:
    """What the provider for TensorRT asks for before a build of onnxruntime lists the kernels of all its providers."""
    code = folder / "tensorrt.c"
    code.write_text("".join(f"void *{name}() {{ return 0; }}\n" for name in _TENSORRT))
    for library in ("libnvinfer.so.10", "libnvonnxparser.so.10", "libcudnn.so.9"):
        run(
            "gcc", "-w", "-shared", f"-Wl,-soname,{library}", "-o", str(folder / library), str(code)
        )


_TENSORRT = (
    *(f"createInfer{what}_INTERNAL" for what in ("Builder", "Refitter", "Runtime")),
    *(f"createNvOnnxParser{what}_INTERNAL" for what in ("", "Refitter")),
    *("getInferLibVersion", "getPluginRegistry", "cudnnCreate", "cudnnDestroy", "cudnnSetStream"),
)


def wanted(readers: Sequence[Path]) -> dict[str, list[str]]:
    """Functions that ``readers`` do not bring, by the library that has to."""
    found: dict[str, set[str]] = {}
    for reader in readers:
        libraries = re.findall(r"NEEDED +(libcu\S+)", run("objdump", "-p", str(reader)))
        found |= {library: found.get(library, set()) for library in libraries}
        for line in run("nm", "-D", "--undefined-only", str(reader)).splitlines():
            name, _, version = line.split()[-1].partition("@")
            if version in libraries:
                found[version].add(name)
            elif re.match(r"cu[A-Z]", name):  # of the driver, whose functions have no version
                found["libcuda.so.1"].add(name)
    return {library: sorted(names) for library, names in found.items()}


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
