"""An operator under ``torch.func``, and the refusal of derivatives that it does not have.

Left to itself torch gives zeros for a derivative in forward mode, and for a second derivative whatever the operations
within the gradient happen to record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Function = Callable[..., Any]

INSTEAD = "nerve_kernels.reference, which is plain torch, has them"


def refuse_tangents(name: str, arguments: tuple[Any, ...]) -> None:
    """Raise where any tensor is dual, that is, where a derivative in forward mode is asked for."""
    if getattr(forward_ad, "_current_level", 0) < 0:
        return  # as nearly always, and cheaper to ask than each tensor
    if any(isinstance(item, Tensor) and forward_ad.unpack_dual(item).tangent is not None for item in arguments):
        _refuse_forward_mode(name)


def _refuse_forward_mode(name: str) -> None:
    raise NotImplementedError(
        f"{name}: derivatives in forward mode (jvp, jacfwd, hessian) are not implemented; use reverse mode "
        f"(torch.autograd.grad, torch.func.grad, torch.func.jacrev), or {INSTEAD}"
    )


def _transforming() -> bool:
    """Whether a transform of ``torch.func`` is at work, which custom operators know nothing of."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return active is None or bool(active())


def call_under_transforms(
    name: str, operator: Function, setup_context: Function, backward: Function, vmap: Function | None
) -> Function:
    """``operator``, whose gradient is registered, as a function that ``torch.func`` differentiates too.

    The arguments are all of the operator's, the backend included.
    """
    rules: dict[str, Any] = {
        "forward": staticmethod(lambda *arguments: operator(*arguments)),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "jvp": staticmethod(lambda ctx, *tangents: _refuse_forward_mode(name)),
    }
    if vmap is not None:
        rules["vmap"] = staticmethod(vmap)
    function: Any = type(name, (torch.autograd.Function,), rules)

    def call(*arguments: Any) -> Any:
        return (
            operator(*arguments) if torch.compiler.is_compiling() or not _transforming() else function.apply(*arguments)
        )

    return call


def call_gradient(name: str, operator: Function, formula: Function | None) -> Function:
    """``operator``, which is the gradient of ``name``, as a function whose own derivatives are right or refused.

    ``formula`` is the same gradient in plain torch that can be differentiated; None: there are no second derivatives.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(item if isinstance(item, Tensor) else None for item in inputs))
        ctx.others = [None if isinstance(item, Tensor) else item for item in inputs]

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if formula is None:
            raise NotImplementedError(f"{name}: second derivatives are not implemented; {INSTEAD}")
        places = [place for place, item in enumerate(ctx.saved_tensors) if item is not None]
        arguments = list(ctx.others)

        def gradients(*tensors: Tensor) -> Any:
            for place, tensor in zip(places, tensors, strict=True):
                arguments[place] = tensor
            return formula(*arguments)

        pulled: Any = torch.func.vjp(gradients, *(ctx.saved_tensors[place] for place in places))
        results, pull_back = pulled
        found = pull_back(grads[0] if isinstance(results, Tensor) else grads)
        return tuple(found[places.index(place)] if place in places else None for place in range(len(arguments)))

    function: Any = type(
        f"{name}_backward",
        (torch.autograd.Function,),
        {
            "forward": staticmethod(lambda *arguments: operator(*arguments)),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(backward),
            "jvp": staticmethod(lambda ctx, *tangents: _refuse_forward_mode(name)),
            "generate_vmap_rule": True,
        },
    )

    def call(*arguments: Any) -> Any:
        recorded = torch.is_grad_enabled() and any(
            isinstance(item, Tensor) and item.requires_grad for item in arguments
        )
        if torch.compiler.is_compiling() or not (recorded or _transforming()):
            return operator(*arguments)
        return function.apply(*arguments)

    return call
