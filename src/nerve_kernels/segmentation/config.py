"""Every hyperparameter of the pipeline in one frozen dataclass, to and from JSON."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerve_kernels import available_backends
from nerve_kernels._operators.checks import check_type, refusal

from .config_fields import FIELDS, SEQUENCE_FIELDS
from .output.files import write_atomic

# What each part of the work depends on: features, affinity and walk can be reused while these stay the same.
DIFFUSION_FIELDS = ("diffusion_size", "timesteps", "layers", "noise_seed")
CLIP_FIELDS = (
    "clip_size",
    "clip_window",
    "clip_stride",
    "dense_features",
    "clip_residual",
    "clip_feed_forward",
)
AFFINITY_FIELDS = ("criterion", "temperature", "keep", "window", "cells", "global_sharpness", "beta", "backend")

MAX_FILE = 2**20

_ENDINGS = ("steps", "tolerance", "limit_walk")


@dataclass(frozen=True, kw_only=True)
class NerveConfig:
    """All hyperparameters of :class:`NervePipeline`; none of them is published by the paper.

    Args:
        diffusion_size: shorter side of the image given to Stable Diffusion, in pixels,
            rounded to what the UNet needs. The aspect ratio is kept, nothing is cropped.
        timesteps: noise levels, each one UNet pass and each one more set of layers; from 0
            (nearly no noise) to the scheduler's last (pure noise).
        layers: which self-attention layers; an int or ``"grid:64"`` is the token grid's shorter
            side, ``"latent/2"`` the grid of half the latent's resolution, any other text a
            module name, its prefix, or a glob such as ``"up_blocks.3.*"``.
        noise_seed: seed of the generator that draws the noise.
        clip_size: shorter side of the image given to CLIP, in pixels; None: the model's own.
        clip_window: side of CLIP's sliding windows in pixels; None: the whole image at once.
        clip_stride: step between windows in pixels.
        dense_features: CLIP's last block: ``"value"`` (MaskCLIP), ``"key_key"`` (ClearCLIP's
            self-self attention), ``"query_query"``, or ``"query_key"`` (CLIP's own attention).
        clip_residual: keep the residual connection of that block's attention.
        clip_feed_forward: keep that block's feed-forward part with its residual.
        templates: a named prompt list (``"imagenet80"``, ``"short"``, ``"photo"``, ``"name"``)
            or prompts that each hold ``{}`` once.
        seed_mode: ``"cosine"`` or ``"cross_attention"``.
        seed_scale: factor on the cosine similarities before the softmax; None: CLIP's own.
        background_words: words that together are the label ``background``; ``"default"`` is a
            usual list; empty: no background.
        probability_threshold: pixels whose best probability is below it become background,
            or unlabelled where there is no background label. In [0, 1].
        criterion: head weights by ``"entropy"`` (the paper), ``"information"``, ``"cell_information"``, or
            ``"uniform"``.
        temperature: τ of the head weights, > 0.
        keep: keep the `keep` best heads; None: all. Of no effect with ``"uniform"``.
        window: side of the local affinity's window in tokens, odd, or (rows, columns).
        cells: cells of the global affinity along a side, or (rows, columns); None: min(16, side).
        global_sharpness: γ > 0: the global affinity is made of softmax(γ · scores); of use on vision
            transformers, about 4, whose global part else hurts.
        beta: share of the global affinity, in [0, 1].
        walk: False gives the seeds alone, and Stable Diffusion is not run.
        alpha: weight of the neighbours in each step, in [0, 1).
        steps: number of steps; exactly one of `steps`, `tolerance` and `limit_walk` is given.
        tolerance: largest distance to the walk's limit that is accepted, in (0, 1).
        limit_walk: solve for the walk's limit itself, after infinitely many steps.
        refine_pixels: after the walk, at the image's size, so that masks follow its edges and not
            the tokens: ``"walk"`` with restart over similar colours, ``"pamr"``, ``"lposs+"``; None: no.
        refine_steps: steps of ``"walk"`` and ``"pamr"``.
        refine_alpha: weight of the neighbours in ``"walk"`` and ``"lposs+"``, in [0, 1).
        backend: None: the best there is.

    Raises:
        TypeError, ValueError: names the field, what was expected, what came.

    Source:
        NERVE, arXiv 2511.08248; the values are this project's own.

    Example:
        >>> config = NerveConfig(alpha=0.9, window=9)
        >>> NerveConfig.from_json(config.to_json()) == config
        True
        >>> NerveConfig(alpha=1.5)
        Traceback (most recent call last):
            ...
        ValueError: alpha: expected a number in [0, 1), got 1.5
    """

    diffusion_size: int = 512
    timesteps: tuple[int, ...] = (100,)
    layers: tuple[int | str, ...] = ("latent/1",)
    noise_seed: int = 0
    clip_size: int | None = 336
    clip_window: int | None = 224
    clip_stride: int = 112
    dense_features: str = "key_key"
    clip_residual: bool = False
    clip_feed_forward: bool = False
    templates: str | tuple[str, ...] = "imagenet80"
    seed_mode: str = "cosine"
    seed_scale: float | None = None
    background_words: str | tuple[str, ...] = ()
    probability_threshold: float = 0.0
    criterion: str = "entropy"
    temperature: float = 0.1
    keep: int | None = None
    window: int | tuple[int, int] = 7
    cells: int | tuple[int, int] | None = None
    global_sharpness: float = 1.0
    beta: float = 0.5
    walk: bool = True
    alpha: float = 0.9
    steps: int | None = 20
    tolerance: float | None = None
    limit_walk: bool = False
    refine_pixels: str | None = None
    refine_steps: int = 10
    refine_alpha: float = 0.9
    backend: str | None = None

    def __post_init__(self) -> None:
        for name in SEQUENCE_FIELDS:
            value = getattr(self, name)
            if isinstance(value, list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(value))
        for field in dataclasses.fields(self):
            FIELDS[field.name](field.name, getattr(self, field.name))
        if [self.steps is not None, self.tolerance is not None, self.limit_walk].count(True) != 1:
            raise ValueError(
                refusal(
                    "steps, tolerance, limit_walk",
                    "exactly one of them",
                    f"steps={self.steps}, tolerance={self.tolerance}, limit_walk={self.limit_walk}",
                    "set the others to None or False",
                )
            )
        if self.clip_window is not None and self.clip_stride > self.clip_window:
            most = f"at most clip_window={self.clip_window}, or parts of the image are never seen"
            raise ValueError(refusal("clip_stride", most, self.clip_stride))

    def replace(self, **changes: Any) -> NerveConfig:
        """A copy with some fields changed; of `steps`, `tolerance` and `limit_walk` a given one unsets the others.

        Args:
            changes: field names and their new values.

        Returns:
            The new config.

        Raises:
            TypeError: an unknown field, with the nearest known name.

        Example:
            >>> NerveConfig().replace(tolerance=0.01).steps is None
            True
        """
        _refuse_unknown(changes)
        for name in _ENDINGS:
            if changes.get(name) is not None and changes[name] is not False:  # steps=0 is given too
                changes = {**dict.fromkeys(_ENDINGS), "limit_walk": False, **changes}
                break
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The config as JSON text, one field a line, in the order of the class."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NerveConfig:
        """A config from a mapping; what it does not name keeps its default."""
        return cls().replace(**check_type("config", values, dict, "an object of fields"))

    @classmethod
    def from_json(cls, text: str) -> NerveConfig:
        """A config from JSON text; what it does not name keeps its default.

        Raises:
            ValueError, TypeError: not JSON, an unknown key, or a field out of range.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"config: not valid JSON: {error}") from error
        return cls.from_dict(values)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the config as a JSON file, whole or not at all."""
        return write_atomic(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NerveConfig:
        """Read a JSON file written by :meth:`save` or by hand.

        Raises:
            ValueError, TypeError: no such file of at most 1 MB.
            OSError: it cannot be read.
        """
        file = Path(path)
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:  # reading a pipe or a device may never end
            raise ValueError(f"config: expected a JSON file of at most {MAX_FILE >> 20} MB, got {file}")
        return cls.from_json(file.read_text(encoding="utf-8-sig"))


def differing_field(one: NerveConfig, other: NerveConfig, names: tuple[str, ...]) -> str | None:
    """The first of `names` in which two configs differ, or None."""
    for name in names:
        if getattr(one, name) != getattr(other, name):
            return name
    return None


def check_backend(config: NerveConfig) -> None:
    """Refuse a backend that is unknown or has nothing to run on here, which needs no model to be known.

    Raises:
        ValueError: names what there is.
    """
    here = available_backends()
    if config.backend is not None and config.backend not in here:
        raise ValueError(
            f"backend: expected one of those that run here ({', '.join(here)}) or None for the best, got "
            f"{config.backend!r}; why not others: python -c 'import nerve_kernels; nerve_kernels.show_config()'"
        )


def _refuse_unknown(values: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(NerveConfig)]
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
            raise TypeError(f"config: unknown field {name!r}; {hint}")
