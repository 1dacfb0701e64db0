"""The products q kᵀ that a model asks torch for, seen as it asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class ProductMode(TorchFunctionMode):
    """Sees the calls of one thread as they are written, before autograd, vmap or the choice of a kernel.

    Args:
        note: Called with q and k (B, heads, N, d), the scale where it is not 1/√d, whether a mask or bias is added to
            the scores, and whether they are causal.
    """

    def __init__(self, note: Callable[[Tensor, Tensor, float | None, bool, bool], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note a product, then do what was asked for."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            self._note_product(*args, **kwargs)
        elif func is functional.multi_head_attention_forward:
            self._note_projections(args, kwargs)
        return func(*args, **kwargs)

    def _note_product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **others: Any,
    ) -> None:
        own = query.shape[-1] ** -0.5
        factor = None if scale is None or abs(scale - own) <= 1e-6 * own else float(scale)
        self.note(query, key, factor, attn_mask is not None, is_causal)

    def _note_projections(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """q and k of ``nn.MultiheadAttention``, (tokens, B, channels) projected by its weights."""
        names = ("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias")
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key, heads = given["query"], given["key"], int(given["num_heads"])
        width = query.shape[-1]
        if kwargs.get("use_separate_proj_weight"):
            weights = [kwargs["q_proj_weight"], kwargs["k_proj_weight"]]
        else:
            weights = list(given["in_proj_weight"].split(width)[:2])
        bias = given.get("in_proj_bias")
        biases = [None, None] if bias is None else list(bias.split(width)[:2])
        q, k = (
            functional.linear(tokens, weight, own).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
            for tokens, weight, own in zip((query, key), weights, biases, strict=True)
        )
        masked = kwargs.get("attn_mask") is not None or kwargs.get("key_padding_mask") is not None
        self.note(q, k, None, masked and not kwargs.get("is_causal"), bool(kwargs.get("is_causal")))


def out_of_transforms(tensor: Tensor) -> Tensor:
    """A tensor that outlives the transforms of ``torch.func`` around it; what ``vmap`` maps goes into the batch."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        mapped = functorch.maybe_get_bdim(tensor) if functorch.is_batchedtensor(tensor) else None
        tensor = functorch.get_unwrapped(tensor)
        if mapped is not None:
            tensor = tensor.movedim(mapped, 0).flatten(0, 1)
    return tensor
