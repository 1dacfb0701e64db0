"""Which implementation runs: every operation lists its backends, each with a predicate that can say why not.

A backend is chosen in the order of ``BACKENDS`` among those that can run, less those that say of themselves that the
next one is likely to be faster (``is_preferred``); one that the caller names runs or raises with the reason, and never
another in its place.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from nerve_kernels import _native
from nerve_kernels._arguments import tensors_of, why_not_on
from nerve_kernels._triton import availability


class BackendUnavailableError(RuntimeError):
    """A backend was named that cannot run this operation on these inputs; the message says why."""


@dataclass(frozen=True)
class Backend:
    """One way to run operations: what it is, and why no operation can use it on this machine (None where one can).

    One that is for GPUs is never chosen for tensors on the CPU: Triton's interpreter runs only where it is named.
    """

    name: str
    description: str
    why_not_here: Callable[[], str | None] = lambda: None
    for_gpus: bool = False


@dataclass(frozen=True)
class Implementation:
    """One backend's implementation of one operation.

    The predicates are called with what ``run`` is called with: ``why_not`` returns the reason why ``run`` cannot take
    it, or None; ``is_preferred`` is asked only where it can.
    """

    run: Callable[..., Any]
    why_not: Callable[..., str | None] = lambda *arguments: None
    is_preferred: Callable[..., bool] = lambda *arguments: True


def _why_no_cuda_here() -> str | None:
    return _native.why_cuda_not_loaded() or (None if torch.cuda.is_available() else "torch sees no GPU")


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("cuda", "persistent CUDA C++ kernels on a GPU", _why_no_cuda_here, for_gpus=True),
        Backend("triton", "fused Triton kernels on a GPU", availability.why_not_here, for_gpus=True),
        Backend("cpp", "C++ with SIMD and threads on the CPU", lambda: _native.why_not_loaded()),
        Backend("eager", "plain PyTorch on any device, structured, never an N × N matrix"),
    )
}
"""Every backend, best first."""

_operations: dict[str, dict[str, Implementation]] = {}
_choices: ContextVar[list[tuple[str, str]] | None] = ContextVar("_choices", default=None)


def register(operation: str, backend: str, implementation: Implementation) -> None:
    """Add a backend to an operation."""
    _operations.setdefault(operation, {})[backend] = implementation


def why_unsupported_cpp(*arguments: Any) -> str | None:
    """Why the compiled CPU extension cannot take these arguments, or None where it can."""
    return _native.why_not_loaded() or why_not_on("cpu", tensors_of(arguments))


def is_implemented(operation: str, backend: str) -> bool:
    """Whether ``backend`` has an implementation of ``operation``, be it that it cannot run here."""
    return backend in _operations[operation]


def why_unsupported(operation: str, backend: str, *arguments: Any) -> str | None:
    """Why ``backend`` cannot run ``operation`` on these arguments, or None where it can."""
    if is_implemented(operation, backend):
        return _operations[operation][backend].why_not(*arguments)
    if backend in BACKENDS:
        return f"there is no {backend} implementation of {operation} in this version"
    return f"there is no such backend; the backends are {', '.join(map(repr, BACKENDS))}"


def choose(operation: str, backend: str | None, *arguments: Any) -> Callable[..., Any]:
    """The implementation to run: the named backend or an error, or the best of ``BACKENDS`` that can run.

    A backend that can run without being preferred is left for the next that is, and taken before plain PyTorch.
    """
    available = _operations[operation]
    if backend is not None:
        reason = why_unsupported(operation, backend, *arguments)
        if reason is not None:
            others = [name for name in BACKENDS if why_unsupported(operation, name, *arguments) is None]
            raise BackendUnavailableError(
                f"{operation}: backend={backend!r} cannot run: {reason}. "
                f"For these inputs use backend=None or one of: {', '.join(others)}"
            )
        return _take(operation, backend)
    on_cpu = arguments[0].device.type == "cpu"
    second_choice: str | None = None
    for name, candidate in BACKENDS.items():
        if name not in available or (on_cpu and candidate.for_gpus):
            continue
        if available[name].why_not(*arguments) is None:
            if name == "eager" and second_choice is not None:
                return _take(operation, second_choice)
            if available[name].is_preferred(*arguments):
                return _take(operation, name)
            second_choice = second_choice or name
        elif name == "cpp" and on_cpu:
            _native.warn_if_slower()
    raise AssertionError(f"{operation} has no eager implementation")


def _take(operation: str, backend: str) -> Callable[..., Any]:
    choices = _choices.get()
    if choices is not None:
        choices.append((operation, backend))
    return _operations[operation][backend].run


@contextmanager
def recording_choices() -> Iterator[list[tuple[str, str]]]:
    """Collect the (operation, backend) pairs that are chosen within the block, in their order."""
    choices: list[tuple[str, str]] = []
    token = _choices.set(choices)
    try:
        yield choices
    finally:
        _choices.reset(token)


def available_backends() -> tuple[str, ...]:
    """The backends that can run at least one operation on this machine, best first.

    Returns:
        Names out of ``"cuda"``, ``"triton"``, ``"cpp"``, ``"eager"``; ``"eager"`` is always among them.

    Example:
        >>> import nerve_kernels as nk
        >>> "eager" in nk.available_backends()
        True
    """
    return tuple(name for name, backend in BACKENDS.items() if backend.why_not_here() is None)


def config_lines() -> list[str]:
    """What ``show_config`` prints, as lines."""
    from nerve_kernels import __version__

    cuda = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "no GPU visible"
    lines = [
        f"nerve_kernels {__version__}",
        f"python {platform.python_version()}, torch {torch.__version__}, {cuda}, {torch.get_num_threads()} threads",
        f"compiled extension: {'loaded' if _native.extension_loaded() else 'not loaded: ' + str(_native.load_error())}",
        "",
        "backends, best first:",
    ]
    for name, backend in BACKENDS.items():
        reason = backend.why_not_here()
        operations = sorted(
            operation
            for operation in _operations
            if is_implemented(operation, name) and not operation.endswith("_backward")
        )
        state = f"available: {', '.join(operations)}" if reason is None else f"not available: {reason}"
        lines.append(f"  {name:<7} {backend.description}")
        lines.append(f"          {state}")
    return lines


def show_config() -> None:
    """Print the versions at hand, the backends that can run here, and why the others cannot.

    Example:
        >>> import nerve_kernels as nk
        >>> nk.show_config()  # doctest: +ELLIPSIS
        nerve_kernels ...
    """
    print("\n".join(config_lines()))
