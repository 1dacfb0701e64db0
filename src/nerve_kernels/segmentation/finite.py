"""Numbers that are none are an error where they arise, not a label."""

from __future__ import annotations

import torch


class NotFiniteError(RuntimeError):
    """A model or a stage gave NaN or infinity; the message says which."""


def require_finite(values: torch.Tensor, maker: str) -> torch.Tensor:
    """Return ``values`` where all of them are finite.

    Args:
        values: What a phase has made; small beside what it took to make it.
        maker: The phase, one of :mod:`nerve_kernels.segmentation.phases`.

    Raises:
        NotFiniteError: names the phase and how many numbers are NaN or infinite.

    Example:
        >>> require_finite(torch.ones(2), "seeds")
        tensor([1., 1.])
    """
    finite = torch.isfinite(values)
    if not finite.all():
        raise NotFiniteError(
            f"{maker}: expected finite numbers, got NaN or infinity in {int((~finite).sum())} of {values.numel()}; "
            "the weights are damaged, or overflow their dtype: try float32"
        )
    return values
