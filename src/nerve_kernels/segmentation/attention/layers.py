"""Which self-attention layers are meant: by token grid, relative to the latent, or by name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nerve_kernels._operators.checks import refusal

LAYER_SELECTORS = "a grid side such as 64 or 'grid:64', 'latent/2', or a module name or glob"


@dataclass(frozen=True)
class SelfAttentionLayer:
    """One self-attention layer of a model.

    Args:
        name: its module name, such as ``up_blocks.3.attentions.0.transformer_blocks.0.attn1``.
        shrink: how many times smaller its token grid is than the latent, along each side; than the grid of patches
            where there is no latent.
        heads: how many maps it has.
    """

    name: str
    shrink: int
    heads: int = 1


def is_layer_selector(selector: int | str) -> bool:
    """Whether a selector is well formed; whether any layer fits it, the model decides.

    Example:
        >>> [is_layer_selector(s) for s in (64, "grid:64", "latent/2", "up_blocks.3.*")]
        [True, True, True, True]
        >>> is_layer_selector(0) or is_layer_selector("latent/x") or is_layer_selector("")
        False
    """
    if isinstance(selector, int):
        return selector >= 1
    if selector.startswith("grid:"):
        return re.fullmatch(r"grid:[1-9]\d*", selector) is not None
    if selector.startswith("latent"):
        return re.fullmatch(r"latent/[1-9]\d*", selector) is not None
    return bool(selector.strip())


def check_layer_selector(selector: int | str) -> None:
    """Refuse a selector that is not well formed."""
    if not is_layer_selector(selector):
        raise ValueError(refusal("layers", LAYER_SELECTORS, repr(selector)))


def select_layers(
    layers: Sequence[SelfAttentionLayer],
    selectors: Sequence[int | str],
    *,
    latent_size: tuple[int, int],
) -> tuple[SelfAttentionLayer, ...]:
    """The layers any of the selectors means, each once, in the order of the model.

    Args:
        layers: all self-attention layers of a model in the order in which they run.
        selectors: an int n or ``"grid:n"``: the grid's shorter side is n tokens;
            ``"latent/n"``: the grid of the latent shrunk n times; else a module name, the
            beginning of one, or a glob.
        latent_size: (height, width) of the latent.

    Returns:
        At least one layer.

    Raises:
        ValueError: a selector that fits no layer; the message lists what there is.

    Example:
        >>> layers = [SelfAttentionLayer("down.attn1", 1), SelfAttentionLayer("mid.attn1", 2)]
        >>> [layer.name for layer in select_layers(layers, [8], latent_size=(16, 24))]
        ['mid.attn1']
        >>> [layer.name for layer in select_layers(layers, ["down"], latent_size=(16, 24))]
        ['down.attn1']
    """
    chosen: set[str] = set()
    for selector in selectors:
        check_layer_selector(selector)
        found = {layer.name for layer in layers if _fits(layer, selector, latent_size)}
        if not found:
            raise ValueError(
                f"layers: {selector!r} fits none of this model's self-attention layers for a "
                f"latent of {latent_size[0]}x{latent_size[1]}; there are: "
                f"{_describe(layers, latent_size)}"
            )
        chosen |= found
    if not chosen:
        raise ValueError(refusal("layers", "at least one selector, such as 'latent/1'", "none"))
    return tuple(layer for layer in layers if layer.name in chosen)


def _fits(layer: SelfAttentionLayer, selector: int | str, latent_size: tuple[int, int]) -> bool:
    if isinstance(selector, str) and selector.startswith("grid:"):
        selector = int(selector.removeprefix("grid:"))
    if isinstance(selector, int):
        return min(latent_size) // layer.shrink == selector
    if selector.startswith("latent/"):
        return layer.shrink == int(selector.removeprefix("latent/"))
    return layer.name.startswith(selector.rstrip(".") + ".") or fnmatch.fnmatchcase(layer.name, selector)


def _describe(layers: Sequence[SelfAttentionLayer], latent_size: tuple[int, int]) -> str:
    return ", ".join(
        f"{layer.name} (grid {latent_size[0] // layer.shrink}x{latent_size[1] // layer.shrink}, latent/{layer.shrink})"
        for layer in layers
    )
