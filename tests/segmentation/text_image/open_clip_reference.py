"""A tiny random checkpoint written by open_clip itself, with what open_clip says of an image and of prompts.

``python -m tests.segmentation.text_image.open_clip_reference`` makes it anew, with ``open_clip_torch`` installed (3.3.0
was): its library is not needed where it is only read.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "open_clip_reference"
TEXTS = ("a photo of a cat.", "grass", "a dog, a sky and a very long list of other words")
MODEL = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2, "mlp_ratio": 3.1},
    "text_cfg": {"context_length": 16, "vocab_size": 128, "width": 16, "heads": 4, "layers": 2},
}
STATISTICS = {"mean": [0.5, 0.45, 0.4], "std": [0.3, 0.25, 0.2]}


def pixels() -> torch.Tensor:
    """Two images, normalised."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def token_rows(tokenizer) -> torch.Tensor:
    """``TEXTS`` as open_clip's tokenizer lays them out: cut to the context, zeros behind the end."""
    longest = MODEL["text_cfg"]["context_length"]
    rows = tokenizer(list(TEXTS), truncation=True, max_length=longest).input_ids
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def main() -> None:
    import open_clip
    from safetensors.torch import save_file
    from tests.segmentation.tiny_checkpoints import make_tokenizer

    expected = {}
    for name, changes in (("", {}), ("custom_text.", {"custom_text": True, "quick_gelu": False})):
        settings = {**MODEL, **changes}
        torch.manual_seed(0)
        family = open_clip.CustomTextCLIP if changes else open_clip.CLIP
        model = family(**{key: value for key, value in settings.items() if key != "custom_text"}).eval()
        for parameter in model.parameters():  # no zeros and ones: every name has to be right
            torch.nn.init.normal_(parameter, std=0.3)
        model.logit_scale.data.fill_(3.0)
        with torch.no_grad():
            expected[f"{name}image"] = model.encode_image(pixels(), normalize=True)
            expected[f"{name}text"] = model.encode_text(token_rows(make_tokenizer()), normalize=True)
        FOLDER.mkdir(exist_ok=True)
        weights = {key: one.contiguous() for key, one in model.state_dict().items()}
        save_file(weights, FOLDER / f"{name}open_clip_model.safetensors")
    save_file(expected, FOLDER / "expected.safetensors")
    config = {"model_cfg": MODEL, "preprocess_cfg": {**STATISTICS, "interpolation": "bicubic"}}
    (FOLDER / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
