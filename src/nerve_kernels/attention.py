"""Stage 1: how sharp is each attention head, how much weight does it get, and what is their sum.

Scores are scale · q kᵀ, attention is their softmax over keys. Nothing here allocates (heads, N, N) but the functions
whose purpose is a dense map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args, overload

import torch
from torch import Tensor

from ._operators.checks import (
    MAX_FLOAT32,
    MIN_NORMAL_FLOAT32,
    ONE_OR_MANY,
    check_backend,
    check_choice,
    check_count,
    check_head_weights,
    check_list,
    check_lse,
    check_number,
    check_queries_and_keys,
    check_same_device,
    check_scale,
    check_shape,
    check_tensor,
    kind_of,
    refusal,
    shape_of,
)

Criterion = Literal["entropy", "information"]


@overload
def attention_entropy(
    q: Tensor, k: Tensor, *, scale: float | None = ..., return_lse: Literal[False] = ..., backend: str | None = ...
) -> Tensor: ...
@overload
def attention_entropy(
    q: Tensor, k: Tensor, *, scale: float | None = ..., return_lse: Literal[True], backend: str | None = ...
) -> tuple[Tensor, Tensor]: ...
def attention_entropy(
    q: Tensor, k: Tensor, *, scale: float | None = None, return_lse: bool = False, backend: str | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Entropy of every attention row, without the attention map.

    ``𝓗ᵢ = −Σⱼ Aᵢⱼ log Aᵢⱼ`` with ``A = softmax(scale · q kᵀ)``, computed in one pass as ``log l − t/l`` with
    ``m = max s``, ``l = Σ e^{s−m}``, ``t = Σ e^{s−m}(s−m)``.

    Args:
        q: Queries (B, heads, N, d); float32, float16, bfloat16 or float64, any strides.
        k: Keys (B, heads, N_k, d), dtype and device of ``q``; N_k ≥ 1.
        scale: Factor of the scores; ``None`` means 1/√d.
        return_lse: Also return lse, which the other functions take to skip this pass.
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        Entropy (B, heads, N) in nats, in [0, log N_k], float32 (float64 for float64 inputs). With ``return_lse`` also
        lse (B, heads, N), ``log Σⱼ exp(scoreᵢⱼ)``, same dtype. A row that has a NaN score, or
        none but −∞, gives NaN in both.

    Raises:
        TypeError, ValueError: for a bad argument, named.
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
    entropy, lse = torch.ops.nerve_kernels.attention_entropy(q, k, check_scale(scale, q.shape[3]), backend)
    return (entropy, lse) if return_lse else entropy


def lse_or_compute(q: Tensor, k: Tensor, lse: Tensor | None, scale: float, backend: str | None) -> Tensor:
    """The row statistics handed over by the caller, or one entropy pass for them."""
    if lse is not None:
        check_lse(lse, q)
        return lse
    # a backend that the caller named runs both passes, or says that it cannot
    computed: Tensor = torch.ops.nerve_kernels.attention_entropy(q, k, scale, backend)[1]
    return computed


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
    result: Tensor = torch.ops.nerve_kernels.attention_marginal(
        q, k, lse_or_compute(q, k, lse, value, backend), value, backend
    )
    return result


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
    result: Tensor = torch.ops.nerve_kernels.attention_map_entropy(maps, backend)
    return result


@overload
def head_weights(
    entropy: Tensor,
    *,
    num_keys: int,
    temperature: float = ...,
    criterion: Criterion = ...,
    marginal: Tensor | None = ...,
    keep: int | None = ...,
) -> Tensor: ...
@overload
def head_weights(
    entropy: Sequence[Tensor],
    *,
    num_keys: Sequence[int],
    temperature: float = ...,
    criterion: Criterion = ...,
    marginal: Sequence[Tensor] | None = ...,
    keep: int | None = ...,
) -> list[Tensor]: ...
def head_weights(
    entropy: Tensor | Sequence[Tensor],
    *,
    num_keys: int | Sequence[int],
    temperature: float = 0.1,
    criterion: Criterion = "entropy",
    marginal: Tensor | Sequence[Tensor] | None = None,
    keep: int | None = None,
) -> Tensor | list[Tensor]:
    """Weight of each attention head, from how sharp (or how informative) its rows are.

    ``w = softmax_h(−mean_i 𝓗⁽ʰ⁾ᵢ / (τ log N_k))`` for ``criterion="entropy"`` (the paper: low entropy, high weight);
    ``w = softmax_h(I_h / (τ log N_k))`` with ``I_h = H(mean_i A⁽ʰ⁾ᵢ·) − mean_i 𝓗⁽ʰ⁾ᵢ`` for ``"information"`` (ours: the
    mutual information of query and key, near 0 for sinks, which entropy mistakes for sharp heads).

    Args:
        entropy: (B, heads, N) from :func:`attention_entropy`, nats; or a list, one for each layer (or timestep).
        num_keys: N_k of the layer, or a list. N_k = 1 says nothing about a head: such a layer scores 0.
        temperature: τ > 0. Small: the best head takes all; large: all heads alike.
        criterion: ``"entropy"`` or ``"information"``.
        marginal: (B, heads, N_k) from :func:`attention_marginal`, or a list; needed for ``"information"`` only.
        keep: Keep only this many of the best heads (over all layers) and give the others weight 0.

    Returns:
        (B, heads), sums to 1 over heads; for lists a list of (B, heads), which sums to 1 over all layers and heads.

    Raises:
        TypeError, ValueError: for a bad argument, named.

    Source: NERVE, arXiv 2511.08248, head weights; ``criterion="information"``, τ and ``keep`` are ours.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> entropy = torch.tensor([[[0.1, 0.1], [2.0, 2.0]]])  # a sharp head and a diffuse one
        >>> w = nk.head_weights(entropy, num_keys=16, temperature=0.5)
        >>> bool(w[0, 0] > w[0, 1]), round(w.sum().item(), 6)
        (True, 1.0)
    """
    single = isinstance(entropy, Tensor)
    entropies = [entropy] if isinstance(entropy, Tensor) else check_list("entropy", entropy, ONE_OR_MANY)
    one_count = isinstance(num_keys, (int, torch.SymInt))
    keys = [num_keys] if one_count else check_list("num_keys", num_keys, "an int, or a list of ints, one a layer")
    check_choice("criterion", criterion, get_args(Criterion))
    if not entropies:
        raise ValueError(refusal("entropy", "at least one layer", "an empty list"))
    check_list("num_keys", keys, f"{len(entropies)} numbers, one for each layer", length=len(entropies))
    marginals = _marginals(marginal, criterion, len(entropies))
    check_number("temperature", temperature, low=MIN_NORMAL_FLOAT32, high=MAX_FLOAT32, wanted="> 0")
    scores = [
        _head_scores(layer_entropy, layer_keys, layer_marginal, entropies[0])
        for layer_entropy, layer_keys, layer_marginal in zip(entropies, keys, marginals, strict=True)
    ]
    stacked = torch.cat(scores, dim=1)
    if keep is not None:
        check_count("keep", keep, low=1)
        if keep > stacked.shape[1]:
            raise ValueError(refusal("keep", f"at most the {stacked.shape[1]} heads there are", keep))
        # stable: of equally good heads the first ones are kept, on every run
        best = stacked.sort(dim=1, descending=True, stable=True).indices[:, :keep]
        stacked = torch.full_like(stacked, -math.inf).scatter(1, best, stacked.gather(1, best))
    # the best score becomes 0 first: however small τ is, 0/τ is 0, where a quotient of two infinities would be NaN
    weights = (
        ((stacked - stacked.amax(1, keepdim=True)) / temperature)
        .softmax(1)
        .split([score.shape[1] for score in scores], dim=1)
    )
    return weights[0] if single else list(weights)


def _marginals(marginal: Tensor | Sequence[Tensor] | None, criterion: str, layers: int) -> list[Tensor | None]:
    if criterion == "entropy":
        if marginal is not None:
            wanted = f"None, as criterion={criterion!r} does not use it"
            raise ValueError(refusal("marginal", wanted, kind_of(marginal), "give criterion='information' with it"))
        return [None] * layers
    if marginal is None:
        wanted = "attention_marginal(q, k) of each layer for criterion='information'"
        raise ValueError(refusal("marginal", wanted, None))
    found = [marginal] if isinstance(marginal, Tensor) else check_list("marginal", marginal, ONE_OR_MANY)
    return check_list("marginal", found, f"{layers} tensors, one for each layer", length=layers)


def _head_scores(entropy: Tensor, keys: int, marginal: Tensor | None, first: Tensor) -> Tensor:
    """(B, heads): what the softmax over heads is taken of, before the temperature."""
    check_tensor("entropy", entropy, 3, "(B, heads, N)")
    check_count("num_keys", keys, low=1)
    if entropy.shape[0] != first.shape[0]:
        both = f"{shape_of(first)} and {shape_of(entropy)}"
        raise ValueError(refusal("entropy", "one batch size in all layers", both))
    if entropy.shape[1] < 1 or entropy.shape[2] < 1:
        raise ValueError(refusal("entropy", "at least one head and one row to average", shape_of(entropy)))
    check_same_device(entropy=entropy, first_layer=first)
    dtype = torch.float64 if entropy.dtype == torch.float64 else torch.float32
    score = -entropy.to(dtype).mean(-1)
    if marginal is not None:
        check_tensor("marginal", marginal, 3, "(B, heads, N_k)")
        check_shape("marginal", marginal, (*entropy.shape[:2], keys), "(B, heads, N_k)")
        check_same_device(entropy=entropy, marginal=marginal)
        score = score + torch.special.entr(marginal.to(dtype)).sum(-1)
    return torch.zeros_like(score) if keys == 1 else score / math.log(keys)


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
    result: Tensor = torch.ops.nerve_kernels.fuse_attention(
        q, k, w, lse_or_compute(q, k, lse, value, backend), value, backend
    )
    return result


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
    result: Tensor = torch.ops.nerve_kernels.fuse_attention_maps(maps, w, backend)
    return result
