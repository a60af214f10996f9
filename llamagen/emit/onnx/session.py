"""Opening an ONNX model in ONNX Runtime, with its refusals turned into findings."""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from llamagen import files
from llamagen.diagnostics import LlamagenError, did_you_mean, quoted
from llamagen.emit.manifest import adapter_file
from llamagen.emit.onnx.profile import CPU, CUDA, WEBGPU, is_older, needed
from llamagen.ir.flatten import PAST, PRESENT
from llamagen.ops.op import TensorType

if TYPE_CHECKING:
    import onnxruntime as ort
    from onnxruntime import OrtValue

PROVIDERS: Mapping[str, str] = {"cpu": CPU, "cuda": CUDA, "webgpu": WEBGPU}
"""What a user calls an execution provider, and its name."""
DEVICES: Mapping[str, str] = {provider: word for word, provider in PROVIDERS.items()}
PLUGINS: Mapping[str, str] = {WEBGPU: "onnxruntime_ep_webgpu"}
"""Providers that are packages of their own, which any onnxruntime from 1.30 on loads."""
BFLOAT16 = 16
"""onnx.TensorProto.BFLOAT16; numpy has no such type of its own."""

_LARGEST, _MOST = 1 << 20, 1 << 28
"""Heads or features of a state, and values of one token or of a state of fixed size."""

_DATA_FOLDER = "session.model_external_initializers_file_folder_path"

_RECORD_PLACES = "session.record_ep_graph_assignment_info"
_FUSED = "GroupQueryAttention"
_ATTENTION_BOUND = 1e-3
"""Of values around 1: kernels that are right differ by 1e-6 here, those that pass over keys by 0.1."""

_TYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": ml_dtypes.bfloat16,
    "tensor(int64)": np.int64,
    "tensor(int8)": np.int8,
}
_BETWEEN: Mapping[str, type[np.generic]] = {"tensor(int32)": np.int32, "tensor(bool)": np.bool_}
"""Types that one stage of a model may hand to the next."""

NO_TYPES: Mapping[str, TensorType] = {}
NO_ADAPTER: Mapping[str, OrtValue] = {}

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How ONNX Runtime opens a model."""

    threads: int = 0
    """0 lets it choose."""
    provider: str = CPU
    """Its name in ONNX Runtime, or the path of a library that has one."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Configuration entries of the session."""
    made_for: str = ""
    """What the folder's manifest says about versions."""


AS_IT_IS = OpenOptions()


def open_session(
    model: Path | bytes, options: OpenOptions = AS_IT_IS, data_folder: Path | None = None
) -> ort.InferenceSession:
    """A session of ``model``, a file or bytes, whose external data is then in ``data_folder``.

    float32 is float32 on a GPU too: without the 10 bits of TF32.

    Raises LG711 when the provider is not in this installation or does not start, LG712 when it lacks an operator of the
    model, LG713 when the model cannot be loaded, LG727 when a plugin computes attention of the model wrong.
    """
    import onnxruntime as ort

    provider = options.provider
    plugged = _plugged(provider) if provider in PLUGINS or _is_library(provider) else None
    if plugged is not None:
        provider = plugged.ep_name
    available = ort.get_available_providers()
    if plugged is None and provider not in available:
        raise LlamagenError.of(
            "LG711",
            f"this ONNX Runtime has no {provider}; it has {', '.join(available)}",
            help="install a build of onnxruntime that has it, or use the CPU",
        )
    source: str | bytes
    if isinstance(model, Path):
        source = str(files.checked(model, files.GRAPH, within=model.parent))
    else:
        source = model
    what = str(model) if isinstance(model, Path) else "the model"
    _require_utf8(model if isinstance(model, Path) else data_folder)
    of_provider = {"use_tf32": "0"} if provider == CUDA else {}
    chosen = ort.SessionOptions()
    chosen.log_severity_level = 4  # its findings are raised below; a library prints nothing
    try:
        chosen.intra_op_num_threads = options.threads
        if data_folder is not None:
            chosen.add_session_config_entry(_DATA_FOLDER, str(data_folder))
        for name, value in options.settings.items():
            chosen.add_session_config_entry(name, value)
        if plugged is not None:
            chosen.add_session_config_entry(_RECORD_PLACES, "1")
            chosen.add_provider_for_devices([plugged], {})
            session = ort.InferenceSession(source, chosen)
        else:
            session = ort.InferenceSession(source, chosen, providers=[(provider, of_provider)])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise _refusal(what, provider, str(error), source, ort.__version__) from error
    if session.get_providers()[0] != provider:  # it goes on with the CPU
        raise LlamagenError.of(
            "LG711",
            f"{provider} does not start on this machine",
            help="are a GPU and the CUDA and cuDNN libraries of this onnxruntime here? Or use the CPU",
        )
    if plugged is not None:
        parts = session.get_provider_graph_assignment_info()
        nodes = (n for part in parts if part.ep_name == provider for n in part.get_nodes())
        if any(node.op_type == _FUSED for node in nodes):
            with computing(f"attention of {provider}", options):
                _require_attention(plugged)
    return session


