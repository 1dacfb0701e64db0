"""random_walk: all L steps P ← (1−α) G + α S P as one operator; its adjoint is in ``random_walk_backward``."""

from __future__ import annotations

from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._cuda import random_walk as persistent_walk
from nerve_kernels._operators.dispatch import Implementation
from nerve_kernels._operators.library import AFFINITY, Gradient, Operator, define_native

from . import random_walk_backward
from .affinity_operator import AffinityOperator, row_totals, working_dtype
from .cpp_affinity_operator import fake_walk, walk_cpp


def eager(seeds: Tensor, affinity: AffinityArguments, alpha: float, steps: int, normalize: bool) -> Tensor:
    """A loop over structured products; one write of the result in the seeds' dtype."""
    dtype = working_dtype(seeds, affinity)
    wide = seeds.to(dtype)
    p = AffinityOperator(affinity, dtype).walk(wide, wide, alpha, steps)
    if normalize:
        p = p / row_totals(p)
    # the caller's seeds are never handed back as the result
    return p.to(seeds.dtype, copy=p is seeds).contiguous()


def cpp(seeds: Tensor, affinity: AffinityArguments, alpha: float, steps: int, normalize: bool) -> Tensor:
    """The compiled kernel: two buffers of P beside the result; all steps in one call, unless that would take seconds.

    Parts stored in a lower precision are widened block by block, with one exception: a bfloat16 ``u`` on a processor
    that multiplies such numbers itself (AVX512_BF16). There what the cells hold is rounded too, as a deviation from its
    mean over the cells, so that what is constant over the picture stays so.
    """
    return walk_cpp(seeds, None, affinity, alpha, steps, normalize)


# implemented by csrc/cuda/
define_native(
    "_random_walk_cuda(Tensor seeds, Tensor? values, Tensor? u, SymInt[] grid, SymInt[] window, SymInt[] cells,"
    " float beta, float alpha, SymInt steps, bool normalize, SymInt[] plan) -> Tensor",
    fake_walk,
)
define_native("_random_walk_cuda_shared_bytes(Tensor like) -> SymInt")
define_native("_random_walk_cuda_resident_blocks(Tensor like, SymInt labels_per_lane, SymInt shared_bytes) -> SymInt")

random_walk = Operator(
    f"random_walk(Tensor seeds, {AFFINITY}, float alpha, SymInt steps, bool normalize) -> Tensor",
    eager=eager,
    fake=fake_walk,
    backward=Gradient(random_walk_backward.eager, cpp=random_walk_backward.cpp, triton="walk.random_walk_backward"),
    cpp=cpp,
    triton="walk.random_walk",
    cuda=Implementation(persistent_walk.run, persistent_walk.why_unsupported, persistent_walk.is_preferred),
    broadcasts=("values", "u", "v", "dense", "row_pointers", "columns"),
)
