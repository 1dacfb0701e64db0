"""One call in front of all refiners: scores of labels in, refined scores at the picture's size out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from nerve_kernels._operators.checks import (
    check_batch,
    check_choice,
    check_flag,
    check_grid,
    check_list,
    check_same_device,
    check_tensor,
    refusal,
    shape_of,
)
from nerve_kernels.capturing import CapturedAttention
from nerve_kernels.grids import Grid

from .cliper import cliper
from .lposs import lposs
from .lposs_plus import lposs_plus
from .nerve import nerve
from .pamr import PAMR
from .similarity import similarity

Pair = tuple[Tensor, Tensor]
INPUTS = {
    "image": "the picture (B, 3, H, W)",
    "attention": "q and k (B, heads, N, d), a list of such pairs, or what capture has",
    "features": "(B, D, h, w) of a vision model",
}


@dataclass(frozen=True)
class Method:
    """One refiner: what it looks at, the function behind it, and whether it works on tokens or on pixels."""

    needs: str
    function: Callable[..., Any]
    on_pixels: bool = False


def pamr(
    image: Tensor,
    scores: Tensor,
    *,
    num_iter: int = 10,
    dilations: Sequence[int] = (8, 16),
    backend: str | None = None,
) -> Tensor:
    """:class:`~nerve_kernels.refiners.PAMR` as a function, with the settings of NACLIP."""
    return PAMR(num_iter, dilations, backend=backend)(image, scores)


METHODS = {
    "nerve": Method("attention", nerve),
    "cliper": Method("attention", cliper),
    "similarity": Method("features", similarity),
    "lposs": Method("features", lposs),
    "lposs+": Method("image", lposs_plus, on_pixels=True),
    "pamr": Method("image", pamr, on_pixels=True),
}


def refine(
    scores: Tensor,
    *,
    image: Tensor | None = None,
    attention: Pair | Sequence[Pair] | CapturedAttention | None = None,
    features: Tensor | None = None,
    method: str = "nerve",
    grid: Grid | None = None,
    stretch: bool = False,
    **settings: Any,
) -> Tensor:
    """Scores of labels refined by any method of the field, at the picture's size.

    ======================  =============  ===================================================================
    ``method``              needs          what it does
    ======================  =============  ===================================================================
    ``"nerve"``             ``attention``  :func:`~nerve_kernels.refiners.nerve`: this package's own
    ``"cliper"``            ``attention``  :func:`~nerve_kernels.refiners.cliper`: product of the heads
    ``"similarity"``        ``features``   :func:`~nerve_kernels.refiners.similarity`: ProxyCLIP's attention
    ``"lposs"``             ``features``   :func:`~nerve_kernels.refiners.lposs`: graph of similar patches
    ``"lposs+"``            ``image``      :func:`~nerve_kernels.refiners.lposs_plus`: graph of similar pixels
    ``"pamr"``              ``image``      :class:`~nerve_kernels.refiners.PAMR`: pixels of similar colour, with the
                                           settings of NACLIP (10 iterations over dilations 8 and 16)
    ======================  =============  ===================================================================

    Methods on tokens bring the scores to the tokens' grid and the result to the picture bilinearly
    (``align_corners=False``).

    Args:
        scores: (B, C, h, w): C labels on tokens or pixels, any size; float32, float16, bfloat16 or float64.
        image: The picture (B, 3, H, W), which also sets the size of the result; without it that of ``scores``.
        attention: (q, k) of a layer, each (B, heads, N, d), a list of such pairs, or what
            :func:`~nerve_kernels.capture` has of a model, which knows its grids.
        features: (B, D, h, w) of a vision model such as DINO.
        method: One of the table.
        grid: (h, w) of the tokens of ``attention``; ``None``: that of ``scores``, or the only square one.
        stretch: Scores of another aspect than ``image`` are refused, for they mostly are transposed or of another crop;
            ``True`` says that they cover the same picture, stretched.
        settings: Passed on to the method's function.

    Returns:
        (B, C, H, W), dtype of ``scores``.

    Raises:
        TypeError, ValueError: for a bad argument, named; where the method's input is missing, with what it needs.
        MemoryError: before work starts, with the bytes that it would take.

    Source: as the functions; this call is ours.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> q = torch.randn(1, 2, 64, 8, generator=torch.Generator().manual_seed(0))
        >>> scores, image = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 32, 32)
        >>> nk.refine(scores, image=image, attention=(q, q), window=3).shape
        torch.Size([1, 3, 32, 32])
    """
    check_tensor("scores", scores, 4, "(B, C, h, w)")
    if 0 in scores.shape[1:]:
        raise ValueError(refusal("scores", "at least one label and one token", shape_of(scores)))
    chosen = METHODS[check_choice("method", method, METHODS)]
    given = {"image": image, "attention": attention, "features": features}
    if given[chosen.needs] is None:
        raise ValueError(refusal(chosen.needs, f"{INPUTS[chosen.needs]}, which {method!r} looks at", None))
    check_flag("stretch", stretch)
    _check_settings(method, chosen, settings)
    size: Sequence[int] = scores.shape[2:]
    if image is not None:
        size = check_tensor("image", image, 4, "(B, 3, H, W)").shape[2:]
        check_batch("image", image.shape[0], scores.shape[0], " as scores have")
        check_same_device(scores=scores, image=image)
        if not stretch:
            _refuse_other_aspect(scores.shape[2:], size)
    if chosen.on_pixels:
        return chosen.function(image, scores, **settings)
    if chosen.needs == "features":
        check_tensor("features", features, 4, "(B, D, h, w)")
        assert features is not None
        tokens: Sequence[int] = features.shape[2:]
        inputs: tuple[Any, ...] = (features.flatten(2).transpose(1, 2),)
    else:
        q, k, grids = _queries_and_keys(attention)
        tokens = grids[0] if grids and grid is None else _token_grid(q, grid, scores.shape[2:])
        inputs = (q, k)
        if grids and method == "nerve":
            settings.setdefault("grids", grids)
            tokens = max(grids, key=lambda g: g[0] * g[1]) if grid is None else tokens
    if method in ("nerve", "lposs") and not {"grids", "positions"} & settings.keys():
        settings["grid"] = tuple(tokens)
    columns = resized(scores, tokens).flatten(2).transpose(1, 2)
    refined = chosen.function(*inputs, columns, **settings)
    return resized(refined.transpose(1, 2).unflatten(2, tuple(tokens)), size)


def resized(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned, in float32 or better; as it is where the size is the same."""
    if tuple(scores.shape[2:]) == tuple(size):
        return scores
    wide = scores if scores.dtype.itemsize >= 4 else scores.float()
    return functional.interpolate(wide, size=tuple(size), mode="bilinear", align_corners=False).to(scores.dtype)