def _require_attention(plugged: ort.OrtEpDevice) -> None:
    """A plugin's attention over a text of several tiles, beside its definition. Raises LG727.

    The kernel of WebGPU (plugin 0.4.0) that goes over keys by subgroups is wrong for prompts of 32 tokens and more on
    all drivers that were tried, of 4 to 16 lanes; the one that it takes for Apple, NVIDIA and without them is right.
    """
    import onnxruntime as ort
    from onnx import TensorProto, helper

    tokens, size = 160, 64
    kinds = {
        **dict.fromkeys(("q", "k", "v", "y"), (TensorProto.FLOAT, [1, tokens, size])),
        **dict.fromkeys(("past_k", "past_v"), (TensorProto.FLOAT, [1, 1, 0, size])),
        **dict.fromkeys(("kept_k", "kept_v"), (TensorProto.FLOAT, [1, 1, tokens, size])),
        "last": (TensorProto.INT32, [1]),
        "total": (TensorProto.INT32, []),
    }
    given, found = ["q", "k", "v", "past_k", "past_v", "last", "total"], ["y", "kept_k", "kept_v"]
    named = {name: helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()}
    node = helper.make_node(
        _FUSED, given, found, domain="com.microsoft", num_heads=1, kv_num_heads=1
    )
    graph = helper.make_graph(
        [node],
        "attention",
        [named[name] for name in given],
        [named[name] for name in found],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_provider_for_devices([plugged], {})
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, tokens, size), np.float32)
    nothing = np.zeros((1, 1, 0, size), np.float32)
    numbers = {"last": np.array([tokens - 1], np.int32), "total": np.array(tokens, np.int32)}
    feeds = {"q": q, "k": k, "v": v, "past_k": nothing, "past_v": nothing, **numbers}
    y = ort.InferenceSession(model.SerializeToString(), options).run(["y"], feeds)[0]
    scores = np.where(np.tri(tokens) > 0, q[0] @ k[0].T / size**0.5, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    error = float(np.abs(y[0] - weights @ v[0] / weights.sum(axis=1, keepdims=True)).max())
    if not error < _ATTENTION_BOUND:
        raise LlamagenError.of(
            "LG727",
            f"{plugged.ep_name} computes {_FUSED} of a text of {tokens} tokens wrong on this device, by {error:.2g}",
            help="export with --profile portable, or use the CPU",
        )


def _plugged(provider: str) -> ort.OrtEpDevice:
    """The first device of a provider that is a library of its own. Raises LG711."""
    import onnxruntime as ort

    try:
        library = (
            provider
            if _is_library(provider)
            else importlib.import_module(PLUGINS[provider]).get_library_path()
        )
        if library not in _devices:
            known = ort.get_ep_devices()
            found = [device for device in known if device.ep_name == provider]
            if not found:
                ort.register_execution_provider_library(provider, library)
                before = {device.ep_name for device in known}
                found = [d for d in ort.get_ep_devices() if d.ep_name not in before]
            _devices[library] = found
    except ModuleNotFoundError:
        message = f"{provider} is not installed"
        help = f"install the package {PLUGINS[provider].replace('_', '-')}, or use the CPU"
        raise LlamagenError.of("LG711", message, help=help) from None
    except Exception as error:  # onnxruntime's exceptions share no base class
        message = f"{provider} does not load: {str(error).splitlines()[0]}"
        raise LlamagenError.of("LG711", message, help="or use the CPU") from None
    if _devices[library]:
        return _devices[library][0]
    message = f"{provider} finds no device on this machine"
    raise LlamagenError.of("LG711", message, help="is the driver of a GPU here? Or use the CPU")


_devices: dict[str, list[ort.OrtEpDevice]] = {}
"""Of libraries that were registered in this process, which is done once."""


def _is_library(provider: str) -> bool:
    return Path(provider).name != provider


def _require_utf8(path: Path | None) -> None:
    """ONNX Runtime takes no other name."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"the name {str(path)!a} is not UTF-8, and ONNX Runtime opens no other"
        raise LlamagenError.of("LG713", message, help="rename the folder") from error


def provider_of(word: str) -> str:
    """The provider of ``cpu``, ``cuda``, ``webgpu``, or the path of a library of one. Raises LG711 for another word."""
    if word in PROVIDERS:
        return PROVIDERS[word]
    if _is_library(word) and Path(word).is_file():
        return str(Path(word).resolve())
    message = f"there is no provider {word!r}"
    help = f"there are {', '.join(PROVIDERS)}, and paths of libraries of others"
    raise LlamagenError.of("LG711", message, help=help)


def device_of(session: ort.InferenceSession) -> str:
    """Where the session's caches lie: those of a plugin on the host, as Python makes no tensor on its device."""
    return "cuda" if session.get_providers()[0] == CUDA else "cpu"


def require_interface(
    session: ort.InferenceSession,
    file: Path,
    inputs: Container[str],
    outputs: Iterable[str],
    types: Mapping[str, TensorType] = NO_TYPES,
) -> None:
    """The graph of ``file`` reads nothing but ``inputs`` and caches, and gives ``outputs``, of ``types`` if known.

    Raises LG760.
    """

    def refused(reason: str) -> LlamagenError:
        help = "export the model again; `llamagen verify DIR --integrity` tells what changed"
        return LlamagenError.of("LG760", f"{file} is no graph of an export: {reason}", help=help)

    gives = {value.name: value for value in session.get_outputs()}
    for value in session.get_inputs():
        name = value.name
        if value.type not in _TYPES:
            raise refused(f"{quoted(name)} is {value.type}")
        if name.startswith(f"{PAST}."):
            present = gives.get(name.replace(PAST, PRESENT, 1))
            if present is None or present.type != value.type:
                raise refused(f"what {quoted(name)} reads is not written")
        elif name not in inputs:
            raise refused(f"it reads {quoted(name)}, which nothing gives")
    for name in outputs:
        if name not in gives or gives[name].type not in _TYPES:
            raise refused(f"it does not give {quoted(name)}")
        shape = gives[name].shape
        wrong = name == "logits" and not (len(shape) == 3 and isinstance(shape[-1], int))
        if name in types:
            dims = types[name].shape
            wrong |= len(shape) != len(dims)
            wrong = wrong or (dims[-1].is_static and dims[-1].value != shape[-1])
        if wrong:
            raise refused(f"it gives {name} of the shape {shape}")


def table_context(metadata: Mapping[str, str], file: Path) -> int | None:
    """Tokens that the tables of positions in a model cover; None without such tables. Raises LG760."""
    return _stated(metadata, "max_context", "tokens that its tables cover", file)


def vocabulary_of(metadata: Mapping[str, str], file: Path) -> int | None:
    """Ids that a model reads, where its logits are of more or fewer; None where they are of these. Raises LG760."""
    return _stated(metadata, "vocabulary", "ids that it reads", file)


def _stated(metadata: Mapping[str, str], key: str, what: str, file: Path) -> int | None:
    text = metadata.get(f"llamagen.{key}")
    if text is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,9}", text):
        message = f"{file} says {quoted(text)} of the {what}, which is no number of them"
        raise LlamagenError.of("LG760", message, help="export the model again")
    return int(text)


