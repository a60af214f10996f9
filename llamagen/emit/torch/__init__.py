"""PyTorch backend: a verified graph in, one standalone file out."""

from llamagen.emit.torch.emit import emit_torch
from llamagen.emit.torch.load import load_module

__all__ = ["emit_torch", "load_module"]
