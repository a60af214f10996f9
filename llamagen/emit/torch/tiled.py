"""Masks over the tiles of images, computed once a forward pass. View-models for the templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llamagen.emit.torch.code import Text, call, statement
from llamagen.emit.torch.constants import Constants
from llamagen.emit.torch.names import identifier
from llamagen.ir.graph import Node
from llamagen.ir.optypes import a_int


@dataclass(frozen=True, slots=True)
class TiledView:
    """A mask over the tiles of images, or from text to them; the second has a value for each text row too."""

    variables: tuple[str, ...]
    function: str
    arguments: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        made = call(self.function, *(Text(a) for a in self.arguments))
        return statement(f"{', '.join(self.variables)} = ", made, 2)


def tiled_view(node: Node, variables: Mapping[str, str], constants: Constants) -> TiledView:
    """The first operand and the sizes; the values of text rows are in the dtype of the model."""
    tiles = variables[node.operands[0].removeprefix("@")]
    tokens = constants.define("TILE_TOKENS", a_int(node.attrs, "tokens")).text
    if node.op == "cross_mask":
        names = tuple(identifier(r, "value") for r in node.results)
        return TiledView(names, "cross_masks", (tiles, tokens, "self.dtype"))
    padded = constants.define("PADDED_TILE_TOKENS", a_int(node.attrs, "padded")).text
    name = identifier(node.results[0], "value").replace("tile_mask", "image_mask")
    return TiledView((name,), "tile_mask", (tiles, tokens, padded))
