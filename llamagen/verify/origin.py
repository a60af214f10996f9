"""Whether the weights of a folder are those of a checkpoint, as far as rounding to its dtype or its codes lets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np

from llamagen.emit.supply import Supply
from llamagen.verify.codes import CodedPlace, Place
from llamagen.weights.nodes import whole

ELEMENTS = 1 << 18
"""Compared of each tensor: its first rows, of at most so many elements, or one."""
_STEPS = 1.01
"""Codes are the nearest ones, or the last ones where a block's largest value is clipped: one step, and its rounding."""


def foreign_weight(places: Mapping[str, Place | CodedPlace], supply: Supply) -> str | None:
    """Role path of the first weight whose leading rows are not those of ``supply``."""
    return next((path for path, place in places.items() if not _same(path, place, supply)), None)


def _same(path: str, place: Place | CodedPlace, supply: Supply) -> bool:
    shape = place.shape
    if shape:
        rows = max(1, ELEMENTS // max(1, prod(shape[1:])))
        shape = (min(shape[0], rows), *shape[1:])
    given = supply.part(path, whole(shape))
    match replace(place, shape=shape):
        case Place() as plain:
            return np.array_equal(plain.read(), given.astype(plain.dtype))
        case CodedPlace() as coded:
            away = np.abs(coded.read() - given)
            return bool((away <= _STEPS * coded.steps()).all())
