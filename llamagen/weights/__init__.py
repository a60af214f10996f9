"""Weights: reading checkpoints of any dialect, streaming tensors, publishing folders.

Modules are imported by their own names; opening a checkpoint and binding its names need no numpy,
and nothing here needs torch.
"""