@contextmanager
def computing(what: str, options: OpenOptions) -> Iterator[None]:
    """What ONNX Runtime refuses while it computes is LG714, with its version and what the folder was made for."""
    import onnxruntime as ort

    try:
        yield
    except LlamagenError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class
        made_for = f"; the folder was made by {options.made_for}" if options.made_for else ""
        raise LlamagenError.of(
            "LG714",
            f"ONNX Runtime {ort.__version__} cannot compute {what}: {_short(str(error))}{made_for}",
            help="`llamagen verify DIR --integrity` tells whether the folder is as it was written; "
            "another version of ONNX Runtime may have other operators",
        ) from error


def empty_cache(session: ort.InferenceSession, batch: int) -> dict[str, NDArray[np.generic]]:
    """Input name -> states before the first call: zeros, keys and values of no token [batch, K, 0, H].

    Raises LG713 for a state of another form.
    """
    empty: dict[str, NDArray[np.generic]] = {}
    for value in session.get_inputs():
        if not value.name.startswith(f"{PAST}."):
            continue
        sizes = [dim for dim in value.shape[1:] if isinstance(dim, int)]
        tokens = len(value.shape) - 1 - len(sizes)
        known = value.type in _TYPES and len(value.shape) in (3, 4) and tokens <= 1
        if not (known and all(0 < size <= _LARGEST for size in sizes) and prod(sizes) <= _MOST):
            message = f"`{value.name}` is no state that is known: {value.type} {value.shape}"
            raise LlamagenError.of("LG713", message, help="export the model again")
        shape = [dim if isinstance(dim, int) else 0 for dim in value.shape[1:]]
        empty[value.name] = np.zeros((batch, *shape), _TYPES[value.type])
    return empty


