"""What an expert would say of two models in at most ten lines: facts of the layers that both have, and sizes.

Nothing is known of a model by its name: its layers are those of the stack that attends, and what they are is read from
the graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llamagen.analysis.cost import Counts, Workload
from llamagen.analysis.diff.align import ROOT, Pair, layer_text
from llamagen.analysis.diff.features import Kind
from llamagen.analysis.diff.match import Matching
from llamagen.analysis.layers import Facts, Heads, Settings, layers_of, with_images
from llamagen.analysis.numbers import Component, count_parameters, encoder_flops
from llamagen.analysis.records import attention_kind
from llamagen.analysis.tables import hyperparameter_scope
from llamagen.analysis.targets import Model
from llamagen.ir.graph import MAIN, Graph, places
from llamagen.ops.op import AttrValue, Role
from llamagen.spec.expr import unparse_static
from llamagen.units import bytes_short, count_short

MOST = 10
"""Sentences; of more the least telling are left out."""

_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?")

BESIDE = (Kind.RECORD, Kind.NAMING, Kind.TOKENIZER, Kind.RUNTIME)
"""Differences that leave the architecture the same."""

# sentences


def summary(
    before: Model, after: Model, match: Matching, pairs: Sequence[Pair], load: Workload
) -> tuple[str, ...]:
    """At most ``MOST`` sentences, the most telling first; none where the wiring of one is not published."""
    if not (before.graphs and after.graphs):
        return ()
    both = _both(before, after, match)
    numbers = list(_numbers_said(before, after, load))
    made = list(_lineage_said(before, after))
    told: list[tuple[int, str]] = [
        (rank, sentence)
        for rank, sentences in (
            (0, _layers_said(both, pairs)),
            (0, _experts_said(both)),
            (0, _attention_said(both)),
            (1, _positions_said(both)),
            (0, _scores_said(both)),
            (1, _feed_forward_said(both)),
            (0, _sizes_said(before, after)),
            (0, _images_said(before, after)),
            (1, _paths_said(both, pairs)),
            (1, made),
            (2, _details_said(both)),
            (2, _equations_said(both, pairs)),
        )
        for sentence in sentences
    ]
    if len(told) > len(made) or numbers:
        kept = sorted(range(len(told)), key=lambda i: told[i][0])[: MOST - len(numbers)]
        return (*(told[i][1] for i in sorted(kept)), *numbers)
    if any(p.kind not in BESIDE for p in pairs):
        return ()
    return ("the same architecture", *made, *_record_said(before, after, pairs))[:MOST]


def _both(before: Model, after: Model, match: Matching) -> _Both:
    stacks = [layers_of(with_images(model.graphs)) for model in (before, after)]
    (a_stack, a), (b_stack, b) = stacks
    blocks = match.blocks.get(MAIN, {})
    places = {f"{a_stack}.{i}": i for i in range(len(a))}
    pairs = [(places[x], j) for j in range(len(b)) if (x := blocks.get(f"{b_stack}.{j}")) in places]
    return _Both((a_stack, b_stack), a, b, pairs)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Both:
    """Layers of both models, and which are the same."""

    stacks: tuple[str, str]
    """Role paths of the stacks that they stand in."""
    a: Sequence[Facts]
    b: Sequence[Facts]
    pairs: Sequence[tuple[int, int]]

    def changes(self, fact: Callable[[Facts], T]) -> Iterator[tuple[T, T, str]]:
        """What layers are in A, what they are in B, and which they are: nothing where all are.

        New layers are told with those that became what they are, if there is one such change.
        """
        groups: list[tuple[T, T, list[int]]] = []
        for i, j in self.pairs:
            x, y = fact(self.a[i]), fact(self.b[j])
            same = next((g for g in groups if g[:2] == (x, y)), None)
            if same is None:
                groups.append((x, y, [j]))
            else:
                same[2].append(j)
        for j in {*range(len(self.b))} - {j for _, j in self.pairs}:
            like = [layers for _, y, layers in groups if y is not None and y == fact(self.b[j])]
            if len(like) == 1:
                like[0].append(j)
        own = {j for j, f in enumerate(self.b) if not f.cross}
        for x, y, layers in groups:
            if x == y:
                continue
            every = {j for _, j in self.pairs} | (own if y is not None else set())
            many = f"{len(layers)} layers" if len(layers) > 1 else "layer"
            yield x, y, "" if every <= {*layers} else f" in {many} {_at(layers)}"


def _at(layers: Sequence[int]) -> str:
    text = layer_text([(i,) for i in layers])
    return f"({text})" if len(layers) > 1 else text


def _layers_said(both: _Both, pairs: Sequence[Pair]) -> Iterator[str]:
    kept = [i for i, _ in both.pairs], [j for _, j in both.pairs]
    gone = [i for i in range(len(both.a)) if i not in kept[0]]
    new = [j for j in range(len(both.b)) if j not in kept[1]]
    homes = [stack.rpartition(".")[0] for stack in both.stacks]
    place = f", as `{homes[1]}`" if homes[0] != homes[1] else ""
    same = all(both.a[i] == both.b[j] for i, j in both.pairs) and not any(
        _changes_layers(both, pair) for pair in pairs
    )
    one_way = same and not (gone and new)
    if one_way and (gone or new or place):
        yield f"the same {len(kept[0])} layers{place}"
    elif len(both.a) == len(both.b) and place:
        yield f"{len(both.b)} layers{place}"
    elif len(both.a) != len(both.b):
        yield f"{len(both.a)} layers → {len(both.b)}{place}"
    for layers, facts, how in ((new, both.b, "new "), (gone, both.a, "")):
        for cross in (True, False):
            some = [i for i in layers if facts[i].cross is cross]
            if some and (one_way or (cross and kept[0])):
                named = f"{how}{'cross-attention ' * cross}layer{'s' * (len(some) > 1)}"
                verb = "" if how else " are gone" if len(some) > 1 else " is gone"
                yield f"{len(some)} {named}{verb} {_at(some)}"


def _changes_layers(both: _Both, pair: Pair) -> bool:
    """Whether it is a difference within layers that both models have."""
    above = f"{both.stacks[0]}.*"
    path = pair.path.rpartition("/")[2]
    if pair.kind is Kind.BLOCK:
        return path.startswith((f"{above}.", f"{both.stacks[1]}.*."))
    kinds = (Kind.PARAMETER, Kind.SETTING) if pair.before and pair.after else ()
    return pair.kind in (*kinds, Kind.EQUATION) and f"{path}.".startswith(f"{above}.")


def _experts_said(both: _Both) -> Iterator[str]:
    for (x, alone), (y, shared), where in both.changes(lambda f: (f.experts, f.width)):
        beside = f" beside a shared one of {shared:,}" if shared else ""
        if x == y:
            if x is not None:
                yield f"experts{beside or ' without a shared one'}{where}"
        elif y is None:
            yield f"no experts, a dense feed-forward of {shared or 0:,}{where}"
        elif x is None:
            yield (
                f"mixture of experts{where}: {y.count} experts of {y.width:,}, a token uses "
                f"{y.used}{beside}"
            )
        else:
            ends = [f"{e.count} experts of {e.width:,}, {e.used} a token" for e in (x, y)]
            only = x.width == y.width and x.used == y.used
            many = f"{x.count} → {y.count} experts" if only else " → ".join(ends)
            one = "" if shared == alone else beside or ", no shared one any more"
            yield f"{many}{one}{where}"


def _attention_said(both: _Both) -> Iterator[str]:
    for x, y, where in both.changes(lambda f: f.heads):
        if x is None or y is None:
            yield f"{'no ' * (y is None)}attention{where}"
            continue
        if x.latent != y.latent:
            yield _latent_said(x, y, where)
            continue
        kinds = _kinds(x, y)
        named = f" ({kinds[0]} → {kinds[1]})" if kinds[0] != kinds[1] else ""
        if x.query != y.query:
            ends = [f"{h.query} heads ({h.key_value} for keys and values)" for h in (x, y)]
            yield f"{' → '.join(ends)}{named}{where}"
        elif x.key_value != y.key_value:
            yield f"{x.key_value} → {y.key_value} heads for keys and values{named}{where}"
        if x.dim != y.dim:
            yield f"head_dim {x.dim} → {y.dim}{where}"
    for a, b, where in both.changes(lambda f: f.chunk):
        yield _limit_said("chunks", a, b, where)
    for a, b, where in both.changes(lambda f: f.window):
        yield _limit_said("a window", a, b, where)
    for first, second, where in both.changes(lambda f: f.qk_norm):
        if second is None:
            yield f"queries and keys are no longer normalised{where}"
        else:
            yield f"queries and keys are normalised ({second}{f' for {first}' * bool(first)}){where}"


def _kinds(*both: Heads) -> list[str]:
    return [attention_kind(h.query, h.key_value, latent=h.latent is not None) for h in both]


def _latent_said(x: Heads, y: Heads, where: str) -> str:
    def named(h: Heads) -> str:
        if h.latent is None:
            return f"{h.query} heads ({h.key_value} for keys and values)"
        rotated = h.dim - h.latent
        return f"{h.query} heads over one vector of {h.latent} and a rotated key of {rotated}"

    kinds = _kinds(x, y)
    change = f" ({' → '.join(kinds)})" if kinds[0] != kinds[1] else ""
    lead = "latent attention: " if x.latent is None else ""
    return f"{lead}{named(x)} → {named(y)}{change}{where}"


def _limit_said(what: str, a: int | None, b: int | None, where: str) -> str:
    if b is None:
        return f"attention no longer within {what} of {a:,}{where}"
    return f"attention within {what} of {b:,}{f' instead of {a:,}' if a is not None else ''}{where}"


def _positions_said(both: _Both) -> Iterator[str]:
    def known(f: Facts) -> tuple[Settings | None, Settings | None, str | None] | None:
        return (f.rope, f.temperature, f.positions) if f.heads is not None else None

    for first, second, where in both.changes(known):
        if first is None or second is None:
            continue  # no attention
        (x, warm, how), (y, warm2, how2) = first, second
        turned = x is None and y is not None
        if warm != warm2 and not (turned and warm2 is None):
            yield _temperature_said(y is None and x is not None, warm2, where)
        elif y is None and x is not None:
            yield f"no rotary positions{f', but {how2}' if how2 else ' (NoPE)'}{where}"
        elif how != how2 and y is None:
            yield f"positions: {how or 'none'} → {how2 or 'none'}{where}"
        if x == y or y is None:
            continue
        if x is None:
            cold = " and no temperature of queries any more" * (warm is not None and warm2 is None)
            yield f"rotary positions{f' instead of {how}' * bool(how)}{where}{cold}: {_rope_said(y)}"
        else:
            yield f"RoPE {_rope_change(x, y)}{where}"


def _temperature_said(unrotated: bool, warm: Settings | None, where: str) -> str:
    first = "no rotary positions (NoPE) and " if unrotated else ""
    if warm is None:
        return f"{first}no temperature of queries any more{where}"
    text = f"scale {warm['scale']}, floor {_plain(warm['floor_scale'])}"
    return f"{first}queries that grow with the log of their position{where} (temperature: {text})"


def _scores_said(both: _Both) -> Iterator[str]:
    for settings, settings2, where in both.changes(lambda f: f.attention):
        names = {**settings, **settings2} if settings and settings2 else {}
        texts: list[str] = []
        for name in [n for n in names if n != "alibi"]:
            ends = [one.get(name) for one in (settings, settings2)]
            if ends[0] != ends[1]:
                usual = "1/√head_dim" if name == "scale" else "none"
                shown = [_plain(end) if end is not None else usual for end in ends]
                texts.append(f"{name} {' → '.join(shown)}")
        if texts:
            yield f"attention's {', '.join(texts)}{where}"


def _details_said(both: _Both) -> Iterator[str]:
    for first, second, where in both.changes(lambda f: f.layout):
        if first is not None and second is not None:
            yield f"rotary pairs are {second}, no longer {first}{where}: q and k rows are permuted"
    for eps, eps2, where in both.changes(lambda f: f.eps):
        yield f"norm eps {eps} → {eps2}{where}"


def _rope_change(a: Settings, b: Settings) -> str:
    if a["scaling"] == b["scaling"]:
        names = [name for name in b if a.get(name) != b[name]]
        return ", ".join(f"{n} {_plain(a.get(n))} → {_plain(b[n])}" for n in names)
    same = a["theta"] == b["theta"]
    ends = [_rope_said({n: v for n, v in r.items() if n != "theta" or not same}) for r in (a, b)]
    return " → ".join(ends)


def _rope_said(rope: Settings) -> str:
    shown = {n: v for n, v in rope.items() if n != "scaling" and (n, v) != ("partial", 1)}
    rest = [f"{n} {_plain(v)}" for n, v in shown.items() if v is not None]
    scaling = "unscaled" if rope["scaling"] == "default" else str(rope["scaling"])
    return f"{scaling} ({', '.join(rest)})" if rest else scaling


def _plain(value: AttrValue) -> str:
    """``500,000``: whole numbers without a fraction, others with six digits."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
        return f"{int(value):,}"
    return f"{value:.6g}" if isinstance(value, float) else unparse_static(value)


