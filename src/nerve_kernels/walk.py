"""Stage 3: the random walk with restart, L steps of it or its limit."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from ._arguments import AffinityArguments
from ._operators import walk as operators
from ._operators.checks import (
    check_backend,
    check_count,
    check_flag,
    check_number,
    check_same_device,
    check_shape,
    check_tensor,
    check_tokens,
    kind_of,
    refusal,
    shape_of,
)
from .affinity import Affinity, GraphAffinity, MixedAffinity

STOCHASTIC_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-2}
"""How far row sums may be from 1 under ``check=True``: rounding of the storage, not of the mathematics."""

MAX_STEPS = 10_000_000
"""The most steps of a walk. Where more are wanted, it is the limit that is wanted."""


def steps_for_tolerance(alpha: float, tol: float) -> int:
    """Steps after which every probability is within ``tol`` of the walk's limit: max(0, ⌈log tol / log α⌉).

    Holds for a row-stochastic affinity and seeds in [0, 1]: elementwise |P_L − P_∞| ≤ α^L.

    Args:
        alpha: α in [0, 1).
        tol: ε > 0.

    Returns:
        L ≥ 0; 0 for α = 0.

    Raises:
        TypeError, ValueError: for a bad argument, named.

    Example:
        >>> from nerve_kernels.walk import steps_for_tolerance
        >>> steps_for_tolerance(0.5, 0.1), steps_for_tolerance(0.0, 1e-9), steps_for_tolerance(0.9, 1.0)
        (4, 0, 0)
    """
    alpha = check_number("alpha", alpha, low=0, high=1, high_open=True, wanted="in [0, 1)")
    tol = check_number("tol", tol, low=math.ulp(0.0), high=math.inf, wanted="> 0")
    if alpha == 0 or tol >= 1:
        return 0
    steps = math.ceil(math.log(tol) / math.log(alpha))
    # the quotient of two rounded logarithms can land just above an integer that already suffices
    return steps - 1 if alpha ** (steps - 1) <= tol else steps


def _count_steps(alpha: float, steps: int | None, tol: float | None) -> int:
    """L of whichever of the two is given."""
    count = check_count("steps", steps) if tol is None else steps_for_tolerance(alpha, tol)
    if count > MAX_STEPS:
        name, came = ("steps", f"{count:,}") if tol is None else ("tol", f"{tol:.3g}, that is {count:,} at {alpha=}")
        do = "call random_walk_limit, which gives what infinitely many steps lead to"
        raise ValueError(refusal(name, f"at most {MAX_STEPS:,} steps", came, do))
    return count


def _operator_arguments(affinity: Affinity | Tensor, tokens: int) -> tuple[AffinityArguments, int]:
    """The affinity as the operator takes it, and its batch size."""
    if isinstance(affinity, Tensor):
        check_tensor("affinity", affinity, 3, "(B, N, N)")
        check_shape("affinity", affinity, (affinity.shape[0], tokens, tokens), "(B, N, N) for the seeds' N tokens")
        return AffinityArguments(dense=affinity), affinity.shape[0]
    if not isinstance(affinity, Affinity):
        wanted = "a LocalAffinity, GraphAffinity, LowRankAffinity, MixedAffinity or a dense tensor (B, N, N)"
        raise TypeError(refusal("affinity", wanted, kind_of(affinity)))
    arguments = affinity.operator_arguments()
    check_tokens("affinity", arguments.grid, tokens, "seeds")
    return arguments, affinity.shape[0]


def _prepare(seeds: Tensor, affinity: Affinity | Tensor) -> tuple[Tensor, AffinityArguments]:
    """Seeds as (B, N, C) and the operator's arguments, both checked against each other."""
    if not isinstance(seeds, Tensor) or seeds.dim() not in (2, 3):
        kind, came = (ValueError, shape_of(seeds)) if isinstance(seeds, Tensor) else (TypeError, kind_of(seeds))
        raise kind(refusal("seeds", "a torch.Tensor (B, N, C) or (N, C)", came))
    batched = seeds.unsqueeze(0) if seeds.dim() == 2 else seeds
    check_tensor("seeds", batched, 3, "(B, N, C)")
    arguments, batch = _operator_arguments(affinity, batched.shape[1])
    if batch not in (1, batched.shape[0]):
        raise ValueError(
            refusal("affinity", f"a batch of {batched.shape[0]} as seeds have, or 1 for all of them", batch)
        )
    values, u, v, dense = arguments.parts
    check_same_device(seeds=batched, values=values, u=u, v=v, affinity=dense)
    return batched, arguments


