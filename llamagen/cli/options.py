"""Options of a command that are the fields of a dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import typer

from llamagen.emit.options import Shown


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with an option for each field of its argument ``options``, a dataclass, in the place of that."""
    hints = get_type_hints(command, include_extras=True)
    kind = hints["options"]
    own = inspect.signature(command).parameters

    def run(**words: Any) -> None:
        command(options=_made(kind, words), **words)

    parameters: list[inspect.Parameter] = []
    for name, parameter in own.items():
        if name == "options":
            parameters += _parameters(kind)
        else:
            parameters.append(parameter.replace(annotation=hints[name]))
    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _parameters(kind: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from _parameters(hint)
            continue
        of, shown = get_args(hint)
        assert isinstance(shown, Shown)
        flag = shown.flag or f"--{field.name.replace('_', '-')}"
        option = typer.Option(flag, metavar=shown.metavar, help=shown.help)
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=field.default,
            annotation=Annotated[of, option],
        )


def _made(kind: Any, words: dict[str, Any]) -> Any:
    """An object of ``kind``, whose fields are taken out of ``words``."""
    hints = get_type_hints(kind)
    return kind(
        **{
            field.name: _made(hints[field.name], words)
            if is_dataclass(hints[field.name])
            else words.pop(field.name)
            for field in fields(kind)
        }
    )
