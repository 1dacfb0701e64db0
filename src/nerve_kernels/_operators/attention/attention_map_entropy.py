"""attention_map_entropy: 𝓗 = −Σⱼ A log A of explicit maps, in blocks of rows so that no second map is allocated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators import dispatch
from nerve_kernels._operators.library import accumulation_dtype, define, differentiate, fold_batch, implement
from nerve_kernels._triton.availability import run_lazily, why_unsupported_maps

from .score_blocks import rows_per_block

define("attention_map_entropy(Tensor maps, str? backend=None) -> Tensor")
define("_attention_map_entropy_backward(Tensor grad, Tensor maps) -> Tensor")
# implemented by the compiled extension, csrc/cpu/
define("_attention_map_entropy_cpp(Tensor maps) -> Tensor")


def eager(maps: Tensor) -> Tensor:
    """entr(A) summed over keys; 0 · log 0 counts as 0."""
    dtype = accumulation_dtype(maps)
    entropy = maps.new_empty(maps.shape[:3], dtype=dtype)
    step = rows_per_block(maps.shape[3], maps.device)
    for b in range(maps.shape[0]):
        for h in range(maps.shape[1]):
            for start in range(0, maps.shape[2], step):
                rows = slice(start, start + step)
                entropy[b, h, rows] = torch.special.entr(maps[b, h, rows].to(dtype)).sum(-1)
    return entropy


def cpp(maps: Tensor) -> Tensor:
    """One pass over the maps with a vectorised logarithm."""
    result: Tensor = torch.ops.nerve_kernels._attention_map_entropy_cpp(maps)
    return result


def _run(maps: Tensor, backend: str | None = None) -> Tensor:
    result: Tensor = dispatch.choose("attention_map_entropy", backend, (maps,))(maps)
    return result


def _fake(maps: Tensor, backend: str | None = None) -> Tensor:
    return maps.new_empty(maps.shape[:3], dtype=accumulation_dtype(maps))


def _run_backward(grad: Tensor, maps: Tensor) -> Tensor:
    """dA = −g (log A + 1); where A = 0 the slope is infinite and the gradient is set to 0, as for a masked key."""
    wide = maps.to(grad.dtype)
    slope = torch.where(wide > 0, -(wide.log() + 1), 0)
    return (grad.unsqueeze(-1) * slope).to(maps.dtype)


def _fake_backward(grad: Tensor, maps: Tensor) -> Tensor:
    return torch.empty_like(maps, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.nerve_kernels._attention_map_entropy_backward(grad, *ctx.saved_tensors), None


implement("attention_map_entropy", _run, _fake)
implement("_attention_map_entropy_backward", _run_backward, _fake_backward)
torch.library.register_fake("nerve_kernels::_attention_map_entropy_cpp", _fake)
differentiate("attention_map_entropy", _backward, _setup_context)
fold_batch("attention_map_entropy")
dispatch.register("attention_map_entropy", "eager", eager)
dispatch.register("attention_map_entropy", "cpp", cpp, dispatch.why_unsupported_cpp)
dispatch.register(
    "attention_map_entropy", "triton", run_lazily("attention.attention_map_entropy"), why_unsupported_maps
)
