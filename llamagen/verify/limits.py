"""How equal is equal: how far two results are apart, how far they may be, and which limits of a model inputs crossed.

Plain tolerances are blind: an epsilon of 1e-6 in place of 1e-5 moves logits by 4e-5 standard deviations and no argmax.
Ten independent implementations of these models agree in float32 to 8.5e-7 standard deviations (rms), so the bound
leaves a factor of 1.75. The largest of N errors grows with N: see ``largest_of``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal, TypeAlias

import numpy as np

from llamagen.diagnostics import LlamagenError
from llamagen.ir.flatten import FlatGraph, flatten
from llamagen.ir.graph import Graph
from llamagen.ops.op import Role, elements
from llamagen.verify.scenarios import FAR, FloatArray, Scenario

RunDType: TypeAlias = Literal["float32", "float16", "bfloat16"]

DAMAGED = "are the weights whole? `llamagen verify DIR --integrity` compares them with the manifest"

TELLS_NOTHING = 0.2
"""An rms, in standard deviations, that wrong models are within: a wrong factor of rope moves logits by 0.21."""

BoundRule: TypeAlias = Literal["fixed", "measured"]
"""``TOLERANCES`` as they are, or widened where this model's own rounding is larger."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Bounds on a difference, both in standard deviations of the reference; none is no bound."""

    max_over_std: float | None
    rms_over_std: float
    rule: BoundRule = "fixed"

    @property
    def tells(self) -> bool:
        """Whether a wrong model would be noticed."""
        return self.rms_over_std <= TELLS_NOTHING

    def __str__(self) -> str:
        rms = f"rms {self.rms_over_std:.1e}"
        return rms if self.max_over_std is None else f"max {self.max_over_std:.1e}, {rms}"


TOLERANCES: Mapping[RunDType, Tolerance] = {
    "float32": Tolerance(None, 1.5e-6),
    # 1.25 times the 0.012 that every implementation of dense models shows in bfloat16. Never a
    # maximum: single logits differ by much more between any two of them.
    "bfloat16": Tolerance(None, 0.015),
    # float16 has three more bits of mantissa.
    "float16": Tolerance(None, 0.015 / 8),
}
"""Against a float64 evaluation of the same, already rounded, weights."""

EXACT = Tolerance(1e-9, 1e-9)
"""For the graph in exact arithmetic: both sides are float64, whose rounding moves well-behaved models by 1e-15 and
chaotic ones by a million times that. The smallest mistakes that were tried move logits by 1e-7."""

LOW_PRECISION_FACTOR = 1.6
"""By how much a backend in two bytes may be farther from exact than one rounding a result makes the reference."""


