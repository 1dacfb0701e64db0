"""pixel_affinity: the weight of each neighbour of each pixel, from their colours, in planes (B, K, H·W)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nerve_kernels._operators.library import Gradient, Operator, accumulation_dtype, define_native
from nerve_kernels.grids import Grid, stencil_offsets

KINDS = ("contrast", "distance", "square")
"""-|Δ| over the deviation, as PAMR has it; -‖Δ‖ / scale; -‖Δ‖² / scale: the exponent of a weight."""
NORMALIZATIONS = ("none", "row", "symmetric")

# what PAMR divides by: so much of the deviation, and so much that it is not 0
DEVIATIONS, SMALLEST = 0.1, 1e-8


def _offsets(window: Sequence[int], dilations: Sequence[int]) -> list[Grid]:
    return stencil_offsets((window[0], window[1]), dilations, centre=False)


def _neighbours(planes: Tensor, offsets: Sequence[Grid]) -> Iterator[Tensor]:
    """Each neighbour's planes, (B, channels, H, W); beyond the border is the nearest pixel inside."""
    height, width = planes.shape[2:]
    y, x = torch.arange(height, device=planes.device), torch.arange(width, device=planes.device)
    for dy, dx in offsets:
        rows, columns = (y + dy).clamp(0, height - 1), (x + dx).clamp(0, width - 1)
        yield planes[:, :, rows][:, :, :, columns]


def _inside(image: Tensor, offset: Grid) -> Tensor:
    """Which pixels have a neighbour at ``offset``, (H, W)."""
    height, width = image.shape[2:]
    y = torch.arange(height, device=image.device) + offset[0]
    x = torch.arange(width, device=image.device) + offset[1]
    return ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))


def _root(squares: Tensor) -> Tensor:
    """√ with a gradient of 0 at 0."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), squares.clamp(max=0) * 0)


def _contrast(image: Tensor, offsets: Sequence[Grid], centres: int) -> Tensor:
    """Exponents of PAMR, (B, K, H, W). Moments are taken around the pixel, which is one of the samples."""
    total = squares = torch.zeros_like(image)
    for neighbour in _neighbours(image, offsets):
        difference = neighbour - image
        total, squares = total + difference, squares + difference.square()
    count = len(offsets) + centres
    deviation = _root((squares - total.square() / count) / (count - 1))
    divisor = SMALLEST + DEVIATIONS * deviation
    return torch.stack([-((n - image).abs() / divisor).mean(1) for n in _neighbours(image, offsets)], dim=1)


def _distance_weights(image: Tensor, offsets: Sequence[Grid], kind: str, scale: float, decay: float) -> Tensor:
    """exp(−‖Δ‖ / scale − decay · r²), or of ‖Δ‖², (B, K, H, W); 0 outside the grid."""
    planes = []
    for offset, neighbour in zip(offsets, _neighbours(image, offsets), strict=True):
        squares = (neighbour - image).square().sum(1)
        distance = squares if kind == "square" else _root(squares)
        weight = torch.exp(-distance / scale - decay * (offset[0] ** 2 + offset[1] ** 2))
        planes.append(torch.where(_inside(image, offset), weight, 0))
    return torch.stack(planes, dim=1)


def _normalized(weights: Tensor, offsets: Sequence[Grid], normalize: str) -> Tensor:
    """Rows that sum to 1, or D^−½ W D^−½ for the symmetric W; a row of zeros stays so."""
    if normalize == "none":
        return weights
    degree = weights.sum(1, keepdim=True)
    divisor = torch.where(degree == 0, 1, degree)
    if normalize == "row":
        return weights / divisor
    root = divisor.rsqrt()
    return weights * root * torch.cat(list(_neighbours(root, offsets)), dim=1)


def eager(
    image: Tensor,
    window: list[int],
    dilations: list[int],
    kind: str,
    scale: float,
    decay: float,
    normalize: str,
    bfloat16: bool,
) -> Tensor:
    """By shifts of the image, one neighbour after the other."""
    dtype, offsets = accumulation_dtype(image), _offsets(window, dilations)
    wide = image.to(dtype)
    if kind == "contrast":
        weights = _contrast(wide, offsets, len(dilations)).softmax(1)
    else:
        weights = _normalized(_distance_weights(wide, offsets, kind, scale, decay), offsets, normalize)
    return weights.flatten(2).to(torch.bfloat16 if bfloat16 else dtype).contiguous()


def fake(
    image: Tensor,
    window: list[int],
    dilations: list[int],
    kind: str,
    scale: float,
    decay: float,
    normalize: str,
    bfloat16: bool,
) -> Tensor:
    """A plane for each offset."""
    columns = (window[0] * window[1] - 1) * len(dilations)
    shape = (image.shape[0], columns, image.shape[2] * image.shape[3])
    return image.new_empty(shape, dtype=torch.bfloat16 if bfloat16 else accumulation_dtype(image))


# csrc/cpu/pixels/pixel_affinity.h
pixel_affinity_cpp = define_native(
    "_pixel_affinity_cpp(Tensor pixels, SymInt[] grid, SymInt[] offsets, bool clamp, int kind, int centres,"
    " float scale, float decay, int normalize, bool bfloat16) -> Tensor",
    lambda pixels, grid, offsets, *options: pixels.new_empty(
        (pixels.shape[0], len(offsets) // 2, pixels.shape[1]),
        dtype=torch.bfloat16 if options[-1] else accumulation_dtype(pixels),
    ),
)


def cpp(
    image: Tensor,
    window: list[int],
    dilations: list[int],
    kind: str,
    scale: float,
    decay: float,
    normalize: str,
    bfloat16: bool,
) -> Tensor:
    """The compiled kernel: weights of a piece of a row for all offsets, while its colours are in cache."""
    result: Tensor = pixel_affinity_cpp(
        image.flatten(2).transpose(1, 2),
        list(image.shape[2:]),
        [step for offset in _offsets(window, dilations) for step in offset],
        kind == "contrast",
        KINDS.index(kind),
        len(dilations),
        scale,
        decay,
        NORMALIZATIONS.index("row" if kind == "contrast" else normalize),
        bfloat16,
    )
    return result


def backward(
    grad: Tensor,
    image: Tensor,
    window: list[int],
    dilations: list[int],
    kind: str,
    scale: float,
    decay: float,
    normalize: str,
    bfloat16: bool,
) -> tuple[Tensor]:
    """Through the plain form, in float32 or better whatever the storage of the weights."""
    with torch.enable_grad():
        wide = image.detach().to(accumulation_dtype(image)).requires_grad_()
        weights = eager(wide, window, dilations, kind, scale, decay, normalize, False)
    (gradient,) = torch.autograd.grad(weights, wide, grad.to(weights.dtype))
    return (gradient,)


pixel_affinity = Operator(
    "pixel_affinity(Tensor image, SymInt[] window, SymInt[] dilations, str kind, float scale, float decay,"
    " str normalize, bool bfloat16) -> Tensor",
    eager=eager,
    fake=fake,
    cpp=cpp,
    backward=Gradient(backward, differentiable=False),
)
