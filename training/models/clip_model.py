"""The small CLIP: its shape, its dense (patch) features, and its localisation score."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

IMAGE_SIDE = 128
PATCH = 8
LONGEST_CAPTION = 32
#: CLIPImageProcessor's constants for this model, kept simple on purpose.
PIXEL_MEAN, PIXEL_STD = 0.5, 0.5


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIPModel below 4 M parameters, randomly initialised."""
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": LONGEST_CAPTION,
            "projection_dim": 128,
            **ends,
        },
        vision_config={
            "hidden_size": 160,
            "intermediate_size": 640,
            "num_hidden_layers": 5,
            "num_attention_heads": 5,
            "image_size": IMAGE_SIDE,
            "patch_size": PATCH,
            "projection_dim": 128,
        },
        projection_dim=128,
    )
    return CLIPModel(config)


def encode_images(model: CLIPModel, pixels: Tensor, corner: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor]:
    """Unit image embeddings (B, D) and unit patch embeddings (B, N, D), from one pass.

    The patch embeddings take the last block's value path: no mixing between patches, so each
    stays at its place. An image smaller than the model's own takes the position embeddings of
    a window of the grid at `corner`: objects keep their size in pixels, and nothing is resized.
    """
    vision = model.vision_model
    embeddings = vision.embeddings
    grid = embeddings.image_size // embeddings.patch_size
    patches = embeddings.patch_embedding(pixels)
    rows, columns = patches.shape[2:]
    table = embeddings.position_embedding.weight
    positions = table[1:].view(grid, grid, -1)
    window = positions[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
    hidden = patches.flatten(2).transpose(1, 2) + window.reshape(1, rows * columns, -1)
    first = (embeddings.class_embedding + table[0]).expand(len(pixels), 1, -1)
    hidden = vision.pre_layrnorm(torch.cat([first.to(hidden.dtype), hidden], dim=1))
    *earlier, last = vision.encoder.layers
    for layer in earlier:
        hidden = layer(hidden, None)
    attention = last.self_attn
    values = attention.out_proj(attention.v_proj(last.layer_norm1(hidden[:, 1:])))
    dense = model.visual_projection(vision.post_layernorm(values))
    pooled = vision.post_layernorm(last(hidden, None)[:, 0])
    whole = model.visual_projection(pooled)
    return (
        torch.nn.functional.normalize(whole.float(), dim=-1),
        torch.nn.functional.normalize(dense.float(), dim=-1),
    )


def encode_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Unit text embeddings (T, D)."""
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST_CAPTION, return_tensors="pt")
    pooled = model.text_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
    return torch.nn.functional.normalize(model.text_projection(pooled).float(), dim=-1)


def to_pixels(images: Sequence[object]) -> Tensor:
    """uint8 images (H, W, 3) of one size as normalised float tensors (B, 3, H, W)."""
    import numpy as np

    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    scaled = stacked.permute(0, 3, 1, 2).float() / 255
    return (scaled - PIXEL_MEAN) / PIXEL_STD
