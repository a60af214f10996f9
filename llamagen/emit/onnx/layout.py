"""Where the graphs of a folder lie: side by side, or under the names that repositories on the Hub have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from llamagen.diagnostics import Diagnostic, LlamagenError
from llamagen.emit.onnx.emit import OnnxModel
from llamagen.emit.options import ExportOptions


@dataclass(frozen=True, slots=True)
class Layout:
    """A folder in the folder, with what ends the names of graphs, and what transformers.js calls that."""

    dtype: str = "fp32"
    suffix: str = ""
    folder: str = ""

    def stem(self, graph: str) -> str:
        return f"{graph}{self.suffix}"

    def path(self, name: str) -> str:
        """Of what lies beside the graphs."""
        return f"{self.folder}/{name}" if self.folder else name

    def file(self, graph: str) -> str:
        return self.path(f"{self.stem(graph)}.onnx")


FLAT = Layout()

HUB_FOLDER = "onnx"
HUB: Mapping[tuple[str, str], Layout] = {
    ("float32", "none"): Layout("fp32", "", HUB_FOLDER),
    ("float16", "none"): Layout("fp16", "_fp16", HUB_FOLDER),
    ("float32", "int4"): Layout("q4", "_q4", HUB_FOLDER),
    ("float16", "int4"): Layout("q4f16", "_q4f16", HUB_FOLDER),
    ("float32", "int8"): Layout("int8", "_int8", HUB_FOLDER),
    ("float32", "w8a8"): Layout("q8", "_quantized", HUB_FOLDER),
}
"""By the dtype of the computation and the scheme of the projections (transformers.js 4.3.1, src/utils/dtypes.js)."""


def layout_of(options: ExportOptions, model: OnnxModel) -> Layout:
    """Raises LG725 with every reason why the Hub's names are not those of such a folder."""
    if options.layout == "flat":
        return FLAT
    of_kind = model.dtype, _scheme(model)
    problems = (
        (
            options.mode != "copy",
            "whose weights are the checkpoint's own files",
            "--weights copy",
        ),
        (options.web, "that has a page", "leave --web out: the page reads the names of this house"),
        (
            options.stages is not None,
            "that is cut into stages",
            "leave --stages out: transformers.js reads one graph",
        ),
        (
            of_kind not in HUB,
            f"in {of_kind[0]}"
            + (f" with {of_kind[1]} projections" if of_kind[1] != "none" else ""),
            "there are names for " + ", ".join(f"{d} {s}".removesuffix(" none") for d, s in HUB),
        ),
    )
    found = [
        Diagnostic("LG725", "error", f"the Hub has no names for a folder {what}", help=help)
        for is_so, what, help in problems
        if is_so
    ]
    if found:
        raise LlamagenError(found)
    return HUB[of_kind]


def _scheme(model: OnnxModel) -> str:
    """Of the projections; where they are packed as a checkpoint has them, by the bits of the most weights."""
    if not model.quantization.kept:
        return model.quantization.linear
    bits: Counter[int] = Counter()
    for entry in model.initializers:
        if entry.part is not None and entry.part.role == "codes":
            bits[entry.part.encoding.bits] += sum(prod(source.shape) for source in entry.sources)
    return f"int{bits.most_common(1)[0][0]}"