def between_float32(dtype: RunDType, bound: Tolerance) -> Tolerance:
    """``bound`` against float64, made one against a witness that itself computes in float32.

    Torch and transformers do, whatever the dtype of the folder. Two float32 evaluations have
    independent errors, which add in squares: at most sqrt(2) times a bound on each. Llama-3.2-1B at
    full size, 24 tokens, rms / std: ONNX Runtime 1.11e-6 and torch 0.96e-6 against float64, 1.41e-6
    against each other (sqrt(1.11^2 + 0.96^2) = 1.47). In lower precisions the error of a float32
    witness is nothing beside the bound.
    """
    if dtype != "float32":
        return bound
    most = bound.max_over_std
    return replace(
        bound,
        max_over_std=None if most is None else sqrt(2) * most,
        rms_over_std=sqrt(2) * bound.rms_over_std,
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """Measured over all compared logits. ``std`` is the reference's standard deviation."""

    max_abs: float
    """Of a logit beyond ``_LARGE`` standard deviations relative to its size: its float has fewer digits behind."""
    rms: float
    std: float
    count: int
    variation: float
    """Of the tokens' mean squares: their standard deviation over their mean."""

    @property
    def max_over_std(self) -> float:
        return self.max_abs / self.std

    @property
    def rms_over_std(self) -> float:
        return self.rms / self.std

    def within(self, tolerance: Tolerance) -> bool:
        """False for NaN as well."""
        most = tolerance.max_over_std
        small = most is None or self.max_over_std <= most
        return small and self.rms_over_std <= tolerance.rms_over_std


def difference(
    found: FloatArray, reference: FloatArray, what: str = "logits", std: float | None = None
) -> Difference:
    """Compare arrays [tokens, V] of one shape, in units of ``std``: none is that of ``reference``.

    Raises ValueError for another shape, LG777 for a reference that is constant or not finite.
    """
    if found.shape != reference.shape or not found.size:
        raise ValueError(f"cannot compare {found.shape} with {reference.shape}")
    std = float(reference.std()) if std is None else std
    if not 0 < std < math.inf:
        message = f"{what} of the reference are constant or not finite: nothing can be measured"
        raise LlamagenError.of("LG777", message, help=DAMAGED)
    error = np.abs(found - reference)
    squares = np.square(error).mean(axis=1)
    mean = float(squares.mean())
    return Difference(
        max_abs=float((error / np.maximum(1.0, np.abs(reference) / (_LARGE * std))).max()),
        rms=sqrt(mean),
        std=std,
        count=int(error.size),
        variation=float(squares.std()) / mean if mean else 0.0,
    )


_LARGE = 3.0
"""Standard deviations: the largest errors are those of the largest logits, 10 to 40 in a model whose head is tied."""

_ALARM = 1e-6
"""Probability that the largest of right errors is beyond its bound, were their rms at its own."""


def largest_of(bound: Tolerance, count: int, rounding: Difference | None = None) -> Tolerance:
    """``bound`` with one for the largest of ``count`` errors in float32.

    Errors of logits are sums of many roundings, and close to normal: their fourth moment is 3.0 to 3.6 of the squared
    second. Of N normal errors the largest is beyond sqrt(2 ln(N / p)) times their rms with a probability below p.
    Tokens differ in that rms, those of a model with routers by far: as much as ``rounding`` alone makes them.
    docs/verify.md has the rate of false alarms that was measured.
    """
    apart = 0.0 if rounding is None else rounding.variation
    most = bound.rms_over_std * sqrt((1 + 4 * apart) * 2 * math.log(count / _ALARM))
    return replace(bound, max_over_std=max(most, bound.max_over_std or 0.0))


def unmeasured_tolerance(dtype: RunDType, parts: int) -> Tolerance:
    """For a model that is too large to measure its rounding.

    Trained models amplify rounding more than random weights do: two float32 evaluations of SmolLM2-135M-Instruct are
    up to 5.0e-6 standard deviations apart, its float32 products of codes up to 1.1e-5. Smaller than what the epsilon of
    another model moves, 4e-5.
    """
    if dtype != "float32":
        return TOLERANCES[dtype]
    return Tolerance(None, parts * 1e-5)


WHOLE, CODED, ADAPTED = 1, 3, 6
"""By how much more float32 rounds products. Of codes they are summed block by block, with zero points or minimums
apart; the first product of an adapter is rounded by what every result gets alike."""


def measured_tolerance(dtype: RunDType, rounding: Difference, parts: int = WHOLE) -> Tolerance:
    """``TOLERANCES``, wider for a model that amplifies rounding, as random weights or massive activations do.

    ``rounding`` is what one rounding a result does to the reference itself, measured without any backend. In float32
    a sum inside an op rounds more often, by a factor that was below 8 (max and rms) in 600 runs of random decoders and
    below 5 on a trained model. Times ``parts``: with codes that one was below 12, and random decoders below 23 with 80
    adapters of any rank, scale and place. In bfloat16 and float16 sums are
    kept in float32, and backends came within 1.4 of ``rounding`` (112 runs).
    """
    plain = TOLERANCES[dtype]
    factor: float = LOW_PRECISION_FACTOR
    if dtype == "float32":
        factor = 8 * parts
    rms = max(plain.rms_over_std, factor * rounding.rms_over_std)
    most = factor * rounding.max_over_std if dtype == "float32" else None
    return Tolerance(most, rms, "measured")


def for_few_tokens(bound: Tolerance, rounding: Difference, tokens: int) -> Tolerance:
    """A bound in a low precision on the rms of many tokens, made one on that of so few.

    Tokens round differently: the mean of n of their mean squares varies by ``variation`` / sqrt(n), of which four are
    added. Of 7,392 tokens of six reduced models in bfloat16 and float16, each taken for all, one was beyond this; 79
    were beyond the bound for many.
    """
    most = 4 * rounding.variation / sqrt(tokens)
    return replace(bound, rms_over_std=bound.rms_over_std * sqrt(1 + most))


# Lengths at which a model changes what it does

LimitKind: TypeAlias = Literal[
    "sliding window", "chunk", "temperature floor", "original context of rope", "context"
]
Proof: TypeAlias = Literal["run", "exactly", "read back", "out of reach", "none"]

_LIMITS: tuple[tuple[Role, str, LimitKind], ...] = (
    (Role.MASK, "window", "sliding window"),
    (Role.MASK, "chunk", "chunk"),
    (Role.TEMPERATURE, "floor_scale", "temperature floor"),
    (Role.ROPE_TABLE, "original_max_positions", "original context of rope"),
)
"""Role, attribute, and what it limits."""

_IN_TABLES: frozenset[LimitKind] = frozenset({"original context of rope", "context"})
"""Those that tables know: where every row of them is the spec's, they are proven."""

MAX_PAST_BYTES = 1 << 30
"""Of float32 keys and values that a case may begin with, to cross a limit that only a run can prove; of a large model
as many as its weights in float32."""
_CHEAP_PAST_BYTES = 64 << 20
"""The same for a limit that tables prove as well."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A length at which a model changes what it does, and how it is known that the folder does so there."""

    kind: LimitKind
    size: int
    reached: int
    """Tokens, or positions, that cases went up to."""
    proof: Proof

    def __str__(self) -> str:
        return limit_text(self.kind, self.size, self.proof)


_PROOFS: Mapping[Proof, str] = {
    "run": "crossed by a case",
    "exactly": "crossed by the graph's nodes in float64, by no run",
    "read back": "every row of the tables is the spec's",
    "out of reach": "beyond what the folder accepts",
    "none": "NOT PROVEN: no case crosses it",
}


def limit_text(kind: LimitKind, size: int, proof: Proof) -> str:
    return f"{kind} of {size:,}: {_PROOFS[proof]}"


def limits_of(
    flat: FlatGraph,
    context: int | None,
    ran: Sequence[Scenario],
    meant: Sequence[Scenario] = (),
    *,
    read: bool,
) -> tuple[Limit, ...]:
    """Of a folder that accepts ``context`` tokens. Cases were run and compared, or evaluated exactly alone; all tables
    are the spec's where ``read``."""

    def reached(kind: LimitKind, cases: Sequence[Scenario]) -> int:
        if kind in ("sliding window", "chunk"):
            return max((case.before + case.input_ids.shape[1] for case in cases), default=0)
        calls = (call for case in cases for call in case.calls())
        return max((1 + int(call[2].max()) for call in calls), default=0)

    def crossed(kind: LimitKind, size: int, cases: Sequence[Scenario]) -> bool:
        return reached(kind, cases) > size or (kind == "context" and reached(kind, cases) == size)

    def limit(kind: LimitKind, size: int) -> Limit:
        proof: Proof = "none"
        if crossed(kind, size, ran):
            proof = "run"
        elif crossed(kind, size, meant):
            proof = "exactly"
        elif kind != "context" and context is not None and size >= context:
            proof = "out of reach"
        elif kind in _IN_TABLES and read:
            proof = "read back"
        return Limit(kind, size, reached(kind, ran), proof)

    return tuple(limit(kind, size) for kind, size in _all_sizes(flat, context))


def limit_scenarios(
    flat: FlatGraph, vocab_size: int, context: int | None, seed: int, parameters: int
) -> tuple[Scenario, ...]:
    """Five tokens across each limit that the folder accepts, behind random keys and values of all tokens before, unless
    these take more memory than is right for a model of so many ``parameters``."""
    states = {slot.past: slot.found.shape for slot in flat.slots}
    generator = np.random.default_rng(seed + 2)
    found: dict[int, Scenario] = {}
    for kind, size in _all_sizes(flat, context) if states else ():
        end = size + 3 if context is None else min(size + 3, context)
        count = min(5, end - 1)
        before = end - count
        sizes = {"B": 1, "P": before}
        taken = 4 * sum(elements(shape).evaluate(sizes) for shape in states.values())
        bound = _CHEAP_PAST_BYTES if kind in _IN_TABLES else max(MAX_PAST_BYTES, 4 * parameters)
        if taken > bound or before < 1 or (context is not None and size > context):
            continue
        ids = generator.integers(0, vocab_size, (1, count), dtype=np.int64)
        calls = (2, 1, 2) if count == 5 else (count,)
        case = Scenario(
            f"around {size:,}", ids, np.ones_like(ids), calls, before=before, states=states
        )
        found.setdefault(end, case)
    return tuple(found.values())


def _all_sizes(flat: FlatGraph, context: int | None) -> list[tuple[LimitKind, int]]:
    own: list[tuple[LimitKind, int]] = [] if context is None else [("context", context)]
    return sorted({*_sizes(flat), *own}, key=lambda one: (one[1], one[0]))


def has_learned_positions(flat: FlatGraph) -> bool:
    """Whether a table of weights has a row for each position."""
    return any(n.row.role is Role.EMBEDDING and "positions" in n.operands for n in flat.nodes)


def far(graph: Graph, tokens: int) -> int:
    """By how much positions of ``tokens`` slots can jump: so far that the bands of a scaled rope differ, and no further
    than the model's context, where a table of learned positions ends."""
    sizes = [size for kind, size in _sizes(flatten(graph)) if kind == "original context of rope"]
    jump = max(sizes, default=FAR)
    context = graph.constants.get("max_positions")
    if any(node.attrs.get("scaling") == "dynamic" for node in graph.prelude):
        return jump
    return max(min(jump, context - tokens), 0) if isinstance(context, int) else jump


def _sizes(flat: FlatGraph) -> Iterator[tuple[LimitKind, int]]:
    for node in flat.nodes:
        for role, name, kind in _LIMITS:
            size = node.attrs.get(name) if node.row.role is role else None
            if isinstance(size, int) and node.attrs.get("scaling") != "default":
                yield kind, size
