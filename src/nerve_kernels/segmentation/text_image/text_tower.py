"""CLIP's text tower over many prompts that begin alike, each beginning computed once.

The tower is causal: what it computes for a token depends on nothing but that token and those before it. So prompts with
the same beginning have the same keys, values and activations there, which need computing once only: the 80 prompts of
three one-word names have 1,995 tokens, but 892 different beginnings. The result is that of ``get_text_features``, up to
the order of its sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional

from .prefix_tree import PrefixTree, prefix_trees

if TYPE_CHECKING:
    from transformers import CLIPModel

# Attention is computed between all nodes of a tree and then masked: larger trees waste more of it than they save.
# Measured from 128 to 1024 in benchmarks/NOTES.md.
MAX_NODES = 256


def embed_rows(model: CLIPModel, rows: Sequence[list[int]]) -> torch.Tensor:
    """An embedding of each prompt in CLIP's common space.

    Args:
        model: ``transformers.CLIPModel``.
        rows: the tokens of each prompt with the marks of start and end, at most as many as the model has positions.

    Returns:
        (rows, D) float32 of unit length, on the model's device.
    """
    tower: Any = model.text_model
    # Nothing looks back at what follows the pooled token.
    rows = [row[: _pooled_position(row, tower.eos_token_id) + 1] for row in rows]
    embeddings = torch.empty(len(rows), model.config.projection_dim, device=model.logit_scale.device)
    for tree in prefix_trees(rows, max_nodes=MAX_NODES):
        projected = model.text_projection(_last_states(tower, tree, embeddings.device))
        embeddings[tree.prompts] = functional.normalize(projected.float(), dim=-1)
    return embeddings


def _pooled_position(row: list[int], end: int) -> int:
    # As the model itself finds it, in transformers from 4.56 to 5: configurations older than the end mark's number
    # say 2 there, and mean the largest token.
    if end == 2:
        return row.index(max(row))
    return row.index(end) if end in row else 0


def _last_states(tower: Any, tree: PrefixTree, device: torch.device) -> torch.Tensor:
    # Layer by layer and not through the tower's own forward: that takes no more tokens than there are positions, and
    # how it and its layers take a mask differs between the versions of transformers. Their parts are the same in all.
    def on_device(numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=device)

    visible, ends = tree.visible().to(device), on_device(tree.ends)
    states = tower.embeddings.token_embedding(on_device(tree.tokens))
    states = states + tower.embeddings.position_embedding(on_device(tree.depths))
    layers = tower.encoder.layers
    for index, layer in enumerate(layers):
        gathered = _attend(layer.self_attn, layer.layer_norm1(states), visible)
        if index == len(layers) - 1:
            gathered, states = gathered[ends], states[ends]  # no later layer looks at the others
        states = states + layer.self_attn.out_proj(gathered)
        states = states + layer.mlp(layer.layer_norm2(states))
    return tower.final_layer_norm(states)


def _attend(attention: Any, normed: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    heads = (attention.num_heads, -1)
    query, key, value = (
        project(normed).unflatten(-1, heads).transpose(0, 1).unsqueeze(0)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    gathered = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    return gathered.squeeze(0).transpose(0, 1).flatten(1)