def as_input(value: NDArray[np.generic], kind: str) -> NDArray[np.generic]:
    """An array in the type that an input wants (``tensor(float16)``), contiguous."""
    array: NDArray[np.generic] = np.ascontiguousarray(value, dtype={**_TYPES, **_BETWEEN}[kind])
    return array


def value_of(array: NDArray[np.generic], device: str = "cpu") -> OrtValue:
    """A tensor on ``device``; one of bfloat16 on the CPU, from where ONNX Runtime fetches it."""
    from onnxruntime import OrtValue

    if array.dtype == ml_dtypes.bfloat16:
        return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), BFLOAT16)
    return OrtValue.ortvalue_from_numpy(array, device, 0)


def array_of(value: OrtValue) -> NDArray[np.generic]:
    """The numbers of a tensor; bfloat16, which must be on the CPU, as float32, which holds each of them."""
    array: NDArray[np.generic]
    if value.data_type() != "tensor(bfloat16)":
        array = value.numpy()
        return array
    shape = tuple(value.shape())
    memory = (ctypes.c_uint16 * prod(shape)).from_address(value.data_ptr())
    array = np.frombuffer(memory, ml_dtypes.bfloat16).reshape(shape).astype(np.float32)
    return array


def read_adapter(folder: Path, name: str, known: Collection[str]) -> dict[str, OrtValue]:
    """What an adapter of ``folder``, one of the ``known``, gives inputs of the graph.

    Raises LG658 for a name that is none, LG601 or LG713 for a file that is none of ONNX Runtime.
    """
    from onnxruntime import AdapterFormat

    if name not in known:
        have = f"it has {', '.join(known)}" if known else "it has none"
        message = f"{quoted(str(folder))} has no adapter {quoted(name)}; {have}"
        help = did_you_mean(name, known, "`export --adapter NAME=DIR` writes one")
        raise LlamagenError.of("LG658", message, help=help)
    file = files.checked(folder / adapter_file(name), files.DATA, within=folder)
    try:
        values: dict[str, OrtValue] = AdapterFormat.read_adapter(str(file)).get_parameters()
    except Exception as error:  # onnxruntime's exceptions share no base class
        message = f"{quoted(str(file))} is no adapter of ONNX Runtime: {_short(str(error))}"
        help = "`llamagen verify DIR --integrity` tells what changed"
        raise LlamagenError.of("LG713", message, help=help) from error
    return values


