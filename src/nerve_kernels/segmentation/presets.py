"""Named pairs of checkpoints with the settings that go with them. All of this is data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nerve_kernels._operators.checks import refusal

from .config import NerveConfig
from .loading import ModelLoadError

STABLE_DIFFUSION = "nerve_kernels.segmentation.attention.diffusion:DiffusionFeatures"
DIFFUSION_TRANSFORMER = "nerve_kernels.segmentation.attention.diffusion_transformer:DiffusionTransformerFeatures"
VISION_TRANSFORMER = "nerve_kernels.segmentation.attention.vision_transformer:VisionTransformerFeatures"
CLIP = "nerve_kernels.segmentation.text_image.clip:DenseClip"
SIGLIP = "nerve_kernels.segmentation.text_image.siglip:DenseSiglip"
EMBEDDED_FOLDER = Path(__file__).resolve().parent / "embedded"


@dataclass(frozen=True)
class Preset:
    """Two checkpoints and the settings that differ from :class:`NerveConfig`'s defaults.

    Args:
        diffusion: folder or hub id of the checkpoint that attention comes from.
        clip: folder or hub id of the checkpoint that embeds images and names.
        description: one line for the command line's help.
        settings: fields of the config.
        attention_family: where the class is that loads `diffusion`, as ``"module:class"``; an
            :class:`~nerve_kernels.segmentation.attention.source.AttentionSource` with ``from_pretrained``.
        text_image_family: likewise for `clip`, a
            :class:`~nerve_kernels.segmentation.text_image.source.TextImageSource`.
    """

    diffusion: str
    clip: str
    description: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    attention_family: str = STABLE_DIFFUSION
    text_image_family: str = CLIP

    @property
    def config(self) -> NerveConfig:
        """The preset's config."""
        return NerveConfig().replace(**self.settings)


_STABLE_DIFFUSION_15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "embedded": Preset(
            diffusion=str(EMBEDDED_FOLDER / "diffusion"),
            clip=str(EMBEDDED_FOLDER / "clip"),
            description="small models that ship with the package; nothing is downloaded",
            # Chosen on the validation scenes by `make quality`, among the method's variants the best one there.
            settings={
                "diffusion_size": 192,
                "timesteps": (1,),
                "layers": ("down_blocks.0.*",),  # its layer that keeps best to one object
                "clip_size": 128,
                # crops that hold an object or two: its CLIP then has less to confuse
                "clip_window": 64,
                "clip_stride": 32,
                "dense_features": "value",  # how its CLIP was trained to answer for places
                "templates": "photo",
                # A softmax over the patches gives every word the same share of the image to begin with: right
                # where each word is in the image, wrong for a list of words that mostly are not.
                "seed_mode": "cross_attention",
                "seed_scale": 10.0,
                "temperature": 0.05,
                "window": 11,
                "beta": 0.1,
                "alpha": 0.9,
                "steps": 40,
            },
        ),
        # What nearby methods use: one late timestep, the UNet's last 64x64 layers, the field's
        # windows of 224 every 112 on a short side of 336 (whole images for the 336 model).
        "sd15-clip-b16": Preset(
            diffusion=_STABLE_DIFFUSION_15,
            clip="openai/clip-vit-base-patch16",
            description="Stable Diffusion 1.5 with CLIP ViT-B/16, from the hub",
            settings={"layers": ("up_blocks.3.*",)},
        ),
        "sd15-clip-l14": Preset(
            diffusion=_STABLE_DIFFUSION_15,
            clip="openai/clip-vit-large-patch14-336",
            description="Stable Diffusion 1.5 with CLIP ViT-L/14 at 336 pixels, from the hub",
            settings={"layers": ("up_blocks.3.*",), "clip_size": 336, "clip_window": None},
        ),
        # Its 64x64 layers are at half the latent's resolution.
        "sdxl-clip-l14": Preset(
            diffusion="stabilityai/stable-diffusion-xl-base-1.0",
            clip="openai/clip-vit-large-patch14-336",
            description="Stable Diffusion XL with CLIP ViT-L/14 at 336 pixels, from the hub",
            settings={
                "diffusion_size": 1024,
                "layers": ("up_blocks.1.*",),
                "clip_size": 336,
                "clip_window": None,
            },
        ),
        # One pass in place of an autoencoder and a UNet. The window alone, information weights, half restart: what
        # was best on validation for a ViT-S/14 over street photographs (docs/choosing_settings.md).
        "dinov2-clip-b16": Preset(
            diffusion="facebook/dinov2-base",
            clip="openai/clip-vit-base-patch16",
            description="DINOv2 ViT-B/14 with CLIP ViT-B/16, from the hub: the fastest for photographs without a GPU",
            settings={
                "diffusion_size": 518,
                "criterion": "cell_information",
                "temperature": 0.03,
                "global_sharpness": 4.0,
                "beta": 0.0,
                "alpha": 0.5,
            },
            attention_family=VISION_TRANSFORMER,
        ),
    }
)
DEFAULT_PRESET = "embedded"


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Args:
        name: a key of ``PRESETS``.

    Returns:
        The preset.

    Raises:
        ValueError: an unknown name, with the nearest known one.
        ModelLoadError: the embedded models are not in this installation.

    Example:
        >>> find_preset("sd15-clip-b16").clip
        'openai/clip-vit-base-patch16'
        >>> find_preset("sd15-clip-b61")
        Traceback (most recent call last):
            ...
        ValueError: preset: expected one of embedded, sd15-clip-b16, sd15-clip-l14, sdxl-clip-l14, \
dinov2-clip-b16, got \
'sd15-clip-b61'; did you mean 'sd15-clip-b16'?
    """
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(refusal("preset", f"one of {', '.join(PRESETS)}", repr(name), hint))
    if name == "embedded" and not (EMBEDDED_FOLDER / "diffusion").is_dir():
        raise ModelLoadError(
            f"preset: the embedded models are not in {EMBEDDED_FOLDER}; install the package "
            "again, or name checkpoints with diffusion and clip"
        )
    return PRESETS[name]
