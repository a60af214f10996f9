"""PyTorch backend: a verified graph in, one standalone file out."""

from llamagen.emit.torch.check import load_module
from llamagen.emit.torch.module import emit_torch

__all__ = ["emit_torch", "load_module"]
