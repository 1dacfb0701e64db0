"""CLIPer's refiner: the product of the heads' sharpened attention maps, applied to the seeds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nerve_kernels._operators import attention as operators
from nerve_kernels._operators.checks import (
    ONE_OR_MANY,
    check_backend,
    check_list,
    check_number,
    check_queries_and_keys,
    check_same_device,
    check_scale,
    refusal,
)
from nerve_kernels.attention_layers import layer_prefix, one_or_many

from .seeds import as_given, batched_seeds


def cliper(
    q: Tensor | Sequence[Tensor],
    k: Tensor | Sequence[Tensor],
    seeds: Tensor,
    *,
    threshold: float = 0.1,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Seeds refined by the product of all heads' attention, as CLIPer does; no map is ever made.

    ``P = A₁ (A₂ (⋯ (A_H G)))`` with, of each head's ``A = softmax(scale · q kᵀ)``,
    ``A ← A / (max over queries + 1e-5);  A ← 0 where A < threshold;  A ← A / (sum over keys + 1e-5)``

    Multiplied from the right it takes N² C a head where the product of matrices takes N³, and scores are streamed:
    memory is linear in N. A row in which nothing reaches the threshold becomes 0. What is not a number in q or k makes
    all of the image's result NaN.

    Args:
        q: Queries (B, heads, N, d), or a list of layers, whose heads are multiplied in their order; float32, float16,
            bfloat16 or float64, any strides. All layers have the same N tokens.
        k: Keys, as ``q``.
        seeds: G, (B, N, C) or (N, C): scores of C labels for each token.
        threshold: What an entry has to reach, relative to the largest of its column, in [0, 1].
        scale: Factor of the scores; ``None`` means 1/√d of each layer.
        backend: ``None`` chooses; a named backend runs or raises.

    Returns:
        Refined scores, shape and dtype of ``seeds``. No gradient: asked for one, it raises.

    Raises:
        TypeError, ValueError: for a bad argument, named.
        BackendUnavailableError: where a named backend cannot run, with the reason.

    Source: CLIPer (Sun et al., ICCV 2025), fine-grained compensation: the product of the heads. The division by the
        largest entry of a column, the threshold of 0.1 and both 1e-5 are those of its public code, which takes heads of
        Stable Diffusion 2.1 on 64 × 64 tokens, multiplies the matrices first, and holds all of them.

    Example:
        >>> import torch
        >>> from nerve_kernels import refiners
        >>> q = torch.randn(1, 3, 16, 8, generator=torch.Generator().manual_seed(0))
        >>> refiners.cliper(q, q, torch.ones(16, 2)).shape
        torch.Size([16, 2])
    """
    check_backend(backend)
    queries = [q] if isinstance(q, Tensor) else check_list("q", q, ONE_OR_MANY)
    if not queries:
        raise ValueError(refusal("q", "at least one layer", "an empty list"))
    layers = list(zip(queries, one_or_many(k, "k", len(queries)), strict=True))
    limit = check_number("threshold", threshold, low=0, high=1, wanted="in [0, 1]")
    for index, (layer_q, layer_k) in enumerate(layers):
        prefix = layer_prefix(q, index)
        check_queries_and_keys(layer_q, layer_k, prefix)
        assert layer_k is not None
        for name, tensor in ((f"{prefix}q", layer_q), (f"{prefix}k", layer_k)):
            if tensor.shape[0] != layers[0][0].shape[0] or tensor.shape[2] != layers[0][0].shape[2]:
                wanted = f"{layers[0][0].shape[2]} tokens in a batch of {layers[0][0].shape[0]} as the first q has"
                came = f"{tensor.shape[2]} in a batch of {tensor.shape[0]}"
                raise ValueError(refusal(name, wanted, came, "self-attention of one resolution can be multiplied"))
    refined = batched_seeds(seeds, layers[0][0].shape[0], layers[0][0].shape[2], "q")
    check_same_device(q=layers[0][0], seeds=refined)
    factors = [check_scale(scale, layer_q.shape[3]) for layer_q, _ in layers]
    for (layer_q, layer_k), factor in zip(reversed(layers), reversed(factors), strict=True):
        refined = operators.cliper(layer_q, layer_k, refined, factor, limit, backend)
    return as_given(refined, seeds)