def _check_values(seeds: Tensor, affinity: Affinity | Tensor, *, stochastic: bool) -> None:
    """What ``check=True`` looks at; each look is a device synchronisation."""
    if not torch.isfinite(seeds).all():
        raise ValueError(refusal("seeds", "finite numbers", f"{int((~torch.isfinite(seeds)).sum())} that are not"))
    if isinstance(affinity, (GraphAffinity, MixedAffinity)):
        graph = affinity if isinstance(affinity, GraphAffinity) else affinity.local
        if isinstance(graph, GraphAffinity):
            graph.check_indices()
    if not stochastic:
        return
    if ((seeds < 0) | (seeds > 1)).any():
        came = f"values in [{seeds.min().item():.4g}, {seeds.max().item():.4g}]"
        do = "normalise them or give steps instead of tol"
        raise ValueError(refusal("seeds", "values in [0, 1], which tol needs", came, do))
    stored = affinity.dtype if isinstance(affinity, Tensor) else _lowest_dtype(affinity)
    # float32 sums would be too coarse for what float64 rows are held to
    dtype = torch.float64 if stored == torch.float64 else torch.float32
    ones = torch.ones((1, seeds.shape[1], 1), dtype=dtype, device=seeds.device)
    sums = affinity.to(dtype) @ ones if isinstance(affinity, Tensor) else affinity @ ones
    if (sums - 1).abs().max() > STOCHASTIC_TOLERANCE[stored]:
        came = f"sums in [{sums.min().item():.6g}, {sums.max().item():.6g}]"
        do = "normalise its rows or give steps instead of tol"
        raise ValueError(refusal("affinity", "rows that sum to 1, which tol needs", came, do))


def _lowest_dtype(affinity: Affinity) -> torch.dtype:
    dtypes = [part.dtype for part in affinity.operator_arguments().tensors]
    return max(dtypes, key=lambda dtype: STOCHASTIC_TOLERANCE[dtype])


