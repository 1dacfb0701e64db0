"""What a config asks of the models, checked before any image is worked on."""

from __future__ import annotations

from .attention.capture import number_of_heads, self_attention_modules
from .attention.diffusion import DiffusionFeatures
from .attention.layers import select_layers
from .config import NerveConfig
from .text_image.clip import DenseClip


def check_config(config: NerveConfig, diffusion: DiffusionFeatures, clip: DenseClip) -> None:
    """Refuse a config that these models cannot follow.

    Window, cells and grid sides are judged on a square image: others have grids at least as
    large, except for images longer than four times their width.

    Args:
        config: what is asked for; Stable Diffusion's part only matters with ``walk=True``.
        diffusion: the UNet and its noise schedule.
        clip: the CLIP model.

    Raises:
        ValueError: names the field, what came, what was wanted.
    """
    _check_windows(config, clip.patch_size)
    if config.walk:
        _check_diffusion(config, diffusion)


def _check_windows(config: NerveConfig, patch: int) -> None:
    if config.clip_window is None:
        return
    for name, value in (("clip_window", config.clip_window), ("clip_stride", config.clip_stride)):
        if value % patch:
            raise ValueError(
                f"{name}: got {value}, wanted a multiple of this model's patch of {patch} pixels, such as "
                f"{max(1, round(value / patch)) * patch}"
            )


def _check_diffusion(config: NerveConfig, diffusion: DiffusionFeatures) -> None:
    for timestep in config.timesteps:
        diffusion.check_timestep(timestep)
    side = diffusion.image_size((1, 1), config.diffusion_size)[0] // diffusion.latent_factor
    layers = select_layers(diffusion.layers, config.layers, latent_size=(side, side))
    modules = self_attention_modules(diffusion.unet)
    maps = len(config.timesteps) * sum(number_of_heads(modules[layer.name]) for layer in layers)
    if config.keep is not None and config.keep > maps:
        raise ValueError(
            f"keep: got {config.keep}, wanted at most the {maps} attention maps of the chosen layers and timesteps"
        )
    finest = side // min(layer.shrink for layer in layers)
    coarsest = side // max(layer.shrink for layer in layers)
    for window in (config.window,) if isinstance(config.window, int) else config.window:
        if window > 2 * finest - 1:
            raise ValueError(
                f"window: got {window}, wanted at most {2 * finest - 1} on a grid of {finest} tokens a side"
            )
    if config.cells is not None:
        for cells in (config.cells,) if isinstance(config.cells, int) else config.cells:
            if cells > coarsest:
                raise ValueError(
                    f"cells: got {cells}, wanted at most {coarsest}, the side of the coarsest chosen layer's grid"
                )
