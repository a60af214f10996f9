"""Hostile inputs for the engines of others that read a model's files, each with its oracle.

An oracle is the code that refuses the input, or None where it must be accepted: beside each bound stands what is just
inside of it. Plain data: the unit tests and ``python -m tests.hardness`` run them.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import onnx


class Case(NamedTuple):
    name: str
    data: bytes
    oracle: str | None


class Engine(NamedTuple):
    """``run`` gives the input to the engine, in an empty folder; it raises LlamagenError or returns."""

    cases: Callable[[], Iterator[Case]]
    run: Callable[[bytes, Path], None]


# Meta's .pth


def zipped(pickle: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch zip file around a pickle, with two storages of 48 bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle, compression)
        archive.writestr("archive/byteorder", b"little")
        for key in ("0", "1"):
            archive.writestr(f"archive/data/{key}", bytes(48))
    return out.getvalue()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def storage(elements: bytes = b"K\x0c") -> bytes:
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + elements + b"tQ"  # fmt: skip


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n)R"
HOOKS = b"\x89" + ORDERED


def tensor(shape: bytes = b"K\x03K\x04\x86", strides: bytes = b"K\x04K\x01\x86") -> bytes:
    return REBUILD + b"(" + storage() + b"K\x00" + shape + strides + HOOKS + b"tR"


def state(*entries: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(entries) + b"u."


PLAIN = text("a") + tensor()


def nested(opening: bytes, closing: bytes, depth: int, inner: bytes) -> bytes:
    return opening * depth + inner + closing * depth


def pickles() -> Iterator[Case]:
    def case(name: str, pickle: bytes, oracle: str | None = "LG605") -> Case:
        return Case(name, zipped(pickle), oracle)

    yield case("a state dict", state(PLAIN), None)
    yield case("an empty state dict", state(), None)
    yield case("an OrderedDict", b"\x80\x02" + ORDERED + b"(" + PLAIN + b"u.", None)
    metadata = b"}" + text("_metadata") + ORDERED + b"sb"
    yield case("metadata", b"\x80\x02" + ORDERED + b"(" + PLAIN + b"u" + metadata + b".", None)
    for name, value in (("items", b"K\x01"), ("keys", b"N"), ("__class__", b"N"), ("update", b"}")):
        what = b"\x80\x02" + ORDERED + b"(" + PLAIN + b"u}" + text(name) + value + b"sb."
        yield case(f"an attribute `{name}`", what, None)
    yield case("attributes of a tensor", state(PLAIN[:-1] + b"R}b"))
    yield case("attributes of a function", b"\x80\x02" + REBUILD + b"}b.")
    deep = b")" + b"\x85" * 500_000
    yield case("a tuple nested 500,000 deep as a key", b"\x80\x02}" + deep + b"Ns.")
    yield case("a tuple nested 500,000 deep as a value", b"\x80\x02}" + text("a") + deep + b"s.")
    yield case("a tuple nested 500,000 deep as a pid", b"\x80\x02" + deep + b"Q.")
    yield case("a tuple as a key", b"\x80\x02}K\x01\x85Ns.")
    lists = nested(b"]", b"a", 200_000, b"K\x01")
    yield case("lists nested 200,000 deep", b"\x80\x02}" + text("a") + lists + b"s.")
    dicts = b"}" + (text("a") + b"}") * 100_000 + b"s" * 100_000
    yield case("dicts nested 100,000 deep", b"\x80\x02" + dicts + b".")
    mersenne = (1 << 61) - 1  # integers that differ by it have one hash
    numbers = (i * mersenne for i in range(1, 40_000))
    keys = b"".join(
        b"\x8a" + bytes([len(d)]) + d + b"N" for n in numbers for d in [n.to_bytes(11, "little")]
    )
    yield case("integers with one hash as keys", b"\x80\x02}(" + keys + b"u.")
    yield case("one integer as a key", b"\x80\x02}K\x01" + tensor() + b"s.")
    yield case("True as a key", b"\x80\x02}\x88" + tensor() + b"s.")
    yield case("None as a key", b"\x80\x02}N" + tensor() + b"s.")
    yield case("a float as a key", b"\x80\x02}G" + bytes(8) + tensor() + b"s.")
    yield case("a list as a key", b"\x80\x02}]" + tensor() + b"s.")
    yield case("a tensor as a key", b"\x80\x02}" + tensor() + tensor() + b"s.")
    yield case("one key twice", state(PLAIN, PLAIN))
    yield case("a key without a value", b"\x80\x02}(" + text("a") + b"u.")
    yield case("a dict in itself", b"\x80\x02}q\x00" + text("a") + b"h\x00s.")
    yield case("a list in itself", b"\x80\x02]q\x00h\x00a.")
    laughs = b"".join(b"]q%c(" % i + b"h%c" % (i - 1) * 9 + b"e" for i in range(1, 60))
    yield case("lists that double", b"\x80\x02]q\x00" + laughs + b".")
    yield case("lists that double, as a name", b"\x80\x04]q\x00" + laughs + text("x") + b"\x93.")
    yield case("1,100,000 operations", b"\x80\x02" + b"N" * 1_100_000 + b".")
    yield case("1,100,000 marks", b"\x80\x02" + b"(" * 1_100_000 + b".")
    yield case("a tuple of 65 items", b"\x80\x02(" + b"N" * 65 + b"t.")
    ones = b"(" + b"K\x01" * 64 + b"t"
    yield case("64 dimensions", state(text("a") + tensor(ones, ones)), None)
    large = b"\x8a\xff" + b"\xff" * 254 + b"\x7f"
    yield case("a size of 2,000 bits", state(text("a") + tensor(large + b"\x85", b"K\x01\x85")))
    minus = b"J\xff\xff\xff\xff"
    yield case("a negative size", state(text("a") + tensor(minus + b"\x85", b"K\x01\x85")))
    yield case(
        "sizes beyond the storage", state(text("a") + tensor(b"M\xff\xff\x85", b"K\x01\x85"))
    )
    yield case("sizes and strides", state(text("a") + tensor(b"K\x01\x85", b"K\x01K\x01\x86")))
    yield case("a size that is True", state(text("a") + tensor(b"\x88\x85", b"K\x01\x85")))
    yield case("a tensor of no storage", state(text("a") + REBUILD + b"(K\x00K\x00))tR"))
    yield case("a call of a text", b"\x80\x02" + text("x") + b")R.")
    yield case("a call without a tuple", b"\x80\x02" + REBUILD + b"]R.")
    yield case("an OrderedDict of items", b"\x80\x02ccollections\nOrderedDict\n]\x85R.")
    yield case("a name that is a number", b"\x80\x04K\x01K\x01\x93.")
    yield case("an empty stack", b"\x80\x02s.")
    yield case("no mark", b"\x80\x02}u.")
    yield case("a mark as a key", b"\x80\x02}(Ns.")
    yield case("no memo", b"\x80\x02h\x07.")
    yield case("memo of nothing", b"\x80\x02q\x00.")
    yield case("a number of 10,000 digits", b"I" + b"9" * 10_000 + b"\n.")
    yield case("a text that is not UTF-8", b"\x80\x02X\x01\x00\x00\x00\xff.")
    yield case("a surrogate as a key", b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80Ns.")
    yield case("a text longer than the file", b"\x80\x02X\xff\xff\xff\x7fa.")
    for name, kind in (("deflated", 8), ("bzip2", 12), ("LZMA", 14)):
        yield Case(f"a pickle that is {name}", zipped(state(PLAIN), kind), "LG605")


def read_pth(data: bytes, folder: Path) -> None:
    from llamagen.weights.meta_pth import read_pth

    path = folder / "consolidated.00.pth"
    path.write_bytes(data)
    read_pth(path)


# tokenizers

WORDS = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
PAIRS = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
PADDING = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
SECOND = {"Sequence": {"id": "B", "type_id": 0}}
TEMPLATE = {"type": "TemplateProcessing", "pair": [SEQUENCE, SECOND]}
SPECIAL = {"SpecialToken": {"id": "X", "type_id": 0}}


def tokenizer(**parts: object) -> bytes:
    whole: dict[str, object] = {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder")),
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": WORDS,
    }
    return json.dumps({**whole, **parts}).encode()


def replaced(times: int) -> dict[str, object]:
    """Each replacement makes a text ten times longer."""
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    return {"type": "Sequence", "normalizers": [one] * times, "decoders": [one] * times}


def tokenizers() -> Iterator[Case]:
    """The prompt is `a b z`; then three tokens come."""
    unread, unused = "LG762", "LG766"

    def padded(strategy: object, multiple: int | None = None) -> bytes:
        return tokenizer(padding={**PADDING, "strategy": strategy, "pad_to_multiple_of": multiple})

    def truncated(length: int, stride: int, strategy: str = "LongestFirst") -> bytes:
        whole = {"direction": "Right", "max_length": length, "stride": stride}
        return tokenizer(truncation={**whole, "strategy": strategy})

    yield Case("words", tokenizer(), None)
    yield Case("words without one for unknown", tokenizer(model={**WORDS, "vocab": {"a": 0}}), unused)  # fmt: skip
    yield Case("padding to 1,000", padded({"Fixed": 1_000}), None)
    yield Case("padding to 10^9", padded({"Fixed": 10**9}), unused)
    yield Case("padding to 10^12", padded({"Fixed": 10**12}), unused)
    yield Case("padding to 2^64 - 1", padded({"Fixed": 2**64 - 1}), unused)
    yield Case("padding to 2^64", padded({"Fixed": 2**64}), unread)
    yield Case("padding to a multiple of 10^12", padded("BatchLongest", 10**12), unused)
    yield Case("padding to a multiple of 0", padded("BatchLongest", 0), None)
    yield Case("truncation to nothing", truncated(0, 0), None)
    yield Case("truncation with a stride beyond", truncated(2, 5), unused)
    yield Case("truncation with a stride as long", truncated(2, 2), unused)
    yield Case("truncation of a second text", truncated(1, 0, "OnlySecond"), unused)
    unknown = {**TEMPLATE, "single": [SPECIAL, SEQUENCE], "special_tokens": {}}
    yield Case("a template with an unknown token", tokenizer(post_processor=unknown), unused)
    token = {"id": "X", "ids": [0] * 10_000, "tokens": ["a"] * 10_000}
    many = {**TEMPLATE, "single": [SPECIAL] * 100_000 + [SEQUENCE], "special_tokens": {"X": token}}
    yield Case("a template of 10^9 tokens", tokenizer(post_processor=many), unused)
    yield Case("dropout of 2", tokenizer(model={**PAIRS, "dropout": 2.0}), unread)
    yield Case("a merge of nothing", tokenizer(model={**PAIRS, "merges": [["a", "z"]]}), unread)
    prefix = {**PAIRS, "continuing_subword_prefix": "zzzzzzzz"}
    yield Case("a prefix longer than a token", tokenizer(model=prefix), unread)
    for name, pattern, code in (
        ("that backtracks", "(a*)*b*$x", None),
        ("that is none", "(", unread),
        ("of nothing", "", None),
        ("that repeats 10^9 times", "(a{30000}){30000}", None),
    ):
        split = {"type": "Split", "behavior": "Isolated", "invert": False}
        split |= {"pattern": {"Regex": pattern}}
        yield Case(f"a pattern {name}", tokenizer(pre_tokenizer=split), code)
    pieces = {"type": "FixedLength", "length": 0}
    yield Case("pieces of no length", tokenizer(pre_tokenizer=pieces), unused)
    yield Case("a text that grows a thousandfold", tokenizer(normalizer=replaced(3)), None)
    yield Case("a text that grows 10^12-fold", tokenizer(normalizer=replaced(12)), unused)
    yield Case("an answer that grows a thousandfold", tokenizer(decoder=replaced(3)), None)
    yield Case("an answer that grows 10^12-fold", tokenizer(decoder=replaced(12)), unused)
    for name, charsmap in (("empty", "AAAA"), ("of 2 GB", "////fwAAAAA="), ("cut", "CAAAAP//")):
        normalizer = {"type": "Precompiled", "precompiled_charsmap": charsmap}
        yield Case(
            f"a table of characters that is {name}", tokenizer(normalizer=normalizer), unread
        )
    for name, vocab, number, code in (
        ("empty", [], None, unused),
        ("without one for unknown", [["a", -1.0]], None, unused),
        ("with another for unknown", [["a", -1.0]], 9, unread),
    ):
        model = {"type": "Unigram", "unk_id": number, "vocab": vocab, "byte_fallback": False}
        yield Case(f"pieces, {name}", tokenizer(model=model), code)
    yield Case("ids of 32 bits", tokenizer(model={**WORDS, "vocab": {"a": 2**32 - 1, "[UNK]": 5}}), None)  # fmt: skip
    yield Case("ids of 33 bits", tokenizer(model={**WORDS, "vocab": {"a": 2**32, "[UNK]": 5}}), unread)  # fmt: skip
    yield Case("a negative id", tokenizer(model={**WORDS, "vocab": {"a": -1}}), unread)
    strip = '{"type": "Strip", "strip_left": true, "strip_right": true}'
    for _ in range(5_000):
        strip = f'{{"type": "Sequence", "normalizers": [{strip}]}}'
    deep = tokenizer().replace(b'"normalizer": null', b'"normalizer": ' + strip.encode())
    yield Case("sequences nested 5,000 deep", deep, unread)
    yield Case("lists nested 10^6 deep", b"[" * 1_000_000, unread)
    yield Case("no tokenizer", b"{}", unread)
    yield Case("no object", b"[]", unread)
    yield Case("no JSON", b"tokenizer", unread)
    yield Case("nothing", b"", unread)
    yield Case("not UTF-8", b'"\xff"', unread)
    yield Case("SentencePiece", b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02", unread)
    yield Case("a model of another kind", tokenizer(model={"type": "Other"}), unread)
    yield Case("cut short", tokenizer()[:-40], unread)


def encode(data: bytes, folder: Path) -> None:
    from llamagen.runtime.text import Text

    (folder / "tokenizer.json").write_bytes(data)
    text = Text.of_folder(folder)
    assert text is not None
    text.encode("a b z")
    for token in (0, 1, 2, 2**32 - 1):
        text.push(token)


# chat templates


def templates() -> Iterator[Case]:
    def case(name: str, template: str, oracle: str | None = "LG784") -> Case:
        return Case(name, template.encode("utf-8", "surrogatepass"), oracle)

    many = "{% for i in range(99999) %}"
    yield case("a message", "{{ messages[0].content }}", None)
    yield case("a loop", "{% for i in range(99999) %}x{% endfor %}", None)
    yield case("a long text", "{{ 'x' * 1000000 }}", None)
    yield case("a text above the limit", "{{ 'x' * 1100000 }}")
    yield case("more text than memory holds", many + '{{ "a"*100000 }}{% endfor %}')
    yield case("one text of 10 GB", "{{ 'a' * 10000000000 }}")
    yield case("one text of 10 GB that is not shown", "{% set x = 'a' * 10000000000 %}")
    grow = many + "{% set n.x = n.x + n.x %}{% endfor %}"
    yield case("a text that doubles", "{% set n = namespace(x='a') %}" + grow)
    yield case("lists that double", "{% set n = namespace(x=['a']) %}" + grow)
    yield case("a format of 10 GB", "{{ '%9999999999d' % 1 }}")
    yield case("a format method of 10 GB", "{{ '{:9999999999}'.format(1) }}")
    yield case("padding", "{{ 'a' | center(9999999999) }}")
    yield case("indentation", "{{ 'a\\nb' | indent(9999999999) }}")
    yield case("a power while it is compiled", "{{ 10 ** (10 ** 10) }}")
    yield case("a power while it runs", "{% set n = namespace(x=10) %}{{ n.x ** (n.x ** 10) }}")
    yield case("endless loops", many + many + many + "{% endfor %}{% endfor %}{% endfor %}")
    yield case("a range that is too long", "{% for i in range(10000000) %}x{% endfor %}")
    yield case("endless recursion", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")
    yield case(
        "endless recursion of loops", "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}"
    )
    yield case("deep parentheses", "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}")
    yield case("deep lists", "{{ " + "[" * 5_000 + "]" * 5_000 + " }}")
    yield case("deep blocks", "{% if 1 %}" * 3_000 + "{% endif %}" * 3_000)
    yield case("a long sum", "{{ 1" + " + 1" * 100_000 + " }}")
    yield case("a regular expression", "{{ ('a' * 50000) | wordwrap(1) | urlize }}", None)
    yield case("not closed", "{% if %}")
    yield case("an unknown filter", "{{ 1 | nothing }}")
    yield case("an attribute of nothing", "{{ a.b.c }}")
    yield case("an include", "{% include '/etc/passwd' %}")
    yield case("an import", "{% import 'os' as os %}")
    yield case("an extension of another", "{% extends messages[0] %}")
    yield case("a message changed", "{{ messages.append(1) }}")
    yield case("classes", "{{ ''.__class__.__base__.__subclasses__() }}")
    yield case("globals", "{{ cycler.__init__.__globals__.os.system('touch ran') }}")
    yield case("globals by a filter", "{{ (cycler | attr('__init__') | attr('__globals__')).os }}")
    yield case("globals by a format", "{{ '{0.__init__.__globals__}'.format(cycler) }}")
    yield case("its own exception", "{{ raise_exception('no') }}")
    yield case("an exception of 1 MB", "{{ raise_exception('x' * 1000000) }}")
    yield case("an exception that is no text", "{{ raise_exception([1]) }}")
    yield case("a division", "{{ 1 / 0 }}")
    yield case("half of a character", "{{ '\\ud800' }}")
    yield Case("not UTF-8", b"\xff\xfe{{ 1 }}", "LG784")
    yield case(
        "JSON that does not end", "{% set n = namespace(x=[]) %}{% set n.x = n %}{{ n.x | tojson }}"
    )
    yield case("null characters", "\0\0", None)
    yield case(
        "a loop filter", "{{ range(99999) | list | batch(1) | list | string | length }}", None
    )
    yield case("sums of lists", "{{ [[1] * 90000] | sum(start=[]) | length }}", None)


def render(data: bytes, folder: Path) -> None:
    from llamagen.runtime.text import chat_text

    (folder / "chat_template.jinja").write_bytes(data)
    chat_text(folder, "Hello", 0)


# images


def png(width: int, height: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """One of 8 bits, all zero; ``chunks`` stand before the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    row = 1 + width * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    body = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in body)


