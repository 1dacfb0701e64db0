"""Stage 2 from an image: each pixel's weights over its neighbours, from their colours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators import pixels as operators
from nerve_kernels._operators.checks import (
    check_backend,
    check_choice,
    check_dilations,
    check_flag,
    check_number,
    check_tensor,
    check_window,
    refusal,
    shape_of,
)
from nerve_kernels._operators.library import accumulation_dtype
from nerve_kernels._operators.pixels.pixel_affinity import NORMALIZATIONS
from nerve_kernels.colours import rgb_to_lab
from nerve_kernels.grids import Grid

from .local import LocalAffinity

KINDS = ("pamr", "lab", "gaussian")
STORAGE = (None, torch.float32, torch.bfloat16)
LAB_SCALES = (100.0, 128.0, 128.0)
LPOSS_TAU, DEFAULT_SIGMA = 0.01, 0.1


def _of_kind(name: str, value: Any, kind: str, wanted: str, default: float | None) -> float | None:
    """A number > 0 that counts for one kind only; refused where it is given with another."""
    if value is None:
        return default
    if kind != wanted:
        raise ValueError(refusal(name, f"None with kind={kind!r}", value, f"it belongs to kind={wanted!r}"))
    return check_number(name, value, low=0, low_open=True, wanted="> 0")


def _check_image(image: Any, kind: str, *, values: bool) -> Tensor:
    check_tensor("image", image, 4, "(B, channels, H, W)")
    if min(image.shape[1:]) < 1:
        raise ValueError(refusal("image", "at least one channel and one pixel", shape_of(image)))
    if kind == "lab" and image.shape[1] != 3:
        raise ValueError(refusal("image", "3 channels, sRGB, with kind='lab'", shape_of(image)))
    if values and not torch.isfinite(image).all():
        raise ValueError(refusal("image", "finite numbers", f"{int((~torch.isfinite(image)).sum())} that are not"))
    if values and kind == "lab" and (image.amin() < 0 or image.amax() > 1):
        came = f"values in [{image.amin().item():.4g}, {image.amax().item():.4g}]"
        raise ValueError(refusal("image", "sRGB in [0, 1] with kind='lab'", came, "divide bytes by 255"))
    return image


def pixel_affinity(
    image: Tensor,
    *,
    window: int | Grid = 3,
    dilations: tuple[int, ...] = (1,),
    kind: str = "pamr",
    tau: float | None = None,
    sigma: float | None = None,
    distance_sigma: float | None = None,
    normalize: str | None = None,
    storage: torch.dtype | None = None,
    check: bool = False,
    backend: str | None = None,
) -> LocalAffinity:
    """Each pixel's weights over the neighbours in its window, from colours: S at the size of the image.

    ====================  ============================================================================================
    ``kind="pamr"``       ``softmax over j of mean over channels of −|xᵢ − xⱼ| / (1e-8 + 0.1 σᵢ)``, σᵢ the unbiased
                          standard deviation of a channel over all windows, the pixel itself once for each dilation;
                          beyond the border the edge again (``border="clamp"``)
    ``kind="lab"``        ``exp(−‖Labᵢ − Labⱼ‖ / τ)``, L divided by 100, a and b by 128
    ``kind="gaussian"``   ``exp(−‖xᵢ − xⱼ‖² / 2σ² − |i − j|² / 2σ_d²)``
    ====================  ============================================================================================

    A pixel is no neighbour of its own. Neighbours outside the image weigh nothing with ``"lab"`` and ``"gaussian"``.

    Args:
        image: (B, channels, H, W), float32, float16, bfloat16 or float64; for ``"lab"`` sRGB in [0, 1]. A pixel that is
            not a number makes the weights of those that see it so.
        window: Odd int or pair of odd ints, more than one pixel; 3 for PAMR, 13 for LPOSS+.
        dilations: Ints ≥ 1: how far apart the places of the window are; (1, 2, 4, 8, 12, 24) for PAMR.
        kind: ``"pamr"``, ``"lab"`` or ``"gaussian"``.
        tau: τ > 0 of ``"lab"``; 0.01 where it is None.
        sigma: σ > 0 of ``"gaussian"``, in the image's own units; 0.1 where it is None.
        distance_sigma: σ_d > 0 of ``"gaussian"``, in pixels; no such term where it is None.
        normalize: ``"row"``, rows sum to 1; ``"symmetric"``, D^−½ W D^−½; ``"none"``. None: rows, but for ``"lab"``
            none. A pixel without any weight keeps a row of zeros. ``"pamr"`` has rows.
        storage: ``torch.bfloat16`` stores the values in half the memory; None: float32, float64 for such an image.
        check: Also look at values, which synchronises: refuse pixels that are not finite, and for ``"lab"`` not in
            [0, 1].
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        :class:`LocalAffinity` on grid (H, W), without its centre. Its values (B, H·W, K) lie in planes (B, K, H·W),
        which is how the walk reads them fastest.

    Raises:
        TypeError, ValueError: for a bad argument, named.
        BackendUnavailableError: where a named backend cannot run, with the reason.

    Source: PAMR, Araslanov and Roth, CVPR 2020, eq. 2 and 3, with the constants of its code; LPOSS+, Stojnić et al.,
    CVPR 2025, eq. 9, which walks with ``normalize="symmetric"``.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> image = torch.zeros(1, 3, 4, 6)
        >>> image[..., 3:] = 1.0  # two halves
        >>> S = nk.pixel_affinity(image, window=3, kind="pamr")
        >>> masks = torch.tensor([[0.9, 0.1]]).repeat(24, 1)
        >>> P = nk.random_walk(masks, S, alpha=1.0, steps=10)
        >>> S.values.shape, round(P[0, 0].item(), 4)
        (torch.Size([1, 24, 8]), 0.9)
    """
    check_backend(backend)
    check_choice("kind", kind, KINDS)
    _check_image(image, kind, values=check_flag("check", check))
    grid = image.shape[2], image.shape[3]
    clamp = kind == "pamr"
    pair = check_window(window, grid, bounded=not clamp)
    spread = check_dilations(dilations, pair, grid, clamp=clamp)
    if pair == (1, 1):
        raise ValueError(refusal("window", "more than one pixel", window, "a pixel is no neighbour of its own"))
    temperature = _of_kind("tau", tau, kind, "lab", LPOSS_TAU)
    width = _of_kind("sigma", sigma, kind, "gaussian", DEFAULT_SIGMA)
    reach = _of_kind("distance_sigma", distance_sigma, kind, "gaussian", None)
    rows = check_choice("normalize", normalize or ("none" if kind == "lab" else "row"), NORMALIZATIONS)
    if kind == "pamr" and rows != "row":
        raise ValueError(refusal("normalize", "None or 'row' with kind='pamr'", repr(normalize)))
    if storage not in STORAGE:
        raise ValueError(refusal("storage", "None, torch.float32 or torch.bfloat16", storage))
    assert temperature is not None
    assert width is not None
    if kind == "pamr":
        colours, form, scale = image, "contrast", 1.0
    elif kind == "lab":
        lab = rgb_to_lab(image.to(accumulation_dtype(image)))
        colours = lab / torch.tensor(LAB_SCALES).to(lab).view(3, 1, 1)
        form, scale = "distance", temperature
    else:
        colours, form, scale = image, "square", 2 * width**2
    decay = 0.0 if reach is None else 1 / (2 * reach**2)
    planes: Tensor = operators.pixel_affinity(
        colours, pair, spread, form, scale, decay, rows, storage == torch.bfloat16, backend
    )
    if storage == torch.float32:
        planes = planes.float()
    border = "clamp" if clamp else "zero"
    return LocalAffinity(planes.transpose(1, 2), grid=grid, window=pair, dilations=spread, centre=False, border=border)
