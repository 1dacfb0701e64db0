"""One way to get at attention: a mode that sees the products, and hooks that know which module is running."""

from __future__ import annotations

import fnmatch
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._operators.checks import (
    check_flag,
    check_grid,
    check_list,
    check_pair,
    check_text,
    check_type,
    refusal,
)
from nerve_kernels.grids import Grid

from .attention import CapturedAttention, CapturedLayer
from .products import ProductMode, out_of_transforms
from .tokens import NO_PICTURE, WINDOWED, Picture, picture_span

ATTENTION_CLASS = re.compile(r"Attention|Attn")


class _EverythingCaptured(Exception):
    """Ends the block after the last wanted layer; never seen outside this module."""


@contextmanager
def capture(
    model: torch.nn.Module,
    layers: str | Sequence[str] | None = None,
    *,
    grid: Grid | None = None,
    tokens: tuple[int, int] | None = None,
    stop_early: bool = False,
) -> Iterator[CapturedAttention]:
    """q and k of a model's self-attention layers, taken while it runs; no map is ever made.

    Within the block every call of ``scaled_dot_product_attention`` is seen as the model makes it, after norms and
    rotary positions, and named by the module that made it; ``nn.MultiheadAttention`` has q and k projected from its
    weights.
    Cross-attention and text towers are passed over. Tokens that are not the picture's (class tokens, registers, text)
    are left out: the softmax over the others is the same scores renormalised.

    Args:
        model: Any ``nn.Module``; nothing of it is changed, and its output is the same to the bit, but for
            ``nn.MultiheadAttention``, which leaves its fast path (1e-7).
        layers: A module's name, the beginning of one, or a glob such as ``"up_blocks.3.*"``; or several; ``None``: all
            that attend over the whole picture.
        grid: (H, W) of the picture's tokens in the finest layer, where it cannot be known from what the model is given;
            coarser layers have its aspect.
        tokens: (first, end) of the picture among a layer's tokens, where the model's class is not known.
        stop_early: End the block once the last of ``layers`` has run; what is behind the call in the block is not run.

    Returns:
        A context manager; its :class:`CapturedAttention` holds ``layers``, and makes an affinity of them.

    Raises:
        TypeError, ValueError: for a bad argument, named; where layers fit none (with what there is), attention stays in
            windows, has a bias besides q and k, or its picture's tokens cannot be told.
        RuntimeError: a layer ran whose product was not seen (eager attention, fused kernels, another thread), with what
            to do; or the model was not run.

    Source: ours.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> encoder = torch.nn.TransformerEncoderLayer(16, nhead=2, batch_first=True).eval()
        >>> with torch.no_grad(), nk.capture(encoder, grid=(4, 6)) as attention:
        ...     _ = encoder(torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(0)))
        >>> [(layer.name, layer.q.shape, layer.grid) for layer in attention.layers]
        [('self_attn', torch.Size([1, 2, 24, 8]), (4, 6))]
        >>> attention.affinity(window=3, beta=0.5).shape
        (1, 24, 24)
    """
    session = _Session(model, layers, grid, tokens, stop_early)
    with session.hooks(), session.mode:
        try:
            yield session.captured
        except _EverythingCaptured:
            return
    session.refuse_what_was_missed()