def random_walk(
    seeds: Tensor,
    affinity: Affinity | Tensor,
    *,
    alpha: float,
    steps: int | None = None,
    tol: float | None = None,
    normalize: bool = True,
    check: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Random walk with restart on a token grid; deterministic: nothing is sampled.

    ``P₀ = G;  P_l = (1−α) G + α S P_{l−1},  l = 1 … L``; then each row is divided by its sum.

    Args:
        seeds: G, (B, N, C) or (N, C): C label probabilities for each of N = H·W tokens, row-major; float32, float16,
            bfloat16 or float64, any strides. Rows usually sum to 1.
        affinity: S, a :class:`LocalAffinity`, :class:`GraphAffinity`, :class:`LowRankAffinity`,
            :class:`MixedAffinity`, or a dense tensor (B, N, N); a batch of 1 serves all seeds. Its dtype may be lower
            than that of ``seeds`` (bfloat16 storage, float32 walk).
        alpha: α in [0, 1], the weight of the neighbours; 1−α is the weight of the restart. 1, without restart, needs
            ``steps``.
        steps: L from 0 to 10,000,000. Exactly one of ``steps`` and ``tol``.
        tol: ε > 0: L = max(0, ⌈log ε / log α⌉) steps, again 10,000,000 at most, after which every probability is within
            ε of the limit. Needs a row-stochastic S and G in [0, 1].
        normalize: Divide each row of the result by its sum (a row that sums to 0 stays as it is). ``False`` keeps the
            walk linear in G. With C = 1 it would return ones, and is refused.
        check: Also look at values: non-finite seeds, and for ``tol`` that S and G are what it needs. Synchronises.
        backend: ``None`` chooses; a named backend runs or raises. On a GPU, ``"cuda"`` runs all steps in one launch
            that holds the walk on chip, part after part: an image and a range of labels. It takes window values and
            cells, needs the blocks of one part resident at once, and is chosen where those of all parts are and U stays
            in shared memory as well: small B · C (21 labels on 64 × 64 tokens on an H100).
            Else ``"triton"`` runs, one launch a step, which also takes explicit factors and a dense S.

    Returns:
        P_L, shape and dtype of ``seeds``, accumulated in float32 or better.

    Raises:
        TypeError, ValueError: for a bad argument, named.
        BackendUnavailableError: where a named backend cannot run, with the reason.

    Names elsewhere:

    ======================================  ======================================================================
    networkx ``pagerank``                   ``alpha`` is α; ``personalization`` one column of G; it walks Sᵀ (forward)
    PyG ``APPNP``                           ``alpha`` there is the teleport, 1−α here; ``K`` is ``steps``
    PyG ``LabelPropagation``                ``alpha`` is α; ``num_layers`` is ``steps``; it clamps to [0, 1] each step
    scikit-image ``random_walker``          solves the limit with hard seeds; see :func:`random_walk_limit`
    PAMR                                    ``alpha=1``, a local S from colours; ``num_iter`` is ``steps``
    ======================================  ======================================================================

    Source: NERVE, arXiv 2511.08248, random walk refinement.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> G = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.5, 0.5]])
        >>> S = nk.LocalAffinity.from_dense(torch.ones(1, 3, 3), grid=(1, 3), window=(1, 3))
        >>> P = nk.random_walk(G, S, alpha=0.8, steps=10)
        >>> bool((P[:, 0] > 0.5).all()), P.shape  # the sure token has told the others
        (True, torch.Size([3, 2]))
    """
    check_backend(backend)
    batched, arguments = _prepare(seeds, affinity)
    value = check_number("alpha", alpha, low=0, high=1, wanted="in [0, 1]")
    if (steps is None) == (tol is None):
        raise ValueError(refusal("steps, tol", "exactly one of them", f"steps={steps!r} and tol={tol!r}"))
    if tol is not None and value == 1:
        raise ValueError(
            refusal("alpha", "a number in [0, 1) with tol", alpha, "give steps: without restart none suffice")
        )
    if tol is not None and arguments.symmetric:
        do = "give steps, or call random_walk_limit, which certifies it by its residual"
        raise ValueError(refusal("tol", "None with a symmetric affinity, whose rows need not sum to 1", tol, do))
    count = _count_steps(value, steps, tol)
    check_flag("check", check)
    if check_flag("normalize", normalize) and batched.shape[2] == 1:
        do = "give normalize=False: every row would be divided by itself and the result be all ones"
        raise ValueError(refusal("normalize", "False with a single label (C = 1)", True, do))
    if check:
        _check_values(batched, affinity, stochastic=tol is not None)
    result: Tensor = operators.random_walk(batched, *arguments, value, count, normalize, backend)
    return result[0] if seeds.dim() == 2 else result


def random_walk_limit(
    seeds: Tensor,
    affinity: Affinity | Tensor,
    *,
    alpha: float,
    tol: float = 1e-6,
    return_bound: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, float]:
    """Where the random walk ends after infinitely many steps, with a certified error; deterministic.

    ``P_∞ = (1−α)(I − αS)⁻¹ G``, solved by minimal residuals on the structured operator in float32 with corrections from
    residuals in float64 (a dense factorisation for small N), certified by the last of these: ``|P − P_∞| ≤ ‖r‖_∞ /
    (1−αρ)`` with ρ the largest absolute row sum of S.

    Args:
        seeds: G, (B, N, C) or (N, C); float32, float16, bfloat16 or float64.
        affinity: S, as for :func:`random_walk`; α times its largest absolute row sum must be below 1. With a
            ``symmetric`` :class:`GraphAffinity` that is not asked for: conjugate gradients, a solution for each column,
            with |P − P_∞| ≤ ‖r‖₂ / (1−α).
        alpha: α in [0, 1).
        tol: Largest elementwise error wanted, > 0. Where it is below what the dtype of ``seeds`` can hold, the best
            result is returned with a warning.
        return_bound: Also return the certified bound on the elementwise error, rounding to the dtype included.
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        P_∞, shape and dtype of ``seeds``; with ``return_bound`` also the bound as a float. Gradients are those of the
        exact limit (implicit differentiation). Stopping looks at the residual, which synchronises a GPU.

    Raises:
        TypeError, ValueError: for a bad argument, named.
        BackendUnavailableError: where a named backend cannot run, with the reason.

    Source: the limit of NERVE's walk, arXiv 2511.08248; the solver and its bound are ours.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> G = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> S = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])  # two tokens that only look at each other
        >>> P, bound = nk.random_walk_limit(G, S, alpha=0.5, return_bound=True)
        >>> [round(p, 4) for p in P[0].tolist()], bound < 1e-6
        ([0.6667, 0.3333], True)
    """
    check_backend(backend)
    batched, arguments = _prepare(seeds, affinity)
    value = check_number("alpha", alpha, low=0, high=1, high_open=True, wanted="in [0, 1)")
    wanted = check_number("tol", tol, low=math.ulp(0.0), high=math.inf, wanted="> 0")
    result, bound_tensor, _ = operators.random_walk_limit(batched, *arguments, value, wanted, backend)
    bound = float(bound_tensor)
    if not bound <= wanted:
        warnings.warn(
            f"random_walk_limit: tol={wanted:.3g} is below what {seeds.dtype} seeds allow here; "
            f"the result is certified to {bound:.3g}. Give float64 seeds or a larger tol",
            stacklevel=2,
        )
    unbatched = result[0] if seeds.dim() == 2 else result
    return (unbatched, bound) if return_bound else unbatched
