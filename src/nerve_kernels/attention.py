"""Stage 1: how sharp is each attention head, and what is the weighted sum of all; the weights are in ``heads``.

Scores are scale · q kᵀ, attention is their softmax over keys. Nothing here allocates (heads, N, N) but the functions
whose purpose is a dense map.
"""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from ._operators import attention as operators
from ._operators.attention.overflow import refuse_overflow
from ._operators.checks import (
    check_backend,
    check_flag,
    check_head_weights,
    check_lse,
    check_queries_and_keys,
    check_scale,
    check_tensor,
)


@overload
def attention_entropy(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
    check: bool = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def attention_entropy(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = ...,
    return_lse: Literal[True],
    check: bool = ...,
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...
def attention_entropy(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    check: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Entropy of every attention row, without the attention map.

    ``𝓗ᵢ = −Σⱼ Aᵢⱼ log Aᵢⱼ`` with ``A = softmax(scale · q kᵀ)``, computed in one pass as ``log l − t/l`` with
    ``m = max s``, ``l = Σ e^{s−m}``, ``t = Σ e^{s−m}(s−m)``.

    Args:
        q: Queries (B, heads, N, d); float32, float16, bfloat16 or float64, any strides.
        k: Keys (B, heads, N_k, d), dtype and device of ``q``; N_k ≥ 1.
        scale: Factor of the scores; ``None`` means 1/√d.
        return_lse: Also return lse, which the other functions take to skip this pass.
        check: Also look at what a GPU has computed, which waits for it: see below. On the CPU that is always done.
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        Entropy (B, heads, N) in nats, in [0, log N_k], float32 (float64 for float64 inputs). With ``return_lse`` also
        lse (B, heads, N), ``log Σⱼ exp(scoreᵢⱼ)``, same dtype. A row that has a NaN score, or
        none but −∞, gives NaN in both.

    Raises:
        TypeError, ValueError: for a bad argument, named. On the CPU, and on a GPU with ``check``, also where finite q
            and k have scores past float32; else such rows are NaN.
        BackendUnavailableError: where a named backend cannot run, with the reason.

    Source: NERVE, arXiv 2511.08248, head entropy 𝓗⁽ʰ⁾.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> q = torch.zeros(1, 2, 9, 4)  # all scores equal: every row is uniform over 9 keys
        >>> nk.attention_entropy(q, q)[0, 0, 0].item() - torch.tensor(9.0).log().item() < 1e-6
        True
    """
    check_backend(backend)
    check_queries_and_keys(q, k)
    waits = check_flag("check", check)
    entropy, lse = operators.attention_entropy(q, k, check_scale(scale, q.shape[3]), backend)
    if waits:
        refuse_overflow(q, k, lse)
    return (entropy, lse) if return_lse else entropy


def lse_or_compute(
    q: Tensor, k: Tensor, lse: Tensor | None, scale: float, backend: str | None, prefix: str = ""
) -> Tensor:
    """The row statistics handed over by the caller, or one entropy pass for them."""
    if lse is not None:
        check_lse(lse, q, prefix)
        return lse
    # a backend that the caller named runs both passes, or says that it cannot
    return operators.attention_entropy(q, k, scale, backend)[1]


def attention_marginal(
    q: Tensor, k: Tensor, *, scale: float | None = None, lse: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Mean attention that each key receives over all queries, without the attention map.

    ``mⱼ = (1/N) Σᵢ Aᵢⱼ``.

    Args:
        q: Queries (B, heads, N, d); float32, float16, bfloat16 or float64, any strides.
        k: Keys (B, heads, N_k, d), dtype and device of ``q``.
        scale: Factor of the scores; ``None`` means 1/√d.
        lse: Row statistics (B, heads, N) from :func:`attention_entropy`, made with the same ``scale``; ``None``
            computes them.
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        (B, heads, N_k), non-negative, sums to 1 over keys, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: for a bad argument, named.
        BackendUnavailableError: where a named backend cannot run, with the reason.

    Source: ours; the first term of the mutual information of query and key, see :func:`head_weights`.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> q = torch.zeros(1, 1, 4, 8)
        >>> nk.attention_marginal(q, q)[0, 0].tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    check_backend(backend)
    check_queries_and_keys(q, k)
    value = check_scale(scale, q.shape[3])
    return operators.attention_marginal(q, k, lse_or_compute(q, k, lse, value, backend), value, backend)


def attention_map_entropy(maps: Tensor, *, backend: str | None = None) -> Tensor:
    """Entropy of every row of explicit attention maps.

    ``𝓗ᵢ = −Σⱼ Aᵢⱼ log Aᵢⱼ``, with ``0 · log 0 = 0``.

    Args:
        maps: Attention (B, heads, N, N_k), rows sum to 1; float32, float16, bfloat16 or float64.
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        (B, heads, N) in nats, float32 (float64 for float64 maps).

    Raises:
        TypeError, ValueError: for a bad argument, named.

    Source: NERVE, arXiv 2511.08248, head entropy 𝓗⁽ʰ⁾.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> nk.attention_map_entropy(torch.eye(3).expand(1, 1, 3, 3)).tolist()
        [[[0.0, 0.0, 0.0]]]
    """
    check_backend(backend)
    check_tensor("maps", maps, 4, "(B, heads, N, N_k)")
    return operators.attention_map_entropy(maps, backend)


def fuse_attention(
    q: Tensor,
    k: Tensor,
    w: Tensor,
    *,
    scale: float | None = None,
    lse: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Weighted sum of the heads' attention maps as one dense map, for who wants it whole.

    ``A_w = Σ_h w_h softmax(scale · q⁽ʰ⁾ k⁽ʰ⁾ᵀ)``. The affinities do not need it: see :func:`local_affinity` and
    :func:`global_affinity`.

    Args:
        q: Queries (B, heads, N, d); float32, float16, bfloat16 or float64, any strides.
        k: Keys (B, heads, N_k, d), dtype and device of ``q``.
        w: Head weights (B, heads), from :func:`head_weights`.
        scale: Factor of the scores; ``None`` means 1/√d.
        lse: Row statistics (B, heads, N) from :func:`attention_entropy`; ``None`` computes them.
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        (B, N, N_k) in the dtype of ``q``; rows sum to Σ w.

    Raises:
        TypeError, ValueError: for a bad argument, named.
        BackendUnavailableError: where a named backend cannot run, with the reason.

    Source: NERVE, arXiv 2511.08248, fused map A_w.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> q = torch.randn(1, 2, 6, 4, generator=torch.Generator().manual_seed(0))
        >>> A = nk.fuse_attention(q, q, torch.tensor([[0.5, 0.5]]))
        >>> A.shape, bool((A.sum(-1) - 1).abs().max() < 1e-6)
        (torch.Size([1, 6, 6]), True)
    """
    check_backend(backend)
    check_queries_and_keys(q, k)
    check_head_weights(w, q)
    value = check_scale(scale, q.shape[3])
    return operators.fuse_attention(q, k, w, lse_or_compute(q, k, lse, value, backend), value, backend)


def fuse_attention_maps(maps: Tensor, w: Tensor, *, backend: str | None = None) -> Tensor:
    """Weighted sum of explicit attention maps over heads.

    ``A_w = Σ_h w_h A⁽ʰ⁾``.

    Args:
        maps: Attention (B, heads, N, N_k); float32, float16, bfloat16 or float64.
        w: Head weights (B, heads).
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        (B, N, N_k) in the dtype of ``maps``, accumulated in float32 or better.

    Raises:
        TypeError, ValueError: for a bad argument, named.

    Source: NERVE, arXiv 2511.08248, fused map A_w.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> maps = torch.stack([torch.eye(2), torch.full((2, 2), 0.5)]).unsqueeze(0)
        >>> nk.fuse_attention_maps(maps, torch.tensor([[0.5, 0.5]])).tolist()
        [[[0.75, 0.25], [0.25, 0.75]]]
    """
    check_backend(backend)
    check_tensor("maps", maps, 4, "(B, heads, N, N_k)")
    check_head_weights(w, maps)
    return operators.fuse_attention_maps(maps, w, False, backend)
