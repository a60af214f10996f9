"""Symbolic dimensions: polynomials with integer coefficients over named sizes.

``B`` batch, ``S`` new tokens, ``P`` past tokens, ``T = P + S``, ``I`` images (Llama 4: tiles of images); ``P8191`` is
the past of a cache slot that keeps at most the last 8191 tokens. Every other size of a released model is an int.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import TypeAlias

Monomial: TypeAlias = tuple[str, ...]
DimLike: TypeAlias = "Dim | int | str"


@dataclass(frozen=True, slots=True)
class Dim:
    """A size. ``terms`` maps a sorted product of names to its coefficient; zero coefficients do not occur."""

    terms: tuple[tuple[Monomial, int], ...]

    @staticmethod
    def of(value: DimLike) -> Dim:
        """From an int, a text such as ``"P + S"`` or ``"4*N*S"``, or a Dim."""
        if isinstance(value, Dim):
            return value
        if isinstance(value, int):
            return Dim((((), value),) if value else ())
        return _parse(value)

    @property
    def is_static(self) -> bool:
        return all(not names for names, _ in self.terms)

    @property
    def value(self) -> int:
        """The int of a static dim. Raises ValueError when it depends on a name."""
        if not self.is_static:
            raise ValueError(f"{self} is not a fixed size")
        return sum(c for _, c in self.terms)

    @property
    def symbols(self) -> frozenset[str]:
        """What the size depends on; a bounded past depends on ``P``."""
        names = (n for factors, _ in self.terms for n in factors)
        return frozenset("P" if kept_of(n) is not None else n for n in names)

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        """The int at given sizes, e.g. ``{"B": 2, "S": 5, "P": 0}``. Raises KeyError for a missing name.

        A bounded past that is not given is as long as it may be: ``P8191`` is min(P, 8191).
        """
        return sum(c * reduce(mul, (_size(n, sizes) for n in names), 1) for names, c in self.terms)

    def __add__(self, other: DimLike) -> Dim:
        return _collect([*self.terms, *Dim.of(other).terms])

    def __sub__(self, other: DimLike) -> Dim:
        return self + Dim.of(other) * -1

    def __mul__(self, other: DimLike) -> Dim:
        right = Dim.of(other).terms
        return _collect([(tuple(sorted(a + b)), c * d) for a, c in self.terms for b, d in right])

    __radd__ = __add__
    __rmul__ = __mul__

    def divided_by(self, divisor: int) -> Dim | None:
        """The exact quotient, or None when a coefficient is not divisible."""
        if divisor <= 0 or any(c % divisor for _, c in self.terms):
            return None
        return Dim(tuple((names, c // divisor) for names, c in self.terms))

    def __str__(self) -> str:
        return " + ".join(_term(names, c) for names, c in self.terms) or "0"

    __repr__ = __str__


def _size(name: str, sizes: Mapping[str, int]) -> int:
    keep = kept_of(name) if name not in sizes else None
    return sizes[name] if keep is None else min(sizes["P"], keep)


def _term(names: Monomial, coefficient: int) -> str:
    if not names:
        return str(coefficient)
    return "*".join(names if coefficient == 1 else (str(coefficient), *names))


def _collect(terms: list[tuple[Monomial, int]]) -> Dim:
    total: dict[Monomial, int] = {}
    for names, c in terms:
        total[names] = total.get(names, 0) + c
    # Names before constants, so that `P + S` and `S + 1` read naturally.
    order = sorted(total, key=lambda names: (not names, -len(names), names))
    return Dim(tuple((names, total[names]) for names in order if total[names]))


def _parse(text: str) -> Dim:
    terms: list[tuple[Monomial, int]] = []
    for term in text.split("+"):
        factors = [f.strip() for f in term.split("*")]
        if not all(f.isidentifier() or f.removeprefix("-").isdigit() for f in factors):
            raise ValueError(f"{text!r} is not a size")
        names = tuple(sorted(f for f in factors if f.isidentifier()))
        terms.append((names, reduce(mul, (int(f) for f in factors if not f.isidentifier()), 1)))
    return _collect(terms)


B = Dim.of("B")
S = Dim.of("S")
P = Dim.of("P")
T = P + S
IMAGES = Dim.of("I")

RUN_TIME: Mapping[str, Dim] = {"B": B, "S": S, "T": T, "I": IMAGES}
"""Names of sizes that are known at run time only, in equations."""


def past_of(keep: int | None) -> Dim:
    """Past tokens of a cache slot that keeps the last ``keep``; none keeps all."""
    return P if keep is None else Dim.of(f"P{keep}")


def kept_of(name: str) -> int | None:
    """8191 for ``P8191``; none for every other name."""
    return int(name[1:]) if name.startswith("P") and name[1:].isdecimal() else None