def _feed_forward_said(both: _Both) -> Iterator[str]:
    for (a, moe), (b, moe2), where in both.changes(lambda f: (f.width, f.experts is not None)):
        if a is not None and b is not None and moe == moe2:
            what = "shared expert" if moe else "feed-forward"
            yield f"{what} {a:,} → {b:,} wide{where}"
        elif moe == moe2 and not moe:
            yield f"{'a' if b else 'no'} dense feed-forward{where}"
    for act, act2, where in both.changes(lambda f: f.activation):
        if act is not None and act2 is not None:
            yield f"activation {act} → {act2}{where}"
    for (norms, at), (norms2, at2), where in both.changes(lambda f: (f.norms, f.normed)):
        if norms == norms2:
            yield f"norms {at2} attention and feed-forward, no longer {at} them{where}"
            continue
        many = "norm" + "s" * (norms[0] != 1)
        ends = [
            f"({op}{f', {place} attention and feed-forward' if at != at2 and place else ''})"
            for (_, op), place in ((norms, at), (norms2, at2))
        ]
        yield f"{norms[0]} {many} a layer {ends[0]} → {norms2[0]} {ends[1]}{where}"
    for bias, bias2, where in both.changes(lambda f: f.biases):
        yield f"biases: {bias or 'none'} → {bias2 or 'none'}{where}"


