"""How an operator is made: one declaration, from which everything that torch wants of it is derived.

``Library.define`` and ``impl`` are used rather than ``torch.library.custom_op``: the same operator at a fraction of the
overhead of a call. Every operator takes its tensors first and its options after them, and its batch in the leading
dimension of each tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments, match_gradient
from nerve_kernels._triton import availability

from . import dispatch
from .derivatives import call_gradient, call_under_transforms, refuse_tangents
from .dispatch import Implementation
from .vmap import fold_batch

NAMESPACE = "nerve_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
AFFINITY_PARTS = (
    "Tensor? values, Tensor? u, Tensor? v, Tensor? dense, Tensor? row_pointers, Tensor? columns, "
    "SymInt[] grid, SymInt[] window, SymInt[] cells, float beta"
)
AFFINITY = f"{AFFINITY_PARTS}, SymInt[] dilations, bool centre, bool clamp, bool symmetric"
"""An affinity in a schema. Implementations take it as one ``AffinityArguments``, whose fields these are."""

Function = Callable[..., Any]


class _Schema:
    """What the text of a schema says of an operator's arguments, and how implementations take them."""

    def __init__(self, text: str) -> None:
        parsed = torch._C.parse_schema(text)
        self.name, self.results = parsed.name, len(parsed.returns)
        self.arguments, self.returns = text[len(self.name) + 1 :].split(") -> ")
        self.private_arguments = re.sub(r"=\w+", "", self.arguments)  # without defaults
        self.names = [argument.name for argument in parsed.arguments]
        self.tensors = sum(str(argument.type) in ("Tensor", "Optional[Tensor]") for argument in parsed.arguments)
        self._defaults = tuple(argument.default_value for argument in parsed.arguments)
        self._affinity: slice | None = None
        if AFFINITY in self.arguments:
            first = self.names.index(AffinityArguments._fields[0])
            self._affinity = slice(first, first + len(AffinityArguments._fields))

    def bind(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments as implementations take them; what the caller gave beside those of the schema is dropped."""
        count = len(self._defaults)
        if len(arguments) != count:  # torch leaves out those at the end that have their default
            arguments = arguments[:count] + self._defaults[len(arguments) :]
        if self._affinity is None:
            return arguments
        before, after = arguments[: self._affinity.start], arguments[self._affinity.stop :]
        return *before, AffinityArguments(*arguments[self._affinity]), *after

    def binding(self, function: Function) -> Function:
        """``function``, which takes what implementations take, as one that takes what the operator takes."""
        return lambda *arguments: function(*self.bind(arguments))

    def backend(self, arguments: tuple[Any, ...]) -> str | None:
        """What the caller gave beside the arguments of the schema."""
        return arguments[len(self._defaults)] if len(arguments) > len(self._defaults) else None


class _WithoutTangents:
    """``LIBRARY`` for what autograd calls, which first refuses tangents: ``torch.func.jvp`` has them nowhere else."""

    def __init__(self, operator: str) -> None:
        self.operator = operator

    def impl(self, name: str, kernel: Function, key: str, **options: Any) -> None:
        """Register ``kernel``, which takes the set of dispatch keys before an operator's arguments."""

        def without_tangents(keys: Any, *arguments: Any, **named: Any) -> Any:
            refuse_tangents(self.operator, (*arguments, *named.values()))
            return kernel(keys, *arguments, **named)

        LIBRARY.impl(name, without_tangents, key, **options)


class Gradient:
    """How an operator is differentiated: an operation of its own, ``<operator>_backward``, with backends of its own.

    An implementation is called with the gradients of the operator's results, with its arguments and, with
    ``saves_results``, with its results. It returns one gradient for each tensor among the arguments: in any precision,
    not yet summed over a batch that was broadcast, None for zeros and for a tensor that is not there; those of indices,
    which come last and have none, it leaves out. Where the caller named a backend that has no gradient, the best that
    can run on the device takes its place.

    Args:
        eager: The implementation that runs on every device.
        cpp: The implementation in compiled operators.
        triton: The module under ``nerve_kernels._triton`` whose ``run`` it is; a function instead calls what is there.
        saves_results: Whether implementations need what the operator returned.
        results: How many of the operator's results, from the first, are differentiable (and saved); None: all.
        differentiable: Whether autograd goes through ``eager``: second derivatives come from it. Else they are refused.
    """

    def __init__(
        self,
        eager: Function,
        *,
        cpp: Function | None = None,
        triton: str | Function | None = None,
        saves_results: bool = False,
        results: int | None = None,
        differentiable: bool = True,
    ) -> None:
        self.differentiable = differentiable
        self.eager, self.cpp, self.triton = eager, cpp, triton
        self.saves_results, self.results = saves_results, results


class Operator:
    """One public operator, ``torch.ops.nerve_kernels.<name>``; calling the declaration calls the operator.

    Args:
        schema: ``name(Tensor …, options …) -> results``. The operator takes ``str? backend=None`` besides. Grids are
            ``SymInt[]``; an affinity is ``AFFINITY``.
        eager: The implementation in plain torch, for every device.
        fake: The results without their numbers, made with ``new_empty`` from what implementations are called with.
        backward: How it is differentiated; a function is the eager implementation of a :class:`Gradient`.
        cpp: Whether the compiled extension has ``_<name>_cpp`` with the same arguments; a function instead calls what
            the extension has.
        triton: The module under ``nerve_kernels._triton`` whose ``run`` it is, imported at its first call; a function
            instead calls what is there.
        why_not_triton: Why Triton cannot take some arguments, or None.
        cuda: The implementation in CUDA C++.
        vmap: Whether a mapped dimension can be folded into the batch.
        broadcasts: Tensors whose batch of 1 the operator itself broadcasts; ``vmap`` does not repeat those.
    """

    def __init__(
        self,
        schema: str,
        *,
        eager: Function,
        fake: Function,
        backward: Gradient | Function | None = None,
        cpp: bool | Function = True,
        triton: str | Function | None = None,
        why_not_triton: Function = availability.why_unsupported,
        cuda: Implementation | None = None,
        vmap: bool = True,
        broadcasts: Sequence[str] = (),
    ) -> None:
        self.schema = parsed = _Schema(schema)
        name = parsed.name
        if cpp is True:
            cpp = define_native(f"_{name}_cpp({parsed.private_arguments}) -> {parsed.returns}", fake)
        _register_backends(name, eager, cpp or None, triton, why_not_triton, cuda)

        def run(*arguments: Any) -> Any:
            bound = parsed.bind(arguments)
            return dispatch.choose(name, parsed.backend(arguments), *bound)(*bound)

        self.overload = _define(parsed, run, parsed.binding(fake))
        rule = None
        if vmap:
            rule = fold_batch(self, [parsed.names.index(tensor) for tensor in broadcasts])
            torch.library.register_vmap(self.overload, rule, lib=LIBRARY)
        self._call = self.overload
        if backward is not None:
            gradient = backward if isinstance(backward, Gradient) else Gradient(backward)
            self._call = _differentiate(parsed, self.overload, gradient, why_not_triton, rule)

    def __call__(self, *arguments: Any) -> Any:
        """The operator on its arguments and, at their end, the name of a backend."""
        missing = len(self.schema.names) + 1 - len(arguments)
        return self._call(*arguments, *(None,) * missing)


def define_native(schema: str, fake: Function | None = None) -> Function:
    """Declare a private operator that a compiled extension implements, so that it exists where that is missing."""
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    parsed = _Schema(schema)
    if fake is not None:
        torch.library.register_fake(f"{NAMESPACE}::{parsed.name}", parsed.binding(fake), lib=LIBRARY)
    overload: Function = getattr(torch.ops.nerve_kernels, parsed.name).default
    return overload


def _define(schema: _Schema, run: Function, fake: Function) -> Any:
    """Declare an operator that also takes a backend, what it computes on every device, and its fake.

    Autocast is switched off inside: operators state their own precision (float32 or better), and a surrounding
    autocast region must not lower it.
    """

    def without_autocast(*arguments: Any) -> Any:
        refuse_tangents(schema.name, arguments)
        device = next(item.device for item in arguments if isinstance(item, Tensor))
        if not torch.is_autocast_enabled(device.type):
            return run(*arguments)
        with torch.autocast(device.type, enabled=False):
            return run(*arguments)

    text = f"{schema.name}({schema.arguments}, str? backend=None) -> {schema.returns}"
    LIBRARY.define(text, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(schema.name, without_autocast, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{schema.name}", fake, lib=LIBRARY)
    return getattr(torch.ops.nerve_kernels, schema.name).default


def _register_backends(
    operation: str,
    eager: Function,
    cpp: Function | None,
    triton: str | Function | None,
    why_not_triton: Function,
    cuda: Implementation | None = None,
) -> None:
    dispatch.register(operation, "eager", Implementation(eager))
    if cpp is not None:
        dispatch.register(operation, "cpp", Implementation(cpp, dispatch.why_unsupported_cpp))
    if triton is not None:
        run = availability.run_lazily(triton) if isinstance(triton, str) else triton
        dispatch.register(operation, "triton", Implementation(run, why_not_triton))
    if cuda is not None:
        dispatch.register(operation, "cuda", cuda)


def _differentiate(
    forward: _Schema, operator: Function, gradient: Gradient, why_not_triton: Function, vmap: Function | None
) -> Function:
    """Register the gradient, through an operator of its own, ``_<name>_backward``, so that it can be compiled whole.

    Returns the operator as it is to be called, so that ``torch.func`` finds the gradient too.
    """
    operation = f"{forward.name}_backward"
    differentiable = forward.results if gradient.results is None else gradient.results

    # of the arguments of the operator; what is before them are gradients
    _register_backends(
        operation,
        gradient.eager,
        gradient.cpp,
        gradient.triton,
        lambda *arguments: why_not_triton(*arguments[differentiable:]),
    )
    saved = differentiable if gradient.saves_results else 0
    tensors = slice(differentiable, differentiable + forward.tensors)
    arguments = [
        *(f"Tensor grad_{number}" for number in range(differentiable)),
        forward.private_arguments,
        *(f"Tensor result_{number}" for number in range(saved)),
    ]
    schema = _Schema(f"_{operation}({', '.join(arguments)}) -> ({', '.join(['Tensor'] * forward.tensors)})")

    def as_results(gradients: Sequence[Tensor | None], like: Tensor) -> Any:
        """Gradients as an operator returns them: an empty tensor stands for one of a tensor that is not there."""
        results = [like.new_empty(0) if item is None else item for item in gradients]
        return results[0] if len(results) == 1 else tuple(results)

    def matched(gradients: Sequence[Tensor | None], arguments: tuple[Any, ...]) -> Any:
        all_gradients = (*gradients, *(None,) * (forward.tensors - len(gradients)))
        pairs = zip(all_gradients, arguments[tensors], strict=True)
        return as_results([match_gradient(item, tensor) for item, tensor in pairs], arguments[0])

    def run(*arguments: Any) -> Any:
        backend, bound = schema.backend(arguments), schema.bind(arguments)
        named = backend if backend is not None and dispatch.is_implemented(operation, backend) else None
        return matched(dispatch.choose(operation, named, *bound)(*bound), arguments)

    def formula(*arguments: Any) -> Any:
        return matched(gradient.eager(*schema.bind(arguments)), arguments)

    def fake(*arguments: Any) -> Any:
        present = [tensor.new_empty(tensor.shape) if _has_numbers(tensor) else None for tensor in arguments[tensors]]
        return as_results(present, arguments[0])

    overload = call_gradient(forward.name, _define(schema, run, fake), formula if gradient.differentiable else None)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results = (output,) if forward.results == 1 else output
        ctx.options = inputs[forward.tensors :]  # and the backend
        ctx.mark_non_differentiable(*results[differentiable:])
        ctx.save_for_backward(*inputs[: forward.tensors], *results[:saved])

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, results = ctx.saved_tensors[: forward.tensors], ctx.saved_tensors[forward.tensors :]
        *options, backend = ctx.options
        gradients = overload(*grads[:differentiable], *inputs, *options, *results, backend)
        gradients = (gradients,) if forward.tensors == 1 else gradients
        present = (item if _has_numbers(tensor) else None for item, tensor in zip(gradients, inputs, strict=True))
        return *present, *(None for _ in ctx.options)

    library: Any = _WithoutTangents(forward.name)
    torch.library.register_autograd(f"{NAMESPACE}::{forward.name}", backward, setup_context=setup_context, lib=library)
    return call_under_transforms(forward.name, operator, setup_context, backward, vmap)


def _has_numbers(tensor: Tensor | None) -> bool:
    """Whether there is something to differentiate for: tensors of indices have no gradient."""
    return tensor is not None and tensor.is_floating_point()


def accumulation_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where any input is float64, else float32: the precision every sum is taken in."""
    is_double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32
