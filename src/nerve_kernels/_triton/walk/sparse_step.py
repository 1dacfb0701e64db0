"""A step where S_local is a stencil or a graph: what it gathers, and U T beside it by the kernel of the walk's step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._triton.launch import Launches

from .graph_step import GraphStep
from .stencil_step import StencilStep
from .walk_step import Step


def sparse_local(affinity: AffinityArguments) -> StencilStep | GraphStep | None:
    """S_local of an affinity as gathers, or None where it is a plain window or is not there."""
    if affinity.local_kind == "stencil":
        return StencilStep.of(affinity)
    return GraphStep.of(affinity) if affinity.local_kind == "graph" else None


@dataclass
class SparseStep:
    """As :class:`Step`. What S_local gathers goes to a buffer of its own, from which the kernel of U T starts."""

    local: StencilStep | GraphStep
    base_share: float
    local_share: float
    with_global: Step | None = None
    gathered: Tensor | None = None

    def plan(
        self,
        p: Tensor,
        pooled: Tensor | None,
        seeds: Tensor | None,
        out: Tensor,
        pooled_out: Tensor | None = None,
        normalize: bool = False,
    ) -> Launches:
        """The launches that write ``out`` and, where given, ``pooled_out``."""
        shares = self.base_share, self.local_share
        if self.with_global is None:
            return self.local.plan(p, seeds, out, *shares, normalize=normalize)
        if self.gathered is None:
            self.gathered = torch.empty(out.shape, dtype=torch.float32, device=out.device)
        step = self.with_global.plan(p, pooled, self.gathered, out, pooled_out, normalize)
        return self.local.plan(p, seeds, self.gathered, *shares).kept("p") + Launches(
            (step, ("p", "pooled", "out", "pooled_out"))
        )
