"""Stage 2: S as the method has it, a share of the global affinity and a share of the local one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._arguments import UNUSED_PAIR, AffinityArguments
from nerve_kernels._operators.checks import (
    check_batch,
    check_number,
    check_same_device,
    check_tokens,
    check_type,
    refusal,
)
from nerve_kernels._operators.library import accumulation_dtype

from .base import Affinity
from .graph import GraphAffinity
from .local import LocalAffinity
from .low_rank import LowRankAffinity


@dataclass(frozen=True, eq=False)
class MixedAffinity(Affinity):
    """S = β S_global + (1−β) S_local; made by :func:`mix`."""

    low_rank: LowRankAffinity
    local: LocalAffinity | GraphAffinity
    beta: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, N, N)."""
        batch, tokens, _ = self.local.shape
        return max(batch, self.low_rank.shape[0]), tokens, tokens

    def operator_arguments(self) -> AffinityArguments:
        """Both parts; a part with no share is left out, so that a walk spends nothing on it."""
        if self.beta == 0:
            return self.local.operator_arguments()
        if self.beta == 1:
            return self.low_rank.operator_arguments()
        low_rank = self.low_rank
        return self.local.operator_arguments()._replace(
            u=low_rank.u,
            v=low_rank.v,
            grid=low_rank.grid,
            cells=low_rank.cells or UNUSED_PAIR,
            beta=self.beta,
            symmetric=False,
        )

    def _product(self, p: Tensor) -> Tensor:
        wide = p.to(accumulation_dtype(self.local.values, self.low_rank.u, p))
        if self.beta == 0:
            return self.local._product(p)
        if self.beta == 1:
            return self.low_rank._product(p)
        mixed = self.beta * self.low_rank._product(wide) + (1 - self.beta) * self.local._product(wide)
        return mixed.to(p.dtype)

    def to(self, *args: Any, **kwargs: Any) -> MixedAffinity:
        """The same affinity in another dtype or on another device, as ``torch.Tensor.to``."""
        return replace(self, low_rank=self.low_rank.to(*args, **kwargs), local=self.local.to(*args, **kwargs))

    def to_dense(self) -> Tensor:
        """The (B, N, N) matrix."""
        return self.beta * self.low_rank.to_dense() + (1 - self.beta) * self.local.to_dense()


def mix(s_global: LowRankAffinity, s_local: LocalAffinity | GraphAffinity, beta: float = 0.5) -> MixedAffinity:
    """The affinity of the method: a share of the global affinity and a share of the local one.

    ``S = β S_global + (1−β) S_local``

    Args:
        s_global: Low-rank affinity (B, N, N).
        s_local: Local affinity on the same grid and device, or a graph of as many tokens; a batch of 1 broadcasts.
        beta: β in [0, 1], the share of ``s_global``.

    Returns:
        :class:`MixedAffinity`; row-stochastic where both parts are.

    Raises:
        TypeError, ValueError: for a bad argument, named.

    Source: NERVE, arXiv 2511.08248, S = β S_global + (1−β) S_local.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> s_global = nk.LowRankAffinity(torch.ones(1, 4, 1), grid=(2, 2), cells=(1, 1))
        >>> s_local = nk.LocalAffinity(torch.ones(1, 4, 1), grid=(2, 2), window=1)
        >>> nk.mix(s_global, s_local, beta=0.5).to_dense()[0, 0].tolist()
        [0.625, 0.125, 0.125, 0.125]
    """
    check_type("s_global", s_global, LowRankAffinity)
    check_type("s_local", s_local, (LocalAffinity, GraphAffinity), "a LocalAffinity or a GraphAffinity")
    value = check_number("beta", beta, low=0, high=1, wanted="in [0, 1]")
    if isinstance(s_local, GraphAffinity):
        check_tokens("s_global", s_global.grid, s_local.shape[1], "s_local")
    elif s_global.grid != s_local.grid:
        raise ValueError(refusal("s_local", f"the grid of s_global, {s_global.grid}", s_local.grid))
    check_batch("s_local", s_local.shape[0], s_global.shape[0])
    check_same_device(s_global=s_global.u, s_local=s_local.values)
    return MixedAffinity(s_global, s_local, value)


torch.export.register_dataclass(MixedAffinity, serialized_type_name="nerve_kernels.MixedAffinity")