def require_inputs(
    session: ort.InferenceSession, file: Path, adapter: Mapping[str, OrtValue]
) -> None:
    """What an adapter gives are inputs of the graph, of their types. Raises LG713."""
    types = {one.name: one.type for one in session.get_overridable_initializers()}
    for name, value in adapter.items():
        if types.get(name) != value.data_type():
            message = f"an adapter gives {quoted(name)}, which {file} does not take"
            help = "it belongs to another folder, or was changed; export both again"
            raise LlamagenError.of("LG713", message, help=help)


def computed(
    session: ort.InferenceSession,
    feeds: Mapping[str, NDArray[np.generic]],
    adapter: Mapping[str, OrtValue] = NO_ADAPTER,
) -> dict[str, NDArray[np.generic]]:
    """All outputs by name, bfloat16 as float32."""
    names = [output.name for output in session.get_outputs()]
    values = {**{name: value_of(array) for name, array in feeds.items()}, **adapter}
    results = session.run_with_ort_values(names, values)
    return {name: array_of(value) for name, value in zip(names, results, strict=True)}


def as_past(outputs: Mapping[str, V]) -> dict[str, V]:
    """The states among the outputs of a step, under the names of the next step's inputs."""
    return {
        name.replace(PRESENT, PAST, 1): value
        for name, value in outputs.items()
        if name.startswith(f"{PRESENT}.")
    }


def _short(message: str) -> str:
    """Of ONNX Runtime, without the places of its source."""
    reason = re.sub(r"^\[ONNXRuntimeError\] : ", "", " ".join(message.split()))
    return re.sub(r"/onnxruntime_src/\S+ ", "", reason)[:400]


def _refusal(
    what: str, provider: str, message: str, source: str | bytes, installed: str
) -> LlamagenError:
    reason = " ".join(message.split())
    missing = re.search(r"implementation for (\w+)\(\d+\) node|kernel for (\w+)\(", reason)
    if "NOT_IMPLEMENTED" in reason and missing:
        return LlamagenError.of(
            "LG712",
            f"{provider} has no {missing[1] or missing[2]} for the types that {what} uses",
            help="compute where it was exported for (`--provider cuda`), or export with the portable profile",
        )
    for since, feature in _too_new(source, installed):
        return LlamagenError.of(
            "LG713",
            f"{what} needs onnxruntime {since} or later for {feature}, and {installed} is installed",
            help=f"install onnxruntime {since}, or export with `--runtime` and a version up to yours",
        )
    return LlamagenError.of(
        "LG713",
        f"ONNX Runtime {installed} cannot load {what}: {_short(message)}",
        help="are all data files beside model.onnx, whole and unchanged?",
    )


def _too_new(source: str | bytes, installed: str) -> Iterator[tuple[str, str]]:
    """What a refused model has that came after the ``installed`` version; nothing of a file that is no model."""
    import onnx

    try:
        data = source if isinstance(source, bytes) else files.read_bytes(Path(source), files.GRAPH)
        model = onnx.load_model_from_string(data)
    except Exception:  # protobuf's errors share no public base class
        return
    yield from ((since, what) for since, what in needed(model) if is_older(installed, since))
