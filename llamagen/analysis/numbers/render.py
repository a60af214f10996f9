"""A cost report as text and JSON; units only here, and every number with its workload."""

from __future__ import annotations

import json
from collections.abc import Iterator

from llamagen.analysis.numbers.cost import CostReport, DeviceReport, Phase, Roofline
from llamagen.analysis.numbers.images import ImageCost
from llamagen.spec.registry import is_sketch
from llamagen.units import bytes_text, count_text, rate_text, seconds_text


def text(report: CostReport) -> str:
    return "".join(f"{line}\n" for line in _lines(report))


def _lines(report: CostReport) -> Iterator[str]:
    load = report.workload
    size = 8 * load.cache_bytes
    yield f"{report.spec_id} at {load.context} tokens, batch {load.batch}, weights in {load.weights.name}"
    if is_sketch(report.spec_id):
        yield "a sketch: every dimension is assumed, so no number below is a fact about a model"
    yield ""
    yield f"parameters            {count_text(report.parameters.total)}"
    for row in report.parameters.components:
        used = f", {row.active:,} a token" if row.active != row.count else ""
        yield f"  {row.component.value:<19} {row.count:,}{used}"
    yield f"used by a token       {count_text(report.parameters.active)}"
    if report.parameters.active_without_embedding != report.parameters.active:
        without = count_text(report.parameters.active_without_embedding)
        yield f"  without embedding   {without}"
    yield ""
    yield f"weights               {bytes_text(report.weight_bytes)}"
    yield f"KV cache a token      {bytes_text(report.cache.per_token(load.cache_bytes))} in {size} bit"
    yield f"KV cache              {bytes_text(report.cache_bytes)} for {load.batch} x {load.context} tokens"
    kept = [layer.keep for layer in report.cache.layers if layer.keep is not None]
    if kept:
        yield (
            f"  bounded             {len(kept)} of {len(report.cache.layers)} layers keep at most "
            f"{max(kept):,} tokens"
        )
    if report.cache_bytes_needed != report.cache_bytes:
        bounded = sum(1 for layer in report.cache.layers if layer.reach is not None)
        yield (
            f"  still visible       {bytes_text(report.cache_bytes_needed)}: "
            f"{bounded} of {len(report.cache.layers)} layers are local"
        )
    yield ""
    yield from _phase("prefill", report.prefill, f"{load.batch} x {load.context} new tokens")
    yield from _phase("decode", report.decode, f"{load.batch} x 1 token after {load.context}")
    if report.images is not None:
        yield from _images(report, report.images)
    degrees = ", ".join(map(str, report.tensor_parallel))
    yield f"tensor parallel       {degrees}"
    if report.device is not None:
        yield ""
        yield from _device(report, report.device)


def _phase(name: str, phase: Phase, what: str) -> Iterator[str]:
    flops = phase.flops
    yield f"{name}: {what}"
    yield f"  FLOPs               {count_text(flops.total)}"
    yield f"    matrix products   {flops.matmul:,}"
    yield f"    attention         {flops.attention:,}"
    if phase.attention_visible != flops.attention:
        yield f"      keys in sight   {phase.attention_visible:,}"
    yield f"    head              {flops.head:,}"
    yield f"  bytes moved         {bytes_text(phase.bytes_moved)} at least"
    yield f"  intensity           {phase.intensity:,.2f} FLOP/B"
    yield f"  activations         {bytes_text(phase.activation_peak)} at most, unfused"


def _images(report: CostReport, images: ImageCost) -> Iterator[str]:
    load = report.workload
    yield f"images: {load.batch} x {images.count} of {', '.join(images.inputs)}"
    yield f"  encoder FLOPs       {count_text(images.encoder.total)}"
    yield f"    attention         {images.encoder.attention:,}"
    if images.tokens:
        yield f"  tokens              {images.tokens} of the {load.context} of each sequence"
    yield f"  kept                {bytes_text(images.kept_bytes)} while text is generated"
    yield f"  activations         {bytes_text(images.activation_peak)} at most, unfused"
    yield f"  text beside them    {count_text(images.prefill.total)} FLOPs prefill"
    yield f"                      {count_text(images.decode.total)} FLOPs decode"


