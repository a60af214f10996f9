"""Names of the same three dtypes: in ONNX and specs, and in safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamagen.emit.onnx.profile import OnnxDType
    from llamagen.weights.safetensors import TargetDType

STORED: Mapping[OnnxDType, TargetDType] = MappingProxyType(
    {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
)
