"""What ships: the averaged weights, in half precision, in the folders of the hub's layout."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from training.models.checkpoints import load_state
from training.models.clip_model import IMAGE_SIDE, PIXEL_MEAN, PIXEL_STD
from training.models.diffusion_model import new_scheduler, new_unet
from training.paths import AUTOENCODER_RUN, CLIP_RUN, EMBEDDED, UNET_RUN
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

SIZE_LIMIT = 16_000_000

IMAGE_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": IMAGE_SIDE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [PIXEL_MEAN] * 3,
    "image_std": [PIXEL_STD] * 3,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.36.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export_models() -> None:
    """The step `export`: replaces the embedded folders, and refuses to ship too much."""
    _export_clip(EMBEDDED / "clip")
    _export_diffusion(EMBEDDED / "diffusion")
    _make_shippable(EMBEDDED)
    total = sum(path.stat().st_size for path in EMBEDDED.rglob("*.safetensors"))
    print(f"shipped weights: {total / 1e6:.2f} MB")
    if total > SIZE_LIMIT:
        raise RuntimeError(f"the weights take {total} bytes, more than the {SIZE_LIMIT} that may ship")


def _make_shippable(folder: Path) -> None:
    """Configs without this machine's paths, files that everyone may read."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def _export_clip(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    model = CLIPModel.from_pretrained(CLIP_RUN / "best", dtype=torch.float32)
    model.half().save_pretrained(folder)
    _export_tokenizer(CLIPTokenizer.from_pretrained(CLIP_RUN / "tokenizer"), folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE_PROCESSOR, indent=2) + "\n")


def _export_diffusion(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    state = load_state(UNET_RUN / "state.pt")
    if state is None:
        raise FileNotFoundError("no UNet was trained yet")
    unet = new_unet()
    unet.load_state_dict(state["average"])
    unet.half().save_pretrained(folder / "unet")
    AutoencoderKL.from_pretrained(AUTOENCODER_RUN / "best").half().save_pretrained(folder / "vae")
    CLIPTextModel.from_pretrained(UNET_RUN / "text_encoder", dtype=torch.float32).half().save_pretrained(
        folder / "text_encoder"
    )
    new_scheduler().save_pretrained(folder / "scheduler")
    _export_tokenizer(CLIPTokenizer.from_pretrained(UNET_RUN / "tokenizer"), folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")


def _export_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Both forms: one file for transformers 5, vocabulary and merges for 4."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
