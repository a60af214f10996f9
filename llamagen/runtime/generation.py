"""Generation from an exported folder, token by token: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from llamagen import files
from llamagen.diagnostics import LlamagenError
from llamagen.emit.config.settings import Settings
from llamagen.emit.manifest import MANIFEST, ImagesRecord, read_manifest
from llamagen.emit.onnx.session import OpenOptions, provider_of, read_adapter
from llamagen.images.decode import read_image
from llamagen.images.prepare import Prompt, Values, prompt_of
from llamagen.images.recipe import Recipe
from llamagen.runtime.session import NOTHING, Batch, Session
from llamagen.runtime.text import TOKENIZER_FILE, Message, Stops, Text, chat_text, require_utf8
from llamagen.units import rate_text
from llamagen.weights.checkpoint import require_no_adapter


@dataclass(frozen=True, slots=True)
class Sampling:
    """``temperature`` 0 takes the likeliest token. ``top_k`` 0 and ``top_p`` 1 leave all tokens in."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = (
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("seed", self.seed, self.seed >= 0, "0 or more"),
        )
        for name, value, valid, range_text in ranges:
            if not valid:
                raise LlamagenError.of("LG901", f"{name} is {value}, it must be {range_text}")


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens on every machine."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.random = np.random.Generator(np.random.PCG64(sampling.seed))

    def next(self, logits: npt.NDArray[np.floating]) -> int:
        """The next token for logits [V]. Of equal logits the lowest id wins."""
        s = self.sampling
        if s.temperature == 0.0:
            return int(np.argmax(logits))
        scores = logits.astype(np.float64) / s.temperature
        order = np.argsort(-scores, kind="stable")
        if s.top_k:
            order = order[: s.top_k]
        weights = np.exp(scores[order] - scores[order[0]])
        mass = np.cumsum(weights / weights.sum())
        # the token that crosses the mass is kept, so at least one is
        kept = int(np.searchsorted(mass, s.top_p)) + 1 if s.top_p < 1.0 else len(order)
        order, weights = order[:kept], weights[:kept]
        edges = np.cumsum(weights / weights.sum())
        drawn = int(np.searchsorted(edges, self.random.random(), side="right"))
        return int(order[min(drawn, len(order) - 1)])


@dataclass(frozen=True, slots=True)
class Added:
    """What one new token adds to the text (the id itself, without a tokenizer); at the end, without a token, the bytes
    of a character that was never complete."""

    token: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Read:
    """Tokens that a generation wants the model to read next."""

    ids: Sequence[int]
    beside: Values


Logits: TypeAlias = npt.NDArray[np.floating]


