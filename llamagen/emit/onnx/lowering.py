"""The lowering table: every op of the op table as ONNX operators. Adding an op means one function and one row here."""

from __future__ import annotations

from collections.abc import Mapping

from llamagen.emit.onnx.lower_attention import ATTENTION_LOWERINGS
from llamagen.emit.onnx.lower_basic import BASIC_LOWERINGS
from llamagen.emit.onnx.lower_experts import experts
from llamagen.emit.onnx.lower_images import IMAGE_LOWERINGS
from llamagen.emit.onnx.lower_parts import PART_LOWERINGS
from llamagen.emit.onnx.site import Lowering

LOWERINGS: Mapping[str, Lowering] = {
    **BASIC_LOWERINGS,
    **ATTENTION_LOWERINGS,
    **IMAGE_LOWERINGS,
    **PART_LOWERINGS,
    "experts": experts,
}