def _device(report: CostReport, found: DeviceReport) -> Iterator[str]:
    device = found.device
    several = report.workload.tensor_parallel
    count = f"{several} x " if several > 1 else ""
    yield f"on {count}{device.title} [{device.source}]"
    for name, roof in (("prefill", found.prefill), ("decode", found.decode)):
        yield f"  {name:<19} {_seconds(roof)}, bound by {roof.bound}"
    if found.fits is None:
        yield "  fits                the device states no memory"
        return
    yield f"  fits                {'yes' if found.fits else 'no'}"
    seen = ""
    if report.images is not None:
        many = "images" if report.images.count > 1 else "image"
        seen = f", each sequence with {report.images.count} {many}"
    yield f"  largest batch       {found.max_batch} at {report.workload.context} tokens{seen}"
    yield f"  longest context     {found.max_context:,} tokens at batch {report.workload.batch}{seen}"


def _seconds(roof: Roofline) -> str:
    return (
        f"{rate_text(roof.tokens_per_second, 'tokens')} at most ({_duration(roof.seconds)} a pass)"
    )


def _duration(seconds: float) -> str:
    if seconds >= 60:
        return seconds_text(seconds)
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def json_text(report: CostReport) -> str:
    """Schema version 1; bytes, FLOPs and tokens as ints, times in seconds."""
    load = report.workload
    document: dict[str, object] = {
        "version": 1,
        "id": report.spec_id,
        "sketch": is_sketch(report.spec_id),
        "workload": {
            "context": load.context,
            "batch": load.batch,
            "weights": load.weights.name,
            "cache_bytes_per_value": load.cache_bytes,
            "tensor_parallel": load.tensor_parallel,
        },
        "parameters": {
            "total": report.parameters.total,
            "active": report.parameters.active,
            "active_without_embedding": report.parameters.active_without_embedding,
            "components": {
                c.component.value: {"count": c.count, "active": c.active}
                for c in report.parameters.components
            },
        },
        "weight_bytes": report.weight_bytes,
        "kv_bytes_per_token": report.cache.per_token(load.cache_bytes),
        "kv_cache": "bounded" if report.cache.bounded else "full",
        "kv_bytes": report.cache_bytes,
        "kv_bytes_visible": report.cache_bytes_needed,
        "prefill": _phase_json(report.prefill),
        "decode": _phase_json(report.decode),
        "tensor_parallel_degrees": list(report.tensor_parallel),
    }
    if report.images is not None:
        document["images"] = _images_json(report.images)
    if report.device is not None:
        document["device"] = _device_json(report.device)
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _images_json(images: ImageCost) -> dict[str, object]:
    return {
        "count": images.count,
        "inputs": list(images.inputs),
        "encoder_flops": images.encoder.total,
        "encoder_flops_attention": images.encoder.attention,
        "tokens": images.tokens,
        "kept_bytes": images.kept_bytes,
        "activation_bytes_peak": images.activation_peak,
        "prefill_flops": images.prefill.total,
        "decode_flops": images.decode.total,
    }


def _phase_json(phase: Phase) -> dict[str, object]:
    return {
        "new_tokens": phase.tokens,
        "flops": phase.flops.total,
        "flops_matmul": phase.flops.matmul,
        "flops_attention": phase.flops.attention,
        "flops_attention_visible": phase.attention_visible,
        "flops_head": phase.flops.head,
        "weight_bytes_read": phase.weight_bytes_read,
        "cache_bytes_read": phase.cache_bytes_read,
        "cache_bytes_written": phase.cache_bytes_written,
        "activation_bytes_peak": phase.activation_peak,
    }


def _device_json(found: DeviceReport) -> dict[str, object]:
    return {
        "name": found.name,
        "title": found.device.title,
        "source": found.device.source,
        "prefill": _roofline_json(found.prefill),
        "decode": _roofline_json(found.decode),
        "fits": found.fits,
        "max_batch": found.max_batch,
        "max_context": found.max_context,
    }


def _roofline_json(roof: Roofline) -> dict[str, object]:
    return {
        "seconds": roof.seconds,
        "bound": roof.bound,
        "tokens_per_second": roof.tokens_per_second,
    }