class _Session:
    """One block: what is wanted, what is running, what was seen."""

    def __init__(self, model: Any, layers: Any, grid: Any, tokens: Any, stop_early: Any) -> None:
        self.model: torch.nn.Module = check_type("model", model, torch.nn.Module, "a torch.nn.Module")
        if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
            raise TypeError(refusal("model", "a model of its own", type(model).__name__, "give model.module"))
        given = [layers] if isinstance(layers, str) else check_list("layers", layers or (), "names or globs of modules")
        self.patterns = [check_text("layers", pattern, "names or globs of modules") for pattern in given]
        self.grid = None if grid is None else check_grid("grid", grid)
        self.span = None if tokens is None else check_pair("tokens", tokens, "(first, end) of the picture's tokens")
        self.stop_early = check_flag("stop_early", stop_early)
        # a compiled model holds the one that it was made of
        self.names = {module: name.replace("_orig_mod.", "") for name, module in self.model.named_modules()}
        self.kinds = {name: type(module).__name__ for module, name in self.names.items()}
        self.attentions = {
            name: module for module, name in self.names.items() if ATTENTION_CLASS.search(type(module).__name__)
        }
        self.captured = CapturedAttention()
        self.mode = ProductMode(self.product)
        self.picture = Picture()
        self.ran: dict[str, bool] = {}  # attention modules that ran, and whether a product was seen in each
        self.windowed = ""  # what is said of the first layer that attends within windows of the picture
        self.passes = 0
        self.running: dict[int, list[str]] = {}
        for pattern in self.patterns:
            if not any(_fits(name, pattern) for name in self.names.values()):
                wanted = "names of this model's modules"
                raise ValueError(refusal("layers", wanted, repr(pattern), self._what_there_is()))
        self.to_come = {name for name in self.attentions if self._is_wanted(name) and self._is_innermost(name)}
        self.stop_early &= bool(self.to_come)  # else the last one cannot be told before it has run

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Every module says when it begins and ends, in the thread that runs it; gone afterwards whatever happens."""
        # never traced: a compiled model calls them as they are
        begin, end, stop = map(torch.compiler.disable, (self._begin, self._end, self._stop))
        handles = []
        try:
            for module, name in self.names.items():
                if name and type(module).__module__.startswith("torch.nn.modules") and not module._modules:
                    continue  # linear maps, norms: no product is made in them, and most modules are such
                handles += [
                    module.register_forward_pre_hook(partial(begin, name), with_kwargs=True),
                    module.register_forward_hook(partial(end, name), always_call=True),
                ]
                if name in self.to_come:
                    handles.append(module.register_forward_hook(stop))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack = self.running.setdefault(threading.get_ident(), [])
        stack.append(name)
        if name == "":
            self.passes += 1
            self.picture = Picture.of(args, kwargs, self.grid)
        if name in self.attentions:
            self.ran.setdefault(name, False)

    def _end(self, name: str, *others: Any) -> None:
        stack = self.running.get(threading.get_ident(), [])
        if stack and stack[-1] == name:
            stack.pop()
        self.to_come.discard(name)

    def _stop(self, *others: Any) -> None:
        if self.stop_early and not self.to_come and self.captured.layers:
            raise _EverythingCaptured

    def product(self, q: Tensor, k: Tensor, scale: float | None, biased: bool, causal: bool) -> None:
        """One product q kᵀ, (B, heads, N, d) each, of whatever is running."""
        stack = self.running.get(threading.get_ident(), [])
        if not stack:
            return  # not within the model
        name = stack[-1]
        for running in stack:
            if running in self.ran:
                self.ran[running] = True
        if not self._is_wanted(name) or NO_PICTURE.search(name) or causal:
            return
        if q.shape[-2] != k.shape[-2] or getattr(self.attentions.get(name), "is_cross_attention", False):
            return  # cross-attention
        kinds = [self.kinds[running] for running in stack]
        if any(WINDOWED.search(kind) for kind in kinds) or q.shape[0] not in (self.picture.batch or (q.shape[0],)):
            do = "choose layers that attend over the whole picture with layers=…"
            said = refusal(name, "attention over the whole picture", f"windows of it ({kinds[-1]})", do)
            if self.patterns:
                raise ValueError(said)
            self.windowed = self.windowed or said
            return  # those that attend over the whole picture, where there are any, are the model's default
        if biased:
            do = "choose other layers with layers=…"
            raise ValueError(refusal(name, "scores of q and k alone", "a mask or bias added to them", do))
        if q.dim() != 4:
            raise ValueError(refusal(name, "q of shape (B, heads, N, d)", tuple(q.shape)))
        if k.shape[1] != q.shape[1]:
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        q, k = out_of_transforms(q), out_of_transforms(k)
        first, own_grid = self._span_of(name, q.shape[2])
        end = first + own_grid[0] * own_grid[1]
        layer = CapturedLayer(name, q[:, :, first:end], k[:, :, first:end], own_grid, scale)
        self.captured.layers.append(layer)
        if self.stop_early and all(name == last or name.startswith(f"{last}.") for last in self.to_come):
            raise _EverythingCaptured  # before the product itself, which nobody waits for

    def _span_of(self, name: str, tokens: int) -> tuple[int, Grid]:
        if self.span is None:
            return picture_span(self.model, name, tokens, self.picture)
        first, end = self.span
        grid = self.picture.grid_of(end - first) if 0 <= first < end <= tokens else None
        if grid is None:
            wanted = f"the picture's tokens among the {tokens} of {name}, which make a grid"
            raise ValueError(refusal("tokens", wanted, self.span, "give grid=(H, W) with it"))
        return first, grid

    def _is_wanted(self, name: str) -> bool:
        return not self.patterns or any(_fits(name, pattern) for pattern in self.patterns)

    def _is_innermost(self, name: str) -> bool:
        return not any(other.startswith(f"{name}.") for other in self.attentions)

    def refuse_what_was_missed(self) -> None:
        """Raise where nothing ran, where attention ran unseen, or where nothing was self-attention over a picture."""
        if not self.passes:
            raise RuntimeError(refusal("model", "a pass within the block", "none", "call it there"))
        unseen = [name for name, seen in self.ran.items() if not seen and self._is_missed(name)]
        if unseen:
            some = ", ".join(unseen[:3]) + (f" and {len(unseen) - 3} more" if len(unseen) > 3 else "")
            kind = type(self.attentions[unseen[0]]).__name__
            raise RuntimeError(
                f"capture: {some} ({kind}) ran without scaled_dot_product_attention: q and k were not seen; call "
                "model.set_attn_implementation('sdpa') (transformers), set_attn_processor(AttnProcessor2_0()) "
                "(diffusers), or timm.layers.set_fused_attn(True), or leave them out with layers=…; linear attention, "
                "TorchScript and other threads cannot be captured"
            )
        if not self.captured.layers:
            nothing = refusal("layers", "self-attention over a picture", "none", self._what_there_is())
            raise ValueError(self.windowed or nothing)

    def _is_missed(self, name: str) -> bool:
        """Whether a module that ran without a product is wanted, and has none above or below it that was seen."""
        if not self._is_wanted(name) or NO_PICTURE.search(name):
            return False
        return not any(
            seen and (name.startswith(f"{other}.") or other.startswith(f"{name}.")) for other, seen in self.ran.items()
        )

    def _what_there_is(self) -> str:
        names = [name or "(the model itself)" for name in self.attentions]
        listed = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
        return f"there is: {listed}" if names else "there is no attention"


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(pattern.rstrip(".") + ".") or fnmatch.fnmatchcase(name, pattern)