@dataclass
class Generation:
    """Iterate it once to get the text; the times are complete afterwards."""

    session: Session
    prompt: Prompt
    text: Text | None
    sampling: Sampling
    max_new_tokens: int
    stop: frozenset[int]
    context: int | None
    load_seconds: float
    image_count: int = 0
    stops: Stops | None = None
    ended: Literal["token", "string", "length", "context"] | None = None
    """By a token that ends a text, a stop string, the most new tokens, or the model's context."""
    tokens: list[int] = field(default_factory=list)
    image_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def __iter__(self) -> Iterator[Added]:
        if self.prompt.images:
            started = time.perf_counter()
            self.session.see(self.prompt.images)
            self.image_seconds = time.perf_counter() - started
        steps = self.steps()
        wanted = next(steps)
        while wanted is not None:
            if isinstance(wanted, Added):
                yield wanted
                wanted = next(steps, None)
            else:
                wanted = steps.send(self.session.step(wanted.ids, wanted.beside))

    def steps(self) -> Generator[Added | Read | None, Logits | None, None]:
        """What is added, and what is to be read: it wants to be sent the logits [V] after that. None at the end."""
        sampler, prompt = Sampler(self.sampling), self.prompt
        started = time.perf_counter()
        logits = yield Read(prompt.input_ids, prompt.beside)
        self.prefill_seconds = time.perf_counter() - started
        room = self.max_new_tokens
        limit: Literal["length", "context"] = "length"
        if self.context is not None and self.context - len(prompt.input_ids) < room:
            room, limit = self.context - len(prompt.input_ids), "context"
        never = sorted(self.session.never)
        while len(self.tokens) < room:
            assert logits is not None
            if never:
                logits = logits.copy()
                logits[never] = -np.inf
            token = sampler.next(logits)
            if token in self.stop:
                self.ended = "token"
                break
            self.tokens.append(token)
            first = len(self.tokens) == 1
            added = f"{token}" if first else f" {token}"
            if self.text is not None:
                added = self.text.push(token)
            if self.stops is not None:
                added, reached = self.stops.push(added)
                self.ended = "string" if reached else None
            yield Added(token, added)
            if self.ended is not None:
                break
            if len(self.tokens) < room:
                started = time.perf_counter()
                logits = yield Read((token,), NOTHING)
                self.decode_seconds += time.perf_counter() - started
        rest = "" if self.text is None else self.text.flush()
        if self.stops is not None:
            rest, reached = self.stops.push(rest) if self.ended != "string" else ("", True)
            if reached:
                self.ended = "string"
            rest += self.stops.flush()
        self.ended = self.ended or limit
        if rest:
            yield Added(None, rest)
        yield None

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first, which comes from the prefill."""
        steps = max(len(self.tokens) - 1, 0)
        return steps / self.decode_seconds if self.decode_seconds else 0.0

    def record(self, text: str) -> dict[str, object]:
        """What was generated, ``text`` and tokens, why it ended, and the times, for programs."""
        return {
            "text": text,
            "tokens": self.tokens,
            "ended": self.ended,
            "read": len(self.prompt.input_ids),
            "written": len(self.tokens),
            "seconds": {
                "open": self.load_seconds,
                "images": self.image_seconds,
                "read": self.prefill_seconds,
                "write": self.decode_seconds,
            },
            "tokens_per_second": self.decode_rate,
        }

    def summary(self) -> str:
        """One line with the times."""
        read = len(self.prompt.input_ids)
        prefill = read / self.prefill_seconds if self.prefill_seconds else 0.0
        images = ""
        if self.image_count:
            noun = "image" if self.image_count == 1 else "images"
            images = f"{self.image_count} {noun} seen in {self.image_seconds:.2f} s, "
        return (
            f"{images}{read} tokens read at {rate_text(prefill, 'tokens')}, "
            f"{len(self.tokens)} written at {rate_text(self.decode_rate, 'tokens')}, "
            f"opened in {self.load_seconds:.2f} s"
        )


class Runner:
    """An exported folder that answers prompts one after the other; ONNX Runtime opens it for the first."""

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int = 0,
        provider: str = "cpu",
        adapter: str | None = None,
    ) -> None:
        """With one of the adapters that lie beside the model, or none.

        Raises LG623 (the folder holds an adapter), LG658 (no such ``adapter``), LG711 (no such ``provider``), LG713 (a
        broken adapter), LG762 (a broken tokenizer).
        """
        self.folder = Path(folder)
        execution = provider_of(provider)
        if self.folder.is_dir():
            require_no_adapter(self.folder)
        self.text = Text.of_folder(self.folder)
        has = files.exists(self.folder / MANIFEST)
        self.manifest = read_manifest(self.folder) if has else None
        self.options = OpenOptions(threads, execution)
        if self.manifest is not None:
            of_folder = self.manifest.session, self.manifest.made_for
            self.options = OpenOptions(threads, execution, *of_folder)
        known = self.manifest.adapters if self.manifest is not None else {}
        self.adapter = {} if adapter is None else read_adapter(self.folder, adapter, known)
        self.session: Session | None = None

    def run(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        *,
        images: Sequence[str | Path] = (),
        chat: bool = False,
        system: str | None = None,
        stop: Sequence[str] = (),
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Generation:
        """As the function ``run`` of this module; what was generated before is forgotten."""
        folder, sampling = self.folder, Sampling(temperature, top_k, top_p, seed)
        stops = Stops(stop) if stop else None
        said = [one for one in prompt if isinstance(one, Mapping)]
        words = prompt if isinstance(prompt, str) or said else None
        if self.text is None and (words is not None or stops is not None):
            what = "look for a stop string" if words is None else "read text"
            message = f"{str(folder)!r} has no {TOKENIZER_FILE}, so it cannot {what}"
            help = "give token ids with --ids, or copy the model's tokenizer.json there"
            raise LlamagenError.of("LG761", message, help=help)
        if words is not None and self.text is not None:
            ids = self._encoded(
                self.text, prompt if isinstance(prompt, str) else said, chat, system, len(images)
            )
        else:
            ids = tuple(one for one in prompt if isinstance(one, int))
        known = self.manifest.images if self.manifest is not None else None
        pictures = [Path(image) for image in images]
        record, prepared = _prepared(folder, known, ids, pictures, encoded=words is not None)
        started = time.perf_counter()
        if self.session is None or self.session.record != record:
            self.session = Session(folder, self.options, record, self.adapter)
        self.session.reset()
        opened = time.perf_counter() - started
        settings = Settings.of_folder(folder)
        limits = [c for c in (settings.context, self.session.max_context) if c is not None]
        context = min(limits, default=None)
        read = len(prepared.input_ids)
        if context is not None and read >= context:
            message = f"the prompt has {read:,} tokens, the model's context is {context:,}"
            raise LlamagenError.of("LG764", message, help="shorten the prompt")
        self.session.reserve(min(read + max_new_tokens, context or sys.maxsize))
        return Generation(
            self.session,
            prepared,
            self.text,
            sampling,
            max_new_tokens,
            frozenset(settings.ids("eos_token_id")),
            context,
            opened,
            len(images),
            stops,
        )

    def run_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        chat: bool = False,
        system: str | None = None,
        stop: Sequence[str] = (),
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[tuple[Generation, str]]:
        """Each prompt's generation, at its end, and its text: all read and written side by side, each as alone.

        A kernel may sum a batch in another order than one row, so that equally likely tokens may change places. Where
        padding and new tokens together are beyond the context, prompts are answered in turn.
        """

        def stream(prompt: str | Sequence[int]) -> Generation:
            return self.run(
                prompt,
                chat=chat,
                system=system,
                stop=stop,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
            )

        streams = [stream(prompt) for prompt in prompts]
        total = max(len(one.prompt.input_ids) for one in streams) + max_new_tokens
        texts = [""] * len(streams)
        if any(one.context is not None and total > one.context for one in streams):
            for i, prompt in enumerate(prompts):
                streams[i] = stream(prompt)
                texts[i] = "".join(piece.text for piece in streams[i])
            return list(zip(streams, texts, strict=True))
        assert self.session is not None
        batch, steps = Batch(self.session, len(streams), total), [one.steps() for one in streams]
        wanted = [next(one) for one in steps]
        while any(wanted):
            for i, one in enumerate(steps):
                while isinstance(added := wanted[i], Added):
                    texts[i] += added.text
                    wanted[i] = next(one)
            if any(wanted):
                # a text that has ended goes on with any token: nobody looks at it
                rows = [one.ids if isinstance(one, Read) else (0,) for one in wanted]
                logits = batch.step(rows)
                for i, one in enumerate(steps):
                    wanted[i] = one.send(logits[i]) if wanted[i] is not None else None
        return list(zip(streams, texts, strict=True))

    def _encoded(
        self,
        text: Text,
        said: str | Sequence[Message],
        chat: bool,
        system: str | None,
        images: int,
    ) -> tuple[int, ...]:
        """Of a plain text, or of what the chat template makes of a conversation."""
        if isinstance(said, str):
            require_utf8(said)  # before a template sees it, which may ignore it
            if not chat:
                return text.encode(said)
            said = [{"role": "user", "content": said}]
        if system is not None:
            said = [{"role": "system", "content": system}, *said]
        for one in said:
            require_utf8(one["content"])
        return text.encode(chat_text(self.folder, said, images), bare=True)


def run(
    folder: str | Path,
    prompt: str | Sequence[int] | Sequence[Message],
    *,
    images: Sequence[str | Path] = (),
    chat: bool = False,
    system: str | None = None,
    stop: Sequence[str] = (),
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    threads: int = 0,
    provider: str = "cpu",
    adapter: str | None = None,
) -> Generation:
    """Generate from an exported folder: iterate the result for tokens and text; nothing is computed before.

    ``prompt`` is a text, token ids, or a conversation: mappings with ``role`` and ``content``. With ``chat`` a text is
    the first message of one; the folder's chat template writes it, behind the message ``system`` if there is one.
    ``images`` are files, one for each ``<|image|>`` of the prompt; without any there, all stand in front.
    The text ends before the first of the strings ``stop``. ``provider`` is ``cpu``, ``cuda``, ``webgpu`` or
    the path of a library that ONNX Runtime can load as one; ``adapter`` names one of those beside the model.

    Raises LG623 (the folder holds an adapter), LG658 (no such ``adapter``), LG711 (ONNX Runtime has no such
    ``provider``), LG760 (not an exported folder), LG761 (text without a tokenizer), LG762 (a broken tokenizer), LG764
    (a prompt longer than the context), LG780 and LG781 (an image that cannot be read), LG782 (images and their places
    differ in number), LG783 (a model that reads no images), LG784 (no chat template, or one that fails).
    """
    return Runner(folder, threads=threads, provider=provider, adapter=adapter).run(
        prompt,
        images=images,
        chat=chat,
        system=system,
        stop=stop,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )


def _prepared(
    folder: Path,
    record: ImagesRecord | None,
    ids: tuple[int, ...],
    images: Sequence[Path],
    *,
    encoded: bool,
) -> tuple[ImagesRecord | None, Prompt]:
    """The prompt, and what the folder says about images if the prompt has some."""
    recipe: Recipe | None = record.preprocessing if record is not None else None
    if images and recipe is None:
        known = "this model reads text only" if record is None else "its tokens are not published"
        message = f"{str(folder)!r} cannot read an image: {known}"
        raise LlamagenError.of("LG783", message, help="leave --image out")
    if recipe is None or not (images or recipe.image_token in ids):
        return None, Prompt(ids, {}, {})
    pictures = [read_image(path) for path in images]
    return record, prompt_of(ids, pictures, recipe, encoded=encoded)
