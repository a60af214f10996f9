"""Devices with published peaks (spec/hardware.yaml): what a roofline is drawn against."""

from __future__ import annotations

from llamagen.analysis.tables import chosen, load_table
from llamagen.spec.schema import Closed


class Device(Closed):
    """One device. Peaks are dense (no sparsity) and per second; memory is as sold, decimal bytes."""

    title: str
    memory_bytes: int | None = None
    """none: a host whose memory is the user's own."""
    bandwidth: float
    """Bytes per second."""
    flops: dict[str, float]
    """FLOP per second by the dtype of the operands."""
    source: str

    def peak(self, dtype: str) -> float:
        """FLOP/s for operands of ``dtype``; storage-only formats compute in 16 bit, else in float32."""
        for name in (dtype, "bfloat16", "float16", "float32"):
            if name in self.flops:
                return self.flops[name]
        raise ValueError(f"{self.title} states no peak")


class Devices(Closed):
    version: int
    devices: dict[str, Device]


def devices() -> dict[str, Device]:
    return load_table("hardware.yaml", Devices).devices


def device(name: str) -> Device:
    """The device ``name``. Raises LG901 with the nearest known name."""
    return chosen(devices(), name, "a device of hardware.yaml")
