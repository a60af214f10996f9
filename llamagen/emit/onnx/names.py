"""Unique names of values and nodes."""

from __future__ import annotations


class Names:
    """Makes names unique in the whole model, in the order they are asked for."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}

    def unique(self, name: str) -> str:
        count = self._used.get(name, 0)
        self._used[name] = count + 1
        return name if count == 0 else self.unique(f"{name}_{count}")
