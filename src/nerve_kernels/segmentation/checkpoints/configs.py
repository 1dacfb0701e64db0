"""What the config files of a checkpoint may say, judged before anything is built from them.

The libraries build what a config asks for and look at the weights afterwards. A size that no model has would fill the
memory, or keep the machine busy for minutes, long before the weights are found not to fit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 16 * 2**20
MAX_ENTRIES = 64

# The least and the most that each field may hold; where it holds a list, every entry of it. The most is several times
# what any released Stable Diffusion or CLIP has.
BOUNDS: Mapping[str, tuple[float, float]] = {
    # both kinds of models
    "in_channels": (1, 1024),
    "out_channels": (1, 1024),
    "num_channels": (1, 1024),
    "projection_dim": (1, 16384),
    "num_attention_heads": (1, 512),
    # transformers: CLIP, text encoder
    "hidden_size": (1, 16384),
    "intermediate_size": (1, 65536),
    "num_hidden_layers": (1, 128),
    "vocab_size": (1, 2**20),
    "max_position_embeddings": (1, 8192),
    "image_size": (1, 8192),
    "patch_size": (1, 1024),
    # open_clip
    "embed_dim": (1, 16384),
    "width": (1, 16384),
    "layers": (1, 128),
    "heads": (1, 512),
    "head_width": (1, 16384),
    "context_length": (1, 8192),
    # diffusers: UNet, VAE
    "block_out_channels": (1, 16384),
    "layers_per_block": (1, 64),
    "transformer_layers_per_block": (1, 64),
    "reverse_transformer_layers_per_block": (1, 64),
    "attention_head_dim": (1, 16384),
    "cross_attention_dim": (1, 65536),
    "latent_channels": (1, 1024),
    "norm_num_groups": (1, 16384),
    "sample_size": (1, 8192),
    "time_embedding_dim": (1, 65536),
    "time_cond_proj_dim": (1, 65536),
    "encoder_hid_dim": (1, 65536),
    "addition_time_embed_dim": (1, 65536),
    "addition_embed_type_num_heads": (1, 512),
    "projection_class_embeddings_input_dim": (1, 65536),
    "num_class_embeds": (1, 65536),
    "conv_in_kernel": (1, 31),
    "conv_out_kernel": (1, 31),
    "scaling_factor": (1e-6, 1e6),
    "layer_norm_eps": (0, 1),
    "shift_factor": (-1e6, 1e6),
    "encoder_block_out_channels": (1, 16384),
    "decoder_block_out_channels": (1, 16384),
    "num_encoder_blocks": (1, 64),
    "num_decoder_blocks": (1, 64),
    "batch_norm_eps": (0, 1),
    # diffusers: transformers
    "num_layers": (0, 256),
    "num_single_layers": (0, 256),
    "joint_attention_dim": (1, 65536),
    "caption_projection_dim": (1, 65536),
    "pooled_projection_dim": (1, 65536),
    "caption_channels": (1, 65536),
    "pos_embed_max_size": (1, 8192),
    "axes_dims_rope": (1, 4096),
    "timestep_guidance_channels": (1, 65536),
    "mlp_ratio": (0, 64),
    "num_embeds_ada_norm": (1, 100_000),
    "interpolation_scale": (0, 1024),
    # transformers: T5
    "d_model": (1, 16384),
    "d_kv": (1, 1024),
    "d_ff": (1, 2**18),
    "num_heads": (1, 512),
    "num_decoder_layers": (0, 256),
    "relative_attention_num_buckets": (1, 8192),
    # noise schedule
    "num_train_timesteps": (1, 100_000),
    "shift": (0, 1e6),
    "beta_start": (0, 1),
    "beta_end": (0, 1),
    "trained_betas": (0, 1),
}
# What the libraries take as null, or as a word, and multiply by later on.
NUMBERS = frozenset({"scaling_factor", "layer_norm_eps"})
_MAX_ENTRIES = {"trained_betas": 100_000}


def check_config_file(file: Path) -> dict[str, Any]:
    """Read a config and refuse what is out of ``BOUNDS``.

    Args:
        file: a checkpoint's ``config.json`` or ``scheduler_config.json``.

    Returns:
        The config.

    Raises:
        ValueError: names the file, the field, its value and its bounds.
    """
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{file.name}: expected at most {MAX_FILE_BYTES} bytes, got {size}.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name}: expected JSON, got something else ({error}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file.name}: expected an object of fields, got {type(config).__name__}.")
    for name, value in _fields(config):
        field = name.rpartition(".")[2]
        if field in NUMBERS and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{file.name}: {name}: expected a number, got {json.dumps(value):.60}.")
        if field not in BOUNDS or value is None:
            continue
        entries = value if isinstance(value, list) else [value]
        most_entries = _MAX_ENTRIES.get(field, MAX_ENTRIES)
        if len(entries) > most_entries:
            raise ValueError(f"{file.name}: {name}: expected at most {most_entries} entries, got {len(entries)}.")
        least, most = BOUNDS[field]
        for entry in entries:
            if isinstance(entry, (int, float)) and not least <= entry <= most:
                raise ValueError(f"{file.name}: {name}: expected {least} to {most}, got {_short(entry)}.")
    return config


def least_parameters(config: Mapping[str, Any]) -> int:
    """Numbers that a model of this config has at the very least.

    Only its largest parts are counted, so that no right checkpoint holds fewer: the linear maps and embeddings of a
    transformer; of a diffusion transformer and of T5 those of attention and T5's feed-forward part; of each UNet or VAE
    block one convolution a layer, and the keys and values over the prompt.

    Example:
        >>> least_parameters({"block_out_channels": [320, 640], "layers_per_block": 2})
        9216000
    """
    total = 0
    for tower in ("text_config", "vision_config"):
        said = (config.get(tower), config.get(f"{tower}_dict"))  # the second, of older configs, overrides the first
        nested = {name: value for part in said if isinstance(part, dict) for name, value in part.items()}
        total += least_parameters(nested) if nested else 0
    hidden, layers = _whole(config, "hidden_size"), _whole(config, "num_hidden_layers")
    total += layers * (4 * hidden**2 + 2 * hidden * _whole(config, "intermediate_size"))
    patches = _whole(config, "image_size") // max(1, _whole(config, "patch_size"))
    rows = _whole(config, "vocab_size") + _whole(config, "max_position_embeddings") + patches**2
    total += rows * hidden
    width = _whole(config, "num_attention_heads") * _whole(config, "attention_head_dim")
    total += 4 * width**2 * (_whole(config, "num_layers") + _whole(config, "num_single_layers"))
    model = _whole(config, "d_model")
    inner = 2 * _whole(config, "num_heads") * _whole(config, "d_kv") + _whole(config, "d_ff")
    total += model * (2 * inner * _whole(config, "num_layers") + _whole(config, "vocab_size"))
    channels = config.get("block_out_channels")
    for block in channels if isinstance(channels, list) else ():
        if isinstance(block, int):
            total += 9 * block**2 * _whole(config, "layers_per_block")
    return total


def _fields(config: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        yield inside + name, value
        if isinstance(value, dict):
            yield from _fields(value, f"{inside}{name}.")


def _whole(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) else 0


def _short(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) if abs(value) < 10**30 else f"about {value:.0e}"
