"""LPOSS+: labels spread over pixels of similar colour."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from nerve_kernels._operators.checks import (
    check_backend,
    check_batch,
    check_number,
    check_same_device,
    check_tensor,
    refusal,
    shape_of,
)
from nerve_kernels.affinity import pixel_affinity

from .label_propagation import SOLUTION_BYTES, check_solver, propagate
from .memory import refuse_beyond_memory

SOLVER_VECTORS = 12


def lposs_plus(
    image: Tensor,
    scores: Tensor,
    *,
    tau: float = 0.01,
    window: int = 13,
    alpha: float = 0.95,
    iterations: int | None = None,
    tol: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    """Scores spread over pixels of similar colour, as LPOSS+ does after :func:`lposs`; all labels at once.

    ``(I − α S) X = Y``, ``S = D^−½ W D^−½``, ``W[i, j] = exp(−‖Lab_i − Lab_j‖ / τ)`` for j in a window around i, i left
    out, L divided by 100, a and b by 128. No factor 1 − α.

    Args:
        image: (B, 3, H, W), sRGB in [0, 1].
        scores: Y, (B, C, h, w), any real numbers; brought to the picture's size bilinearly (``align_corners=False``).
        tau: τ > 0.
        window: Side of the window in pixels, odd.
        alpha: α in [0, 1).
        iterations: So many conjugate gradient steps from 0, as the public code takes 10; ``None`` solves to ``tol``.
        tol: Largest elementwise error of X that is accepted, certified by the residual.
        backend: ``None`` chooses; a named backend makes the weights or raises.

    Returns:
        X, (B, C, H, W), dtype of ``scores``.

    Raises:
        TypeError, ValueError: for a bad argument, named; pixels that are not finite or not in [0, 1] among them.
        MemoryError: before work starts, with the bytes that it would take.

    Source: LPOSS (Stojnić et al., CVPR 2025), the pixel step of LPOSS+; the defaults are its settings (``window`` is
        its r). The public code builds the matrix of 168 entries a pixel in cupy and solves one label after the other,
        10 steps each.

    Example:
        >>> import torch
        >>> from nerve_kernels import refiners
        >>> image = torch.zeros(1, 3, 6, 8)
        >>> image[..., 4:] = 1.0
        >>> scores = torch.zeros(1, 1, 6, 8)
        >>> scores[..., 0] = 1.0
        >>> X = refiners.lposs_plus(image, scores, window=3)
        >>> bool(X[0, 0, 3, 3] > 1), bool(X[0, 0, 3, 4] < 1e-5)  # it spreads as far as the colour does
        (True, True)
    """
    check_backend(backend)
    check_tensor("image", image, 4, "(B, 3, H, W)")
    check_tensor("scores", scores, 4, "(B, C, h, w)")
    check_same_device(image=image, scores=scores)
    check_batch("image", image.shape[0], scores.shape[0], " as scores have")
    if 0 in scores.shape[1:] or image.shape[1] != 3 or 0 in image.shape[2:]:
        name, tensor = ("scores", scores) if 0 in scores.shape[1:] else ("image", image)
        raise ValueError(refusal(name, "at least one label and pixel, an image 3 channels", shape_of(tensor)))
    share, count, wanted = check_solver(alpha, iterations, tol)
    temperature = check_number("tau", tau, low=0, wanted="> 0", low_open=True)
    batch, labels = scores.shape[:2]
    pixels = image.shape[2] * image.shape[3]
    needed = 8 * len(image) * pixels * window**2 + 2 * 4 * batch * labels * pixels
    needed += SOLVER_VECTORS * max(SOLUTION_BYTES, 8 * batch * pixels)
    refuse_beyond_memory("image", needed, image.device, "give a smaller one, or a smaller window")
    S = pixel_affinity(
        image, window=window, kind="lab", tau=temperature, normalize="symmetric", check=True, backend=backend
    )
    wide = scores if scores.dtype.itemsize >= 4 else scores.float()
    if wide.shape[2:] != image.shape[2:]:
        wide = functional.interpolate(wide, size=image.shape[2:], mode="bilinear", align_corners=False)
    solved = propagate(S, wide.flatten(2).transpose(1, 2), share, count, wanted)
    return solved.transpose(1, 2).unflatten(2, tuple(image.shape[2:])).to(scores.dtype).contiguous()