def tiff(*tags: tuple[int, int, int, int]) -> bytes:
    """One directory of tags (number, type, count, value)."""
    rows = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + rows + bytes(4)


def images() -> Iterator[Case]:
    palette = (b"PLTE", bytes(3))
    yield Case("a grey PNG", png(5, 4, 0), None)
    yield Case("the largest PNG", png(9459, 9459, 4), None)
    yield Case("a PNG with transparent colours", png(5, 4, 3, palette, (b"tRNS", b"\0")), None)
    yield Case("a PNG that is too large", png(9460, 9460, 0), "LG781")
    yield Case("a PNG without a size", png(0, 0, 0), "LG780")
    text_bomb = b"x\0\0" + zlib.compress(bytes(300 << 20), 9)
    yield Case("a text of 300 MB in a PNG", png(5, 4, 0, (b"zTXt", text_bomb)), "LG780")
    yield Case("a profile of 300 MB in a PNG", png(5, 4, 0, (b"iCCP", text_bomb)), "LG780")
    yield Case("a PNG of a text", b"\x89PNG\r\n\x1a\n" + b"x" * 1000, "LG780")
    for name, orientation in (("sideways", 6), ("no such way", 77), ("a million", 1_000_000)):
        exif = tiff((0x112, 4, 1, orientation))
        yield Case(f"orientation: {name}", png(5, 4, 0, (b"eXIf", exif)), None)
    loop = tiff((0x8769, 4, 1, 8))
    yield Case("EXIF that points at itself", png(5, 4, 0, (b"eXIf", loop)), None)
    yield Case("EXIF of 10^9 values", png(5, 4, 0, (b"eXIf", tiff((0x112, 4, 10**9, 8)))), None)
    yield Case("EXIF that is none", png(5, 4, 0, (b"eXIf", b"x" * 100)), "LG780")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    yield Case("PostScript", eps, "LG780")
    for name, start in (
        ("PDF", b"%PDF-1.4\n"),
        ("an icon", b"\0\0\1\0\1\0"),
        ("Photoshop", b"8BPS\0\1" + bytes(30)),
        ("PPM", b"P6\n2 2\n255\n" + bytes(12)),
        ("XBM", b"#define x_width 8\n#define x_height 1\nstatic char x_bits[] = {0};"),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
        ("AVIF", b"\0\0\0\x1cftypavif" + bytes(30)),
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("nothing", b""),
    ):
        yield Case(name, start, "LG780")
    sizes = [(0x100, 4, 1, 60_000), (0x101, 4, 1, 60_000), (0x102, 3, 1, 8), (0x103, 3, 1, 1)]
    place = ((0x106, 3, 1, 1), (0x111, 4, 1, 8), (0x117, 4, 1, 8))
    yield Case("a TIFF of 60,000 x 60,000", tiff(*sizes, *place), "LG781")
    yield Case("a TIFF in itself", tiff(*sizes[2:])[:-4] + b"\x08\0\0\0", "LG780")
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02L\x01\x00;"
    wide = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + frame
    yield Case("a GIF of 65,535 x 65,535", wide, "LG781")
    far = (
        b"GIF89a"
        + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 65000, 65000, 500, 500, 0)
    )
    yield Case("a frame outside of a GIF", far + b"\x02\x00;", "LG781")
    bmp = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    for name, width, height in (("2^31", 2**31 - 1, 2**31 - 1), ("-2^31", 4, -(2**31))):
        header = struct.pack("<IiiHHIIIIII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        yield Case(f"a BMP of a side of {name}", bmp + header, "LG781")
    header = struct.pack("<IiiHHIIIIII", 40, 4, 4, 1, 24, 0, 0, 0, 0, 0, 0)
    yield Case("a BMP without pixels", bmp + header, "LG780")


def decode(data: bytes, folder: Path) -> None:
    from llamagen.images.decode import read_image

    (folder / "image.png").write_bytes(data)
    read_image(folder / "image.png")


# SQL


def statements() -> Iterator[Case]:
    def case(name: str, statement: str, oracle: str | None = "LG905") -> Case:
        return Case(name, statement.encode("utf-8", "surrogateescape"), oracle)

    forever = "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT {} FROM t) SELECT {} FROM t"
    yield case("a number", "SELECT 1", None)
    yield case("a blob of 1 MB", "SELECT zeroblob(1000000)", None)
    yield case("a blob of 400 MB", "SELECT randomblob(400000000)")
    yield case("zeros of 1 GB", "SELECT zeroblob(1000000000)")
    yield case("the length of zeros of 1 GB", "SELECT length(zeroblob(1000000000))")
    yield case("a text of 2 GB", "SELECT printf('%2000000000d', 1)", None)  # sqlite gives none
    yield case("digits of a blob", "SELECT hex(randomblob(900000))")
    yield case(
        "a text that is replaced", "SELECT replace(hex(zeroblob(500000)), '0', '0123456789')"
    )
    yield case("endless recursion", forever.format("x + 1", "sum(x)"))
    yield case("endless recursion to a list", forever.format("x + 1", "group_concat(x)"))
    yield case("endless rows", forever.format("x + 1", "x"))
    yield case("endless rows, sorted", forever.format("x + 1", "x") + " ORDER BY x DESC")
    yield case("endless rows of 1 MB", forever.format("x + 1", "randomblob(1000000)"))
    yield case("rows of 1 MB, sorted", forever.format("x + 1", "randomblob(1000000) AS b") + " ORDER BY b")  # fmt: skip
    yield case("rows of 1 MB, grouped", forever.format("x + 1", "count(DISTINCT randomblob(1000000))"))  # fmt: skip
    union = "WITH RECURSIVE t(x) AS (SELECT zeroblob(9) UNION SELECT randomblob(1000000) FROM t) SELECT count(*) FROM t"
    yield case("recursion over blobs", union)
    joined = ", ".join(f"models AS m{i}" for i in range(20))
    yield case("a join of 20", f"SELECT count(*) FROM {joined}")
    yield case("a join of 100", "SELECT 1 FROM " + ", ".join(f"models AS m{i}" for i in range(100)))
    doubled = "a0(x) AS (SELECT 1), " + ", ".join(
        f"a{i}(x) AS (SELECT p.x FROM a{i - 1} AS p, a{i - 1} AS q)" for i in range(1, 40)
    )
    yield case("tables that double", f"WITH {doubled} SELECT count(*) FROM a39")
    yield case("deep parentheses", "SELECT " + "(" * 5_000 + "1" + ")" * 5_000)
    yield case("a deep sum", "SELECT 1" + " + 1" * 5_000)
    yield case("a long statement", "SELECT 1 -- " + "x" * 1_000_000)
    yield case("many columns", "SELECT " + ", ".join(["1"] * 5_000))
    yield case("many selects", " UNION ALL ".join(["SELECT 1"] * 1_000))
    yield case("a pattern that backtracks", f"SELECT hex(zeroblob(500000)) LIKE '{'%0' * 200}1'")
    yield case(
        "a pattern that backtracks less", f"SELECT hex(zeroblob(50)) LIKE '{'%0' * 8}1'", None
    )
    for word in (
        "ATTACH '/tmp/x.db' AS x",
        "CREATE TABLE x (y)",
        "CREATE TEMP TABLE x (y)",
        "DROP TABLE models",
        "INSERT INTO models VALUES (1)",
        "DELETE FROM models",
        "UPDATE models SET id = 1",
        "PRAGMA hard_heap_limit",
        "SELECT * FROM pragma_database_list",
        "SELECT load_extension('x')",
        "SELECT fts3_tokenizer('simple')",
        "SELECT writefile('x', 'y')",
        "VACUUM INTO 'x'",
        "REINDEX",
        "ANALYZE",
        "BEGIN",
        "EXPLAIN SELECT 1",
        "SELECT 1; SELECT 2",
        "",
        ";",
        "-- nothing",
        "SELECT ?",
        "SELECT :x",
        "SELECT 1 \0 2",
        "SELECT '\udcff'",
        "WITH x AS (SELECT 1) DELETE FROM models",
    ):
        yield case(f"`{word!a}`", word)
    yield case("infinity and nothing", "SELECT 9e999, -9e999, NULL", None)
    yield case("the largest number", "SELECT 9223372036854775807", None)
    yield case("a sum beyond", "SELECT sum(9223372036854775807) FROM (SELECT 1 UNION ALL SELECT 2)")
    yield case("a text that is no text", "SELECT CAST(x'ff00fe' AS TEXT)")


def select(data: bytes, folder: Path) -> None:
    from llamagen.analysis.records import records_of
    from llamagen.analysis.sql import sql
    from llamagen.spec.registry import Registry

    sql(records_of(Registry([])), data.decode("utf-8", "surrogateescape"))


# exported folders


def changes() -> Iterator[Case]:
    """What stands elsewhere in MANIFEST.json: a place, and a value in JSON."""

    def case(place: str, value: object, oracle: str | None = "LG775") -> Case:
        change = json.dumps({"place": place.split("."), "value": value})
        return Case(f"{place} = {json.dumps(value)[:40]}", change.encode(), oracle)

    recipe = "images.preprocessing"
    for value in (0, -5, 10**9, 2**70, 1.5, "56", None, True):
        yield case(f"{recipe}.tile_size", value)
        yield case(f"{recipe}.max_tiles", value)
        yield case(f"{recipe}.tokens_per_tile", value)
    yield case(f"{recipe}.tile_size", 8192)
    yield case(f"{recipe}.tile_size", 1, "LG714")
    yield case(f"{recipe}.tile_size", 12, "LG714")
    yield case(f"{recipe}.max_tiles", 1000, None)
    yield case(f"{recipe}.tokens_per_tile", 5)
    for colour in ([0, 0, 0], [1e-300, 1, 1], [-1, 1, 1], [1, 1], [1, 1, 1, 1], [2, 1, 1], None):
        yield case(f"{recipe}.std", colour)
    yield case(f"{recipe}.mean", [0, 0, 0])
    yield case(f"{recipe}.pixel_dtype", "float64")
    for name in ("image_token", "patch_token", "start_token", "end_token", "bos_token"):
        yield case(f"{recipe}.{name}", -1)
        yield case(f"{recipe}.{name}", 2**31)
    yield case(f"{recipe}.patch_token", 2**31 - 1)
    yield case(f"{recipe}.kind", "canvas")
    yield case(f"{recipe}.kind", "other")
    yield case(recipe, None, "LG783")
    yield case("images", None, "LG783")
    yield case("images", {})
    yield case("images.once", [], "LG760")
    yield case("images.once", ["model"], "LG760")
    yield case("images.once", ["other"])
    yield case("images.once", ["../model"])
    yield case("images.steps", [])
    yield case("images.steps", ["vision_encoder"], "LG786")
    yield case("images.steps", ["model"], "LG760")
    yield case("images.inputs", [], None)  # only said
    yield case("images.hand_overs", {}, "LG760")
    over = {"made_by": "x", "read_by": [], "placeholder": 60, "rows": 1}
    yield case("images.hand_overs", {"x": over})
    (name,) = ("image_features",)
    for rows in (0, -1, 2**40):
        yield case(f"images.hand_overs.{name}.rows", rows)
    yield case(f"images.hand_overs.{name}.rows", 7)
    yield case(f"images.hand_overs.{name}.placeholder", -1)
    yield case(f"images.hand_overs.{name}.placeholder", 1)
    for size in (-1, 2**63, 10**30, 1.0, "1"):
        yield case("files.model@onnx.size", size)
    yield case("files.model@onnx.size", 2**63 - 1, None)  # `run` reads no sizes
    yield case("files.model@onnx.sha256", "0")
    yield case("files.model@onnx.tensors", [{"name": "x", "stop": 2**63, "until": "0" * 16}])
    yield case("files", {"../x": {"size": 0, "sha256": "0" * 64}})
    yield case("max_context", 0)
    yield case("max_context", -1)
    yield case("max_context", 2**31)
    yield case("format", 2)
    yield case("dtype", "float8")
    yield case("graphs.model.file", "../model.onnx")
    yield case("graphs.model.opset.ai@onnx", 0)
    yield case("graphs.model.opset.ai@onnx", 2**64)
    yield case("weights.source.seed", -1)
    yield case("weights.source.seed", 2**63)
    yield case("session", {"session.disable_prepacking": "2"})
    yield case("session", {"session.model_external_initializers_file_folder_path": "/"})
    yield case("unknown", 1)
    yield case("llamagen", 1)


_FOLDERS: dict[str, Path] = {}


def exported(spec: str) -> Path:
    """A folder of a tiny model, once for the process."""
    import atexit
    import shutil
    import tempfile

    from llamagen import api

    if spec not in _FOLDERS:
        place = Path(tempfile.mkdtemp(prefix="hostile-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        api.load(COMMON / f"{spec}.yaml").export(place / "out", random_weights=7)
        _FOLDERS[spec] = place / "out"
    return _FOLDERS[spec]


COMMON = Path(__file__).parents[1] / "cases" / "common"
PROMPT = (53, 56, 4)
"""With the place of an image."""


def run_changed(data: bytes, folder: Path) -> None:
    import shutil

    from llamagen import api

    out = shutil.copytree(exported("seeing"), folder / "out")
    manifest = json.loads((out / "MANIFEST.json").read_text())
    change = json.loads(data)
    *way, last = (word.replace("@", ".") for word in change["place"])
    target = manifest
    for word in way:
        target = target[word]
    target[last] = change["value"]
    (out / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "image.png").write_bytes(png(9, 5, 0))
    list(api.run(out, PROMPT, images=[folder / "image.png"], max_new_tokens=3, threads=1))


# graphs of an exported folder

Change = Callable[["onnx.ModelProto"], None]


def _metadata(key: str, value: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        kept = [one for one in model.metadata_props if one.key != key]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        model.metadata_props.add(key=key, value=value)

    return change


def _renamed(old: str, new: str) -> Change:
    """An input or an output, with everything that says so."""

    def change(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return change


def _typed(name: str, element: int, shape: tuple[int | str, ...]) -> Change:
    """An input or output that says another type or shape; a cast keeps the graph right where it can."""

    def change(model: onnx.ModelProto) -> None:
        from onnx import helper

        for values in (model.graph.input, model.graph.output):
            for value in values:
                if value.name == name:
                    value.CopyFrom(helper.make_tensor_value_info(name, element, shape))

    return change


def _without(name: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for values in (model.graph.output, model.graph.input):
            kept = [value for value in values if value.name != name]
            del values[:]
            values.extend(kept)

    return change


def _computed(op: str, *, attributes: Mapping[str, Any] | None = None) -> Change:
    """Logits that go through one more operator."""

    def change(model: onnx.ModelProto) -> None:
        from onnx import helper

        for node in model.graph.node:
            node.output[:] = ["before" if name == "logits" else name for name in node.output]
        last = helper.make_node(op, ["before"], ["logits"], **(attributes or {}))
        model.graph.node.append(last)

    return change


def _more(name: str, element: int, shape: tuple[int | str, ...]) -> Change:
    """One more input, which a node reads."""

    def change(model: onnx.ModelProto) -> None:
        from onnx import helper

        model.graph.input.append(helper.make_tensor_value_info(name, element, shape))
        model.graph.node.append(helper.make_node("Identity", [name], [f"{name}/read"]))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}/read", element, shape))

    return change


def _constant(value: float) -> Change:
    """Logits that are all ``value``."""

    def change(model: onnx.ModelProto) -> None:
        from onnx import helper

        tensor = helper.make_tensor("value", 1, [], [value])
        _computed("Mul")(model)
        model.graph.node[-1].input.append("value")
        model.graph.node.insert(0, helper.make_node("Constant", [], ["value"], value=tensor))

    return change


def _nothing(model: onnx.ModelProto) -> None:
    pass


_GRAPHS: Mapping[str, tuple[Change, str | None]] = {
    "as it is": (_nothing, None),
    **{
        f"context {word!a}": (_metadata("llamagen.max_context", word), "LG760")
        for word in ("", "abc", "-1", "0", "1e3", "9" * 5_000, "\uff11", "1 ")
    },
    "a context of 2": (_metadata("llamagen.max_context", "2"), "LG764"),
    "in place": (_metadata("llamagen.in_place", "true"), "LG714"),
    "no logits": (_renamed("logits", "other"), "LG786"),
    "no output": (_without("logits"), "LG760"),
    "ids of another name": (_renamed("input_ids", "ids"), "LG760"),
    "ids of int32": (_typed("input_ids", 6, ("B", "S")), "LG760"),
    "ids that are numbers": (_typed("input_ids", 1, ("B", "S")), "LG713"),
    "ids of one dimension": (_typed("input_ids", 7, ("S",)), "LG713"),
    "ids of 7": (_typed("input_ids", 7, (1, 7)), "LG714"),
    "a batch of 2": (_typed("input_ids", 7, (2, "S")), "LG714"),
    "a mask of 99": (_typed("attention_mask", 7, (1, 99)), "LG714"),
    "a cache of one name": (_renamed("past_key_values.0.key", "past"), "LG760"),
    "a cache that is not written": (_renamed("present.0.key", "other"), "LG760"),
    "a cache of no output": (_without("present.0.key"), "LG760"),
    "a cache of words": (_typed("past_key_values.0.key", 1, ("B", "K", "P", "H")), "LG713"),
    "a cache of 10^9 heads": (_typed("past_key_values.0.key", 1, ("B", 10**9, "P", 8)), "LG713"),
    "a cache of 7 heads": (_typed("past_key_values.0.key", 1, ("B", 7, "P", 8)), "LG713"),
    "a cache of three dimensions": (_typed("past_key_values.0.key", 1, ("B", "P", 8)), "LG713"),
    "a cache of another type": (_typed("past_key_values.0.key", 10, ("B", 1, "P", 8)), "LG713"),
    "one more input": (_more("extra", 1, (1,)), "LG760"),
    "one more cache": (_more("past_key_values.9.key", 1, ("B", 1, "P", 8)), "LG760"),
    "an input of texts": (_more("extra", 8, (1,)), "LG760"),
    "NaN": (_constant(float("nan")), "LG768"),
    "infinity": (_constant(float("inf")), "LG768"),
    "no logits of a token": (_computed("NonZero"), "LG713"),
    "the shape of logits": (_computed("Shape"), "LG713"),
    "an operator that is none": (_computed("Nothing"), "LG713"),
    "the place of the largest": (_computed("ArgMax"), "LG713"),
    "logits of 7": (_typed("logits", 1, ("B", "S", 7)), "LG760"),
    "logits of V": (_typed("logits", 1, ("B", "S", "V")), "LG760"),
    "logits of two dimensions": (_typed("logits", 1, ("B", "V")), "LG760"),
    "a sum of logits": (_computed("ReduceSum", attributes={"keepdims": 0}), "LG760"),
}


def graphs() -> Iterator[Case]:
    for name, (_, oracle) in _GRAPHS.items():
        yield Case(name, name.encode(), oracle)
    yield Case("no graph", b"", "LG713")
    yield Case("half a graph", b"half", "LG713")


def changed(data: bytes, folder: Path) -> Path:
    import shutil

    import onnx

    out = shutil.copytree(exported("tiny"), folder / "out")
    path = out / "model.onnx"
    name = data.decode()
    if name in _GRAPHS:
        model = onnx.load(path, load_external_data=False)
        _GRAPHS[name][0](model)
        onnx.save(model, path)
    else:
        path.write_bytes(path.read_bytes()[: 1000 if name else 0])
    return out


def run_graph(data: bytes, folder: Path) -> None:
    from llamagen import api

    out = changed(data, folder)
    list(api.run(out, (5, 3, 2), max_new_tokens=3, threads=1))


_VERIFIED: Mapping[str, str | None] = {
    "in place": None,  # what `run` may do with buffers changes no number
    "NaN": "differs",
    "infinity": "differs",
    "no graph": "LG772",
    "half a graph": "LG770",
    "no logits": "LG760",
}


def verified_graphs() -> Iterator[Case]:
    for case in graphs():
        yield case._replace(oracle=_VERIFIED.get(case.name, case.oracle))


def verify_graph(data: bytes, folder: Path) -> None:
    from llamagen.api import verify_folder
    from llamagen.diagnostics import LlamagenError

    found = verify_folder(changed(data, folder), ("reference",), 1, prompt_tokens=3)
    if not found.passed:
        raise LlamagenError.of("differs", "a row is beyond its tolerance")


ENGINES: Mapping[str, Engine] = {
    "tokenizer": Engine(tokenizers, encode),
    "pth": Engine(pickles, read_pth),
    "template": Engine(templates, render),
    "image": Engine(images, decode),
    "sql": Engine(statements, select),
    "manifest": Engine(changes, run_changed),
    "graph": Engine(graphs, run_graph),
    "verified graph": Engine(verified_graphs, verify_graph),
}