def _sizes_said(before: Model, after: Model) -> Iterator[str]:
    a, b = (hyperparameter_scope(model.resolved) for model in (before, after))
    rows = [_rows(model.graphs[MAIN]) for model in (before, after)]
    tokenizers = [model.resolved.spec.tokenizer for model in (before, after)]
    kinds = [str(one.kind) if one is not None else "unknown" for one in tokenizers]
    known = kinds[0] != kinds[1] and "unknown" not in kinds
    other = f", another tokenizer ({kinds[0]} → {kinds[1]})" if known else ""
    sizes: list[str] = []
    if a["hidden_size"] != b["hidden_size"]:
        sizes.append(f"hidden size {a['hidden_size']:,} → {b['hidden_size']:,}")
    if a["vocab_size"] != b["vocab_size"]:
        sizes.append(f"vocabulary {a['vocab_size']:,} → {b['vocab_size']:,}{other}")
    elif rows[0] != rows[1]:
        how = "more" if rows[1] > rows[0] else "fewer"
        sizes.append(f"{abs(rows[1] - rows[0]):,} {how} embedding rows ({rows[1]:,})")
    if a["max_positions"] != b["max_positions"]:
        sizes.append(f"context {a['max_positions']:,} → {b['max_positions']:,}")
    if sizes:
        yield "; ".join(sizes)
    tied = [bool(model.graphs[MAIN].ties) for model in (before, after)]
    if tied[0] != tied[1]:
        yield f"the head is {'' if tied[1] else 'no longer '}tied to the embedding"


