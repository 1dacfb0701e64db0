"""CLIP's last vision block, changed so that every patch answers for its own place.

Trained on whole images, CLIP's last attention gathers the image into one token, which
blurs what is where. Taking each patch's own value (MaskCLIP), or letting patches look at
those with similar keys (ClearCLIP), keeps the answer in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional

from nerve_kernels._operators.checks import check_choice, refusal
from nerve_kernels.segmentation.config_fields import DENSE_FEATURES
from nerve_kernels.segmentation.locks import alone_in

if TYPE_CHECKING:
    from transformers import CLIPModel


class _LastBlockReached(Exception):
    """Carries the tokens that enter the last block; never seen outside this module."""

    def __init__(self, tokens: torch.Tensor) -> None:
        super().__init__()
        self.tokens = tokens


def dense_embeddings(
    model: CLIPModel,
    pixels: torch.Tensor,
    *,
    features: str = "key_key",
    residual: bool = False,
    feed_forward: bool = False,
) -> torch.Tensor:
    """Embeddings of all patches in CLIP's common space.

    With x the tokens that enter the last block and q, k, v of LayerNorm(x):

        value        y = W_o v
        key_key      y = W_o softmax(k kᵀ / √d) v       (query_query, query_key likewise)
        residual     y ← x + y
        feed_forward y ← y + MLP(LayerNorm(y))

    then post-LayerNorm, projection (for SigLIP its pooling head, as if its probe saw the patch alone), unit length.

    Args:
        model: ``transformers.CLIPModel`` or ``SiglipModel``.
        pixels: (B, 3, height, width), normalised; sides multiples of the patch, any size:
            position embeddings are interpolated.
        features: ``"value"``, ``"key_key"``, ``"query_query"`` or ``"query_key"``.
        residual: keep the residual connection around the attention.
        feed_forward: keep the feed-forward part and its residual connection.

    Returns:
        (B, height / patch, width / patch, D) float32 of unit length.

    Raises:
        ValueError: unknown features, or sides that are no multiples of the patch.

    Source:
        MaskCLIP, arXiv 2112.01071; ClearCLIP, arXiv 2407.12442.
    """
    patch = int(model.config.vision_config.patch_size)
    height, width = pixels.shape[-2:]
    check_choice("features", features, DENSE_FEATURES)
    if height % patch or width % patch:
        raise ValueError(refusal("pixels", f"sides that are multiples of the patch ({patch})", f"{height}x{width}"))
    block: Any = model.vision_model.encoder.layers[-1]
    tokens = _tokens_before(model, block, pixels)
    mixed = _attend(block, tokens, features)
    if residual:
        mixed = tokens + mixed
    if feed_forward:
        mixed = mixed + block.mlp(block.layer_norm2(mixed))
    tower: Any = model.vision_model
    if hasattr(tower, "head"):
        projected = _through_head(tower.head, tower.post_layernorm(mixed))
    else:
        projected = model.visual_projection(tower.post_layernorm(mixed[:, 1:]))  # without the class token
    embeddings = functional.normalize(projected.float(), dim=-1)
    return embeddings.unflatten(1, (height // patch, width // patch))


def _through_head(head: Any, patches: torch.Tensor) -> torch.Tensor:
    """SigLIP's pooling head on each patch: what attention gathers from a single token is its value."""
    attention, width = head.attention, patches.shape[-1]
    value = functional.linear(patches, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    pooled = attention.out_proj(value)
    return pooled + head.mlp(head.layernorm(pooled))


def _tokens_before(model: CLIPModel, block: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    def stop(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _LastBlockReached(args[0] if args else kwargs["hidden_states"])

    with alone_in(model):
        handle = block.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            model.vision_model(pixel_values=pixels.to(model.logit_scale.dtype), interpolate_pos_encoding=True)
        except _LastBlockReached as reached:
            return reached.tokens
        finally:
            handle.remove()
    raise RuntimeError("clip: the last vision block did not run; is this a CLIP vision model?")


def _attend(block: Any, tokens: torch.Tensor, features: str) -> torch.Tensor:
    attention = block.self_attn
    normed = block.layer_norm1(tokens)
    value = attention.v_proj(normed)
    if features == "value":
        return attention.out_proj(value)
    heads = (attention.num_heads, -1)

    def by_head(projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, heads).transpose(1, 2)

    names = features.split("_")
    projections = {"query": attention.q_proj, "key": attention.k_proj}
    left, right = (by_head(projections[name](normed)) for name in names)
    gathered = functional.scaled_dot_product_attention(left, right, by_head(value))
    return attention.out_proj(gathered.transpose(1, 2).flatten(2))
