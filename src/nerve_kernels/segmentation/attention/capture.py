"""Forward hooks that hand out q and k of chosen self-attention layers, never a map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from nerve_kernels.segmentation.locks import alone_in

from .layers import SelfAttentionLayer
from .source import CapturedLayer


class _EverythingCaptured(Exception):
    """Ends the pass after the last wanted layer; never seen outside this module."""


@dataclass
class _Tap:
    """What has been seen so far in one pass."""

    wanted: frozenset[str]
    heads: dict[str, int]
    stop_early: bool
    spatial: dict[str, tuple[int, int]] = field(default_factory=dict)
    parts: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)

    def receive(self, name: str, part: str, output: torch.Tensor) -> None:
        # (B, N, heads * d) to (B, heads, N, d): strides only, nothing is copied.
        self.parts[name, part] = output.unflatten(-1, (self.heads[name], -1)).transpose(1, 2)
        if (name, "q") in self.parts and (name, "k") in self.parts:
            self.finished.append(name)
            if self.stop_early and len(self.finished) == len(self.wanted):
                raise _EverythingCaptured


def self_attention_modules(unet: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every ``attn1`` below `unet` by name, in the order of registration (not of execution)."""
    return {
        name: module
        for name, module in unet.named_modules()
        if name.rpartition(".")[2] == "attn1" and hasattr(module, "to_q")
    }


def number_of_heads(attention: Any) -> int:
    """Heads of one of :func:`self_attention_modules`."""
    return int(attention.heads)


def list_layers(
    unet: torch.nn.Module, run: Callable[[], object], *, latent_size: tuple[int, int]
) -> tuple[SelfAttentionLayer, ...]:
    """Find the self-attention layers in the order in which they run, and their grids.

    Args:
        unet: a ``UNet2DConditionModel``.
        run: runs one pass of it on a latent of `latent_size`.
        latent_size: (height, width), multiples of what the UNet halves.

    Returns:
        The layers. Order and shrink do not depend on the latent's size.

    Raises:
        ValueError: the model has no self-attention layer.
    """
    names = list(self_attention_modules(unet))
    with _hooks(unet, names, stop_early=False) as tap:
        run()
    if not tap.finished:
        raise ValueError("diffusion: this UNet has no self-attention layer (attn1)")
    return tuple(
        SelfAttentionLayer(name, max(1, latent_size[0] // tap.spatial[_block_of(name)][0])) for name in tap.finished
    )


def capture_layers(
    unet: torch.nn.Module,
    names: Sequence[str],
    run: Callable[[], Any],
    *,
    timestep: int,
    stop_early: bool = True,
) -> tuple[list[CapturedLayer], Any]:
    """Run one pass and take q and k of the named layers.

    The hooks sit on the linear maps ``to_q`` and ``to_k``, so that any attention processor
    will do, and are gone afterwards whatever happens.

    Args:
        unet: a ``UNet2DConditionModel``.
        names: module names of ``attn1`` layers.
        run: runs one pass.
        timestep: noted in the result.
        stop_early: end the pass after the last wanted layer.

    Returns:
        The captured layers in the order in which they ran, and what `run` returned (None
        where the pass was ended early).

    Raises:
        RuntimeError: a wanted layer never ran, or does not attend over its own tokens.
    """
    output: Any = None
    with _hooks(unet, names, stop_early=stop_early) as tap, suppress(_EverythingCaptured):
        output = run()
    for name in names:
        if name not in tap.finished:
            raise RuntimeError(
                f"diffusion: layer {name} did not run; fused projections hide q and k: call "
                "unfuse_qkv_projections() on the UNet"
            )
    return [_captured(tap, name, timestep) for name in tap.finished], output


def _captured(tap: _Tap, name: str, timestep: int) -> CapturedLayer:
    q, k, grid = tap.parts[name, "q"], tap.parts[name, "k"], tap.spatial[_block_of(name)]
    tokens = grid[0] * grid[1]
    if q.shape[2] != tokens or k.shape[2] != tokens:
        raise RuntimeError(
            f"diffusion: layer {name} has {q.shape[2]} queries and {k.shape[2]} keys on a grid "
            f"of {grid[0]}x{grid[1]}; choose layers that attend over the image's own tokens"
        )
    return CapturedLayer(name=name, timestep=timestep, q=q, k=k, grid=grid)


def _block_of(name: str) -> str:
    """The transformer block that sees the image as (B, channels, H, W) before flattening."""
    return name.partition(".transformer_blocks.")[0]


@contextmanager
def _hooks(unet: torch.nn.Module, names: Sequence[str], *, stop_early: bool) -> Iterator[_Tap]:
    modules = self_attention_modules(unet)
    tap = _Tap(
        wanted=frozenset(names),
        heads={name: number_of_heads(modules[name]) for name in names},
        stop_early=stop_early,
    )

    def note_size(block: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            tap.spatial[block] = (int(hidden.shape[-2]), int(hidden.shape[-1]))

        return hook

    def note_part(name: str, part: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            tap.receive(name, part, output)

        return hook

    with alone_in(unet), ExitStack() as removal:
        for block in {_block_of(name) for name in names}:
            handle = unet.get_submodule(block).register_forward_pre_hook(note_size(block), with_kwargs=True)
            removal.callback(handle.remove)
        for name in names:
            for part in ("q", "k"):
                linear = modules[name].get_submodule(f"to_{part}")
                removal.callback(linear.register_forward_hook(note_part(name, part)).remove)
        yield tap