def _rows(graph: Graph) -> int:
    """Of the embedding."""
    tables = (p for _, _, p in graph.op_parts if p.row.role is Role.EMBEDDING)
    return max((p.parameters[0].shape[0] for p in tables if p.parameters), default=0)


def _images_said(before: Model, after: Model) -> Iterator[str]:
    a, b = (_vision(model) for model in (before, after))
    sees = [encoder_flops(model.graphs) is not None for model in (before, after)]
    if sees == [False, True]:
        weights = count_parameters(after.graphs).of(Component.VISION)
        yield f"images: a vision tower of {count_short(weights)} parameters"
    elif sees == [True, False]:
        yield "no images any more"
    elif all(sees):
        among = [
            any(any(places(g, Role.PLACEHOLDERS)) for g in m.graphs.values())
            for m in (before, after)
        ]
        if among[0] != among[1]:
            how = ["by cross-attention", "among the text (early fusion)"]
            yield f"images {how[among[1]]}, no longer {how[among[0]]}"
        elif a != b:
            yield f"images: {', '.join(f'{n} {_plain(a[n])} → {_plain(b[n])}' for n in b if a.get(n) != b[n])}"


def _vision(model: Model) -> Settings:
    vision = model.resolved.spec.hyperparameters.vision
    return vision.model_dump() if vision is not None else {}


def _paths_said(both: _Both, pairs: Sequence[Pair]) -> Iterator[str]:
    """Renames of what stands in the layers, or outside of them; that of the whole is said with the layers."""
    weights = [p for p in pairs if p.kind is Kind.PARAMETER]
    changed = [[p.path for p in weights if p.before], [p.path for p in weights if not p.before]]
    for pair in pairs:
        if pair.kind is not Kind.MOVED or pair.path in ("", f"{both.stacks[0]}.*"):
            continue
        if pair.after is not None and pair.after.text == ROOT:
            continue
        where = f" in {pair.times} layers" if pair.times > 1 else ""
        where = where or (f" in layer {pair.layers}" if pair.layers else "")
        ends = [end.text for end in (pair.before, pair.after) if end is not None]
        same = not any(
            f"{path}.".startswith(f"{end.partition(' ')[0]}.")
            for end, paths in zip(ends, changed, strict=True)
            for path in paths
        )
        yield f"`{ends[0]}` is now `{ends[1]}`{where}{', the same weights' * same}"


