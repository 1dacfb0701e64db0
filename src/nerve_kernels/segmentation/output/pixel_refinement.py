"""After the walk on tokens, where it is asked for: labels of pixels, moved to the edges that the image shows."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels.refiners.pamr import walk_over_colours
from nerve_kernels.segmentation.config import NerveConfig

from .upsampling import upsample

DILATIONS = (1, 2, 4, 8, 12, 24)
"""Those with which the field uses PAMR."""


def refine_pixels(planes: Tensor, image: Image.Image, config: NerveConfig) -> Tensor:
    """Probabilities at an image's pixels, refined by its colours.

    Args:
        planes: (C, h, w), probabilities on the token grid.
        image: upright RGB.
        config: its `refine_pixels` names the method, its `refine_steps` and `refine_alpha` go with it.

    Returns:
        (C, H, W) float32 on the device of `planes`; they sum to 1 over C.

    Raises:
        MemoryError: before work starts, with the bytes that it would take.
    """
    scores = upsample(planes, (image.height, image.width))[None]
    colours = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None].to(scores.device)
    if config.refine_pixels == "lposs+":
        refined = nk.refine(scores, image=colours, method="lposs+", alpha=config.refine_alpha, backend=config.backend)
    else:
        alpha = 1.0 if config.refine_pixels == "pamr" else config.refine_alpha
        refined = walk_over_colours(
            colours, scores, dilations=DILATIONS, alpha=alpha, steps=config.refine_steps, backend=config.backend
        )
    positive = refined[0].clamp(min=0)
    total = positive.sum(0, keepdim=True)
    return positive / torch.where(total == 0, 1, total)
