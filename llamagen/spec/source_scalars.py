"""What an unquoted YAML word means: one spelling per value, all others are refused.

YAML 1.1 (PyYAML, libyaml, Ruby) and YAML 1.2 (Go, Rust, JavaScript, editors) disagree about
`no`, `010`, `1e-5`, `1:30` and more. Accepted are `true`, `false`, `null`, decimal integers and
decimal fractions with a digit on both sides of the point; dates such as `2024-04-18` are text
(YAML 1.1 alone reads them as dates), because the schema knows where a date belongs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isinf

from llamagen.spec.source_nodes import ScalarValue

INT_LIMIT = 1 << 63

_INT = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_TRUE = frozenset({"true", "yes", "on", "y"})
_FALSE = frozenset({"false", "no", "off", "n"})
_WORD_LIMIT = 5  # the longest of the words above

_HEX = re.compile(r"[-+]?0x[0-9a-fA-F_]+")
_BINARY = re.compile(r"[-+]?0b[01_]+")
_NEW_OCTAL = re.compile(r"[-+]?0o[0-7]+")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|nan)", re.IGNORECASE)
_LOOSE_NUMBER = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
)
_SPELLINGS = (_HEX, _BINARY, _NEW_OCTAL, _LEADING_ZERO, _BASE_60, _LOOSE_NUMBER)
_NUMBER_LIMIT = 64  # longer ones are refused without computing what they would be


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a plain scalar has no value here: a code, a sentence and what to write instead."""

    code: str
    message: str
    help: str


def resolve_plain(text: str) -> ScalarValue | Refusal:
    """The value of an unquoted scalar, or why it is refused (LG020 to LG023)."""
    if not text:
        return Refusal(
            "LG022", "a value is missing here", "write the value, or `null`, or remove the key"
        )
    if text[0] in "-+.0123456789":
        return _resolve_number(text)
    if len(text) > _WORD_LIMIT:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    return _refuse_word(text) or text


def resolve_key(text: str) -> ScalarValue | Refusal:
    """What an unquoted key is to other readers. `y` and `n` are names: no common reader differs."""
    return text if text.lower() in ("y", "n") else resolve_plain(text)


def _refuse_word(text: str) -> Refusal | None:
    folded = text.lower()
    if folded in _TRUE or folded in _FALSE:
        value = "true" if folded in _TRUE else "false"
        if folded == value:
            why = f"`{text}` is one of several spellings of `{value}`, this format has one"
        else:
            why = f"`{text}` is `{value}` for YAML 1.1 readers and text for YAML 1.2 readers"
        return Refusal("LG020", why, f"write `{value}`, or `'{text}'` if you mean the text")
    if folded in ("null", "~"):
        why = f"`{text}` is one of several spellings of `null`, this format has one"
        return Refusal("LG022", why, f"write `null`, or `'{text}'` if you mean the text")
    if text == "=":
        why = "`=` is a special value for YAML 1.1 readers and text for YAML 1.2 readers"
        return Refusal("LG020", why, "write `'='` if you mean the text")
    return None


def _resolve_number(text: str) -> int | float | str | Refusal:
    if _INT.fullmatch(text):
        if len(text) > 20 or not -INT_LIMIT <= int(text) < INT_LIMIT:
            return Refusal(
                "LG023",
                f"{_shortened(text)} does not fit a signed 64-bit integer",
                "write a number from -2^63 to 2^63 - 1, or quote it if you mean the text",
            )
        return int(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        lost = number == 0.0 and re.search("[1-9]", re.split("[eE]", text)[0])
        if isinf(number) or lost:
            return Refusal(
                "LG023",
                f"{_shortened(text)} is outside the range of a 64-bit float",
                "write a number between 1.0e-307 and 1.0e+308 in magnitude",
            )
        return number
    return _refuse_number(text) or text


def _refuse_number(text: str) -> Refusal | None:
    """The refusal of a spelling that some YAML version reads as a number, or None for text."""
    shown = _shortened(text)
    quoted = "or quote it if you mean the text"
    digits = text.lstrip("+-").replace("_", "")
    sign = "-" if text.startswith("-") else ""
    if len(text) > _NUMBER_LIMIT:
        if any(spelling.fullmatch(text) for spelling in _SPELLINGS):
            return Refusal("LG021", f"{shown} is not a number of this format", quoted[3:])
        return None
    if _NOT_FINITE.fullmatch(text):
        return Refusal("LG021", f"`{shown}` is not a finite number", "write a finite number")
    if _HEX.fullmatch(text) and digits != "0x":
        why = f"`{shown}` is hexadecimal, numbers are written in decimal here"
        return Refusal("LG021", why, f"write `{sign}{int(digits, 16)}`, {quoted}")
    if _BINARY.fullmatch(text) and digits != "0b":
        why = f"`{shown}` is {sign}{int(digits, 2)} for YAML 1.1 readers and text for YAML 1.2"
        return Refusal("LG021", why, f"write `{sign}{int(digits, 2)}`, {quoted}")
    if _NEW_OCTAL.fullmatch(text):
        why = f"`{shown}` is text for YAML 1.1 readers and {sign}{int(digits, 8)} for YAML 1.2"
        return Refusal("LG021", why, f"write `{sign}{int(digits, 8)}`, {quoted}")
    if _LEADING_ZERO.fullmatch(text):
        return _refuse_leading_zero(shown, sign, digits)
    if _BASE_60.fullmatch(text):
        why = f"`{shown}` is a number in base 60 for YAML 1.1 readers and text for YAML 1.2"
        return Refusal("LG021", why, f"write `'{shown}'`, or the number in decimal")
    if _LOOSE_NUMBER.fullmatch(text):
        return _refuse_loose(text, shown, quoted)
    return None


def _refuse_leading_zero(shown: str, sign: str, digits: str) -> Refusal:
    decimal = f"{sign}{int(digits)}"
    if set(digits) <= set("01234567"):
        octal = f"{sign}{int(digits, 8)}"
        why = f"`{shown}` is octal ({octal}) for YAML 1.1 readers and {decimal} for YAML 1.2"
        options = f"write `{octal}` or `{decimal}`" if octal != decimal else f"write `{decimal}`"
        return Refusal("LG021", why, f"{options}, or quote it if you mean the text")
    why = f"`{shown}` is text for YAML 1.1 readers and {decimal} for YAML 1.2"
    return Refusal("LG021", why, f"write `{decimal}`, or quote it if you mean the text")


def _refuse_loose(text: str, shown: str, quoted: str) -> Refusal:
    sign = "-" if text.startswith("-") else ""
    mantissa, *exponent = re.split("[eE]", text.lstrip("+-").replace("_", ""))
    whole, dot, fraction = mantissa.partition(".")
    fixed = f"{sign}{str(int(whole)) if whole else '0'}"
    if dot or exponent:
        fixed += f".{fraction or '0'}" + "".join(f"e{power}" for power in exponent)
    if exponent and not dot:
        why = f"`{shown}` is text for YAML 1.1 readers and a number for YAML 1.2"
    elif "_" in text:
        why = f"`{shown}` is a number for YAML 1.1 readers and text for YAML 1.2"
    elif text.startswith("+"):
        why = f"`{shown}` has a sign that says nothing, this format has one spelling per number"
    elif dot and not (whole and fraction):
        why = f"`{shown}` needs a digit on both sides of its point"
    else:
        why = f"`{shown}` is not the one spelling that this format has for the number"
    return Refusal("LG021", why, f"write `{fixed}`, {quoted}")


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