def _equations_said(both: _Both, pairs: Sequence[Pair]) -> Iterator[str]:
    """Those that the facts of the layers, and another block around them, do not explain already."""
    alike = all(both.a[i].kind() == both.b[j].kind() for i, j in both.pairs)
    inside = both.stacks[0] == both.stacks[1]
    for pair in pairs:
        if not (alike if "*" in pair.path or "/" in pair.path else alike or inside):
            continue
        where = f" in {pair.times} layers" if pair.times > 1 and pair.layers else ""
        if pair.kind is Kind.EQUATION:
            ends = [end.text if end is not None else "nothing" for end in (pair.before, pair.after)]
            same = " (the same)" * pair.regrouped + " (the same up to rounding)" * pair.reordered
            numbers = [_NUMBER.findall(end) for end in ends]
            changed = [(x, y) for x, y in zip(*numbers, strict=False) if x != y]
            if _NUMBER.sub("0", ends[0]) == _NUMBER.sub("0", ends[1]) and len(changed) == 1:
                values = " → ".join(_plain(float(n)) for n in changed[0])
                yield f"{pair.path or ROOT}{where}: {values} in `{ends[1]}`"
            else:
                yield f"{pair.path or ROOT}{where}: `{ends[0]}` → `{ends[1]}`{same}"
        elif pair.kind is Kind.BLOCK and _changes_layers(both, pair):
            end, how = (pair.before, "gone") if pair.before is not None else (pair.after, "new")
            named = f" ({end.text})" if end is not None else ""
            yield f"block `{pair.path}`{named} is {how}{where}"


def _lineage_said(before: Model, after: Model) -> Iterator[str]:
    lineage = after.resolved.spec.lineage
    if lineage is not None and before.resolved.spec.id in lineage.derived_from:
        yield f"made from it{f': {lineage.how}' if lineage.how else ''}"
    elif lineage is not None and _quantised(after) and not _quantised(before):
        yield f"in fewer bits: {lineage.how}"


def _quantised(model: Model) -> bool:
    release = model.resolved.spec.release
    return release is not None and bool(release.quantised)


def _record_said(before: Model, after: Model, pairs: Sequence[Pair]) -> Iterator[str]:
    a, b = (model.resolved.spec.release for model in (before, after))
    if a is not None and b is not None and a.date != b.date:
        yield f"released {a.date} → {b.date}"
    if a is not None and b is not None and a.licence != b.licence:
        yield f"licence: {a.licence} → {b.licence}"
    promised = [
        m.resolved.spec.training and m.resolved.spec.training.advertised_context
        for m in (before, after)
    ]
    positions = [m.resolved.spec.hyperparameters.max_positions for m in (before, after)]
    if all(promised) and promised[0] != promised[1] and positions[0] == positions[1]:
        yield f"promised context {promised[0]:,} → {promised[1]:,}"
    for pair in pairs:
        if pair.kind is Kind.TOKENIZER:
            ends = [end.text if end is not None else "none" for end in (pair.before, pair.after)]
            yield f"{pair.path}: {' → '.join(ends)}"


def _numbers_said(before: Model, after: Model, load: Workload) -> Iterator[str]:
    """Parameters and cache in one sentence, where they differ."""
    a, b = (Counts(model.graphs, load) for model in (before, after))
    texts: list[str] = []
    if a.parameters.total != b.parameters.total:
        ends = [_parameters_said(one) for one in (a, b)]
        more = b.parameters.total - a.parameters.total
        if ends[0] == ends[1]:
            texts.append(f"{ends[1]} parameters, {abs(more):,} {'more' if more > 0 else 'fewer'}")
        else:
            texts.append(f"{ends[0]} → {ends[1]} parameters")
    cache = [one.cache.per_token(load.cache_bytes) for one in (a, b)]
    if cache[0] != cache[1]:
        texts.append(f"cache {bytes_short(cache[0])} → {bytes_short(cache[1])} a token")
    if texts:
        yield "; ".join(texts)


def _parameters_said(counted: Counts) -> str:
    total, active = counted.parameters.total, counted.parameters.active
    return count_short(total) + (f" ({count_short(active)} active)" if active != total else "")