def _check_settings(name: str, method: Method, settings: dict[str, Any]) -> None:
    parameters = inspect.signature(method.function).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    for setting in settings:
        if setting not in known:
            raise TypeError(refusal("settings", f"those of {name!r}: {', '.join(known)}", repr(setting)))


def _refuse_other_aspect(scores: Sequence[int], image: Sequence[int]) -> None:
    """Raise where no rounding of tokens explains that pixels a token differ along the two sides."""
    low = [pixels / (tokens + 1) for pixels, tokens in zip(image, scores, strict=True)]
    high = [pixels / max(tokens - 1, 0.5) for pixels, tokens in zip(image, scores, strict=True)]
    if max(low) >= min(high):
        wanted = f"the aspect of image, {image[0]} × {image[1]}"
        came = f"{scores[0]} × {scores[1]}"
        raise ValueError(refusal("scores", wanted, came, "transpose or crop them, or give stretch=True"))


def _queries_and_keys(attention: Any) -> tuple[Any, Any, list[Grid]]:
    """q and k of one layer, or of each as lists; and the grids, where they are known."""
    if isinstance(attention, CapturedAttention):
        layers = attention.layers
        if not layers:
            raise ValueError(refusal("attention", "at least one captured layer", "none", "run the model first"))
        return [layer.scaled_q for layer in layers], [layer.k for layer in layers], [layer.grid for layer in layers]
    wanted = "a pair (q, k), or a list of such pairs"
    given = check_list("attention", attention, wanted)
    if given and isinstance(given[0], Tensor):
        q, k = check_list("attention", given, wanted, length=2)
        return q, k, []
    pairs = [check_list(f"attention[{index}]", pair, "a pair (q, k)", length=2) for index, pair in enumerate(given)]
    if not pairs:
        raise ValueError(refusal("attention", wanted, "an empty list"))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs], []


def _token_grid(q: Any, grid: Grid | None, scores: Sequence[int]) -> Grid:
    """(h, w) of the finest layer's tokens: the one given, that of the scores, or the only square one."""
    if grid is not None:
        return check_grid("grid", grid)
    layers = [q] if isinstance(q, Tensor) else q
    for layer in layers:
        check_tensor("attention", layer, 4, "q and k (B, heads, N, d)")
    tokens = max(layer.shape[2] for layer in layers)
    if scores[0] * scores[1] == tokens:
        return scores[0], scores[1]
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(refusal("grid", f"(h, w) of the {tokens} tokens of attention", None))
    return side, side
