"""Stage 1, the weights: how much each attention head counts, from how sharp or how informative its rows are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor

from ._operators import attention as operators
from ._operators.checks import (
    MAX_FLOAT32,
    MIN_NORMAL_FLOAT32,
    ONE_OR_MANY,
    check_choice,
    check_count,
    check_list,
    check_number,
    check_same_device,
    check_shape,
    check_tensor,
    kind_of,
    refusal,
    shape_of,
)
from ._operators.library import accumulation_dtype

Criterion = Literal["entropy", "information", "cell_information", "uniform"]
CRITERIA = get_args(Criterion)
_OWN_SUMS = (torch.float32, torch.float64)  # dtypes whose means are taken in them


@overload
def head_weights(
    entropy: Tensor,
    *,
    num_keys: int,
    temperature: float = ...,
    criterion: Criterion = ...,
    marginal: Tensor | None = ...,
    pooled: Tensor | None = ...,
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
    pooled: Sequence[Tensor] | None = ...,
    keep: int | None = ...,
) -> list[Tensor]: ...
def head_weights(
    entropy: Tensor | Sequence[Tensor],
    *,
    num_keys: int | Sequence[int],
    temperature: float = 0.1,
    criterion: Criterion = "entropy",
    marginal: Tensor | Sequence[Tensor] | None = None,
    pooled: Tensor | Sequence[Tensor] | None = None,
    keep: int | None = None,
) -> Tensor | list[Tensor]:
    """Weight of each attention head, from how sharp (or how informative) its rows are.

    ``w = softmax_h(−mean_i 𝓗⁽ʰ⁾ᵢ / (τ log N_k))`` for ``criterion="entropy"`` (the paper: low entropy, high weight);
    ``w = softmax_h(I_h / (τ log N_k))`` with ``I_h = H(mean_i A⁽ʰ⁾ᵢ·) − mean_i 𝓗⁽ʰ⁾ᵢ`` for ``"information"`` (ours: the
    mutual information of query and key, near 0 for sinks, which entropy mistakes for sharp heads); the mutual
    information of query and *cell*, in place of key, over log M for ``"cell_information"`` (ours: as good in our
    measurements, and free where :func:`attention_statistics` has kept the cells); the same weight for every head,
    whatever its rows, for ``"uniform"`` (ours: what the others are measured against).

    Args:
        entropy: (B, heads, N) from :func:`attention_entropy`, nats; or a list, one for each layer (or timestep).
        num_keys: N_k of the layer, or a list. N_k = 1 says nothing about a head: such a layer scores 0.
        temperature: τ > 0. Small: the best head takes all; large: all heads alike.
        criterion: ``"entropy"``, ``"information"``, ``"cell_information"`` or ``"uniform"``.
        marginal: (B, heads, N_k) from :func:`attention_marginal`, or a list; needed for ``"information"`` only.
        pooled: (B, heads, N, M) of :func:`attention_statistics`, or a list; needed for ``"cell_information"`` only.
        keep: Keep the ``keep`` best heads (over all layers) and give the others weight 0; of equally good ones, as
            all are for ``"uniform"``, the first.

    Returns:
        (B, heads), sums to 1 over heads; for lists a list of (B, heads), which sums to 1 over all layers and heads.

    Raises:
        TypeError, ValueError: for a bad argument, named.

    Source: NERVE, arXiv 2511.08248, head weights; the other criteria, τ and ``keep`` are ours.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> entropy = torch.tensor([[[0.1, 0.1], [2.0, 2.0]]])  # a sharp head and a diffuse one
        >>> w = nk.head_weights(entropy, num_keys=16, temperature=0.5)
        >>> bool(w[0, 0] > w[0, 1]), round(w.sum().item(), 6)
        (True, 1.0)
    """
    if criterion == "cell_information":
        entropy, num_keys, marginal = _of_cells(entropy, marginal, pooled)
        criterion = "information"
    elif pooled is not None:
        wanted = f"None, as criterion={criterion!r} does not use it"
        raise ValueError(refusal("pooled", wanted, kind_of(pooled), "give criterion='cell_information' with it"))
    single = isinstance(entropy, Tensor)
    if single and criterion == "entropy" and marginal is None and keep is None and isinstance(num_keys, int):
        return _weights_of_one_layer(entropy, num_keys, temperature)  # type: ignore[arg-type]
    entropies = [entropy] if isinstance(entropy, Tensor) else check_list("entropy", entropy, ONE_OR_MANY)
    one_count = isinstance(num_keys, (int, torch.SymInt))
    keys = [num_keys] if one_count else check_list("num_keys", num_keys, "an int, or a list of ints, one a layer")
    check_choice("criterion", criterion, CRITERIA)
    if not entropies:
        raise ValueError(refusal("entropy", "at least one layer", "an empty list"))
    if len(keys) != len(entropies):
        raise ValueError(refusal("num_keys", f"{len(entropies)} numbers, one for each layer", len(keys)))
    marginals = _marginals(marginal, criterion, len(entropies))
    _check_temperature(temperature)
    scores = [
        _head_scores(layer_entropy, layer_keys, layer_marginal, entropies[0], criterion)
        for layer_entropy, layer_keys, layer_marginal in zip(entropies, keys, marginals, strict=True)
    ]
    stacked = scores[0] if single else torch.cat(scores, dim=1)
    if keep is not None:
        check_count("keep", keep, low=1)
        if keep > stacked.shape[1]:
            raise ValueError(refusal("keep", f"at most the {stacked.shape[1]} heads there are", keep))
        # stable: of equally good heads the first ones are kept, on every run
        best = stacked.sort(dim=1, descending=True, stable=True).indices[:, :keep]
        stacked = torch.full_like(stacked, -math.inf).scatter(1, best, stacked.gather(1, best))
    # the best score becomes 0 first: however small τ is, 0/τ is 0, where a quotient of two infinities would be NaN
    weights = ((stacked - stacked.amax(1, keepdim=True)) / temperature).softmax(1)
    return weights if single else list(weights.split([score.shape[1] for score in scores], dim=1))


def _weights_of_one_layer(entropy: Tensor, keys: int, temperature: float) -> Tensor:
    """The usual call, in as few operations: for a few hundred numbers their number is the time."""
    _check_layer(entropy, keys)
    _check_temperature(temperature)
    mean = entropy.mean(-1) if entropy.dtype in _OWN_SUMS else entropy.mean(-1, dtype=torch.float32)
    if keys == 1:
        return torch.zeros_like(mean).softmax(1)
    # the best score becomes 0 before the quotient, as below; no divisor may become 0
    return ((mean.amin(1, True) - mean) / max(temperature * math.log(keys), MIN_NORMAL_FLOAT32)).softmax(1)


def _check_temperature(temperature: float) -> None:
    check_number("temperature", temperature, low=MIN_NORMAL_FLOAT32, high=MAX_FLOAT32, wanted="> 0")


def _check_layer(entropy: Tensor, keys: int) -> None:
    check_tensor("entropy", entropy, 3, "(B, heads, N)")
    check_count("num_keys", keys, low=1)
    _, heads, rows = entropy.shape
    if heads < 1 or rows < 1:
        raise ValueError(refusal("entropy", "at least one head and one row to average", shape_of(entropy)))


def _of_cells(
    entropy: Tensor | Sequence[Tensor], marginal: Any, pooled: Tensor | Sequence[Tensor] | None
) -> tuple[Any, Any, Any]:
    """Entropy, number of keys and marginal of the attention to cells: the information of query and cell."""
    if marginal is not None:
        wanted = "None, as criterion='cell_information' does not use it"
        raise ValueError(refusal("marginal", wanted, kind_of(marginal), "give criterion='information' with it"))
    if pooled is None:
        wanted = "attention_statistics(q, k).pooled of each layer for criterion='cell_information'"
        raise ValueError(refusal("pooled", wanted, None))
    entropies = [entropy] if isinstance(entropy, Tensor) else check_list("entropy", entropy, ONE_OR_MANY)
    found = [pooled] if isinstance(pooled, Tensor) else check_list("pooled", pooled, ONE_OR_MANY)
    check_list("pooled", found, f"{len(entropies)} tensors, one for each layer", length=len(entropies))
    for layer, cells in zip(entropies, found, strict=True):
        check_tensor("entropy", layer, 3, "(B, heads, N)")
        check_tensor("pooled", cells, 4, "(B, heads, N, M)")
        check_shape("pooled", cells, (*layer.shape, cells.shape[3]), "(B, heads, N, M) of entropy")
    of_cells = [operators.attention_map_entropy(cells, None) for cells in found]
    marginals = [cells.mean(2, dtype=accumulation_dtype(cells)) for cells in found]
    counts = [cells.shape[3] for cells in found]
    return (of_cells[0], counts[0], marginals[0]) if isinstance(entropy, Tensor) else (of_cells, counts, marginals)


def _marginals(marginal: Tensor | Sequence[Tensor] | None, criterion: str, layers: int) -> list[Tensor | None]:
    if criterion != "information":
        if marginal is not None:
            wanted = f"None, as criterion={criterion!r} does not use it"
            raise ValueError(refusal("marginal", wanted, kind_of(marginal), "give criterion='information' with it"))
        return [None] * layers
    if marginal is None:
        wanted = "attention_marginal(q, k) of each layer for criterion='information'"
        raise ValueError(refusal("marginal", wanted, None))
    found = [marginal] if isinstance(marginal, Tensor) else check_list("marginal", marginal, ONE_OR_MANY)
    return check_list("marginal", found, f"{layers} tensors, one for each layer", length=layers)


def _head_scores(entropy: Tensor, keys: int, marginal: Tensor | None, first: Tensor, criterion: str) -> Tensor:
    """(B, heads): what the softmax over heads is taken of, before the temperature."""
    _check_layer(entropy, keys)
    if entropy is not first:
        if entropy.shape[0] != first.shape[0]:
            both = f"{shape_of(first)} and {shape_of(entropy)}"
            raise ValueError(refusal("entropy", "one batch size in all layers", both))
        check_same_device(entropy=entropy, first_layer=first)
    dtype = torch.float64 if entropy.dtype == torch.float64 else torch.float32
    mean = entropy.mean(-1, dtype=dtype)
    if keys == 1 or criterion == "uniform":
        return torch.zeros_like(mean)
    score = mean / -math.log(keys)
    if marginal is not None:
        check_tensor("marginal", marginal, 3, "(B, heads, N_k)")
        check_shape("marginal", marginal, (*entropy.shape[:2], keys), "(B, heads, N_k)")
        check_same_device(entropy=entropy, marginal=marginal)
        score = (torch.special.entr(marginal.to(dtype)).sum(-1) - mean) / math.log(keys)
    return score
