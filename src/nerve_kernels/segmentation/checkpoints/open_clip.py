"""What open_clip's configs and weights are called in transformers' CLIP, which is the same model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from nerve_kernels._operators.checks import refusal

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
PICKLE = "open_clip_pytorch_model.bin"

# What describes a tower, with what open_clip takes where nothing is said.
_VISION = {"width": 768, "layers": 12, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
_TEXT = {"width": 512, "layers": 12, "heads": 8, "mlp_ratio": 4.0, "context_length": 77, "vocab_size": 49408}
_READ = {
    "model_cfg": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale"},
    "vision_cfg": {*_VISION, "patch_dropout", "output_tokens"},
    "text_cfg": {*_TEXT, "pad_id", "output_tokens"},
}
# What any other field may hold: what leaves CLIP as it is.
_NEUTRAL = {
    "vision_cfg": {"pool_type": "tok", "pos_embed_type": "learnable", "block_type": "default"},
    "text_cfg": {"pool_type": "argmax", "proj_type": "linear", "block_type": "default"},
}

# In this order; of both towers, and within their blocks.
_NAMES = (
    (r"^text\.", ""),  # a text tower of its own class, the same otherwise
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.", "vision_model."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^(?!vision_model\.|visual_projection\.|text_projection\.|logit_scale$)", "text_model."),
    (r"\.transformer\.resblocks\.", ".encoder.layers."),
    (r"\.conv1\.", ".embeddings.patch_embedding."),
    (r"\.class_embedding$", ".embeddings.class_embedding"),
    (r"\.token_embedding\.", ".embeddings.token_embedding."),
    (r"\.positional_embedding$", ".embeddings.position_embedding.weight"),
    (r"\.ln_pre\.", ".pre_layrnorm."),
    (r"\.ln_post\.", ".post_layernorm."),
    (r"\.ln_final\.", ".final_layer_norm."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)


def clip_config(held: Mapping[str, Any]) -> dict[str, Any]:
    """The ``CLIPConfig`` of an ``open_clip_config.json``.

    Raises:
        ValueError: another kind of model, such as a ResNet, a tower of timm, or another text model; names the field.
    """
    model = held.get("model_cfg", held)
    vision, text = _tower(model, "vision_cfg", _VISION), _tower(model, "text_cfg", _TEXT)
    _refuse_others(model, "model_cfg")
    shared = {
        "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "projection_dim": _number("model_cfg.embed_dim", model.get("embed_dim")),
    }
    return {
        "projection_dim": shared["projection_dim"],
        "vision_config": {
            **_blocks(vision, vision["width"] // vision["head_width"]),
            **shared,
            "patch_size": vision["patch_size"],
            "image_size": vision["image_size"],
        },
        "text_config": {
            **_blocks(text, text["heads"]),
            **shared,
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "eos_token_id": 2,  # transformers' word for: pool where the largest token is, as open_clip does
        },
    }


def clip_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the names of ``CLIPModel``; what has no name there keeps one that it lacks, in the right tower.

    Example:
        >>> bias = {"transformer.resblocks.0.attn.in_proj_bias": torch.ones(6)}
        >>> found = clip_weights({"visual.proj": torch.ones(4, 2), **bias})
        >>> [(name, tuple(tensor.shape)) for name, tensor in found.items()][:2]
        [('visual_projection.weight', (2, 4)), ('text_model.encoder.layers.0.self_attn.q_proj.bias', (2,))]
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        block, joint, kind = name.partition(".in_proj_")
        if joint:
            found |= {f"{block}.{part}_proj.{kind}": one for part, one in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            found[name] = tensor.T if name.endswith("_projection.weight") else tensor
    return found


def _tower(model: Any, name: str, fields: Mapping[str, float]) -> dict[str, Any]:
    held = model.get(name) if isinstance(model, Mapping) else None
    if not isinstance(held, Mapping):
        raise ValueError(f"{CONFIG}: {refusal(name, 'the sizes of a tower', held)}")
    _refuse_others(held, name)
    return {field: _number(f"{name}.{field}", held.get(field, default)) for field, default in fields.items()}


def _refuse_others(held: Mapping[str, Any], part: str) -> None:
    neutral = _NEUTRAL.get(part, {})
    for name, value in held.items():
        if name in _READ[part] or value in (None, False, {}) or value == neutral.get(name):
            continue
        do = "CLIP's own towers are read here, no ResNet, timm, Hugging Face or CoCa towers"
        raise ValueError(f"{CONFIG}: {refusal(f'{part}.{name}', neutral.get(name, 'none'), repr(value), do)}")


def _number(name: str, value: Any) -> Any:
    if isinstance(value, list) and len(set(map(repr, value))) == 1 and len(value) == 2:
        value = value[0]  # both sides
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{CONFIG}: {refusal(name, 'a number > 0', repr(value))}")
    return value


def _blocks(tower: Mapping[str, Any], heads: int) -> dict[str, Any]:
    return {
        "hidden_size": tower["width"],
        "intermediate_size": int(tower["width"] * tower["mlp_ratio"]),
        "num_hidden_layers": tower["layers"],
        "num_attention_heads": heads,
    }
