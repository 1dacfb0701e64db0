"""Which implementation runs: every operation lists its backends, each with a predicate that can say why not.

A backend is chosen in the order of ``PREFERENCE`` among those that can run, less those that say of themselves that the
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
from torch import Tensor

from nerve_kernels import _native
from nerve_kernels._triton import availability

PREFERENCE = ("cuda", "triton", "cpp", "eager")

DESCRIPTIONS = {
    "eager": "plain PyTorch on any device, structured, never an N × N matrix",
    "cpp": "C++ with SIMD and threads on the CPU",
    "triton": "fused Triton kernels on a GPU",
    "cuda": "persistent CUDA C++ kernels on a GPU",
}


class BackendUnavailableError(RuntimeError):
    """A backend was named that cannot run this operation on these inputs; the message says why."""


@dataclass(frozen=True)
class Implementation:
    """One backend's implementation of one operation and the predicates that admit inputs to it.

    The last two are called with what ``run`` is called with, and only where nothing speaks against the tensors.
    """

    run: Callable[..., Any]
    why_unsupported_tensors: Callable[[tuple[Tensor, ...]], str | None]
    why_unsupported_arguments: Callable[..., str | None] = lambda *arguments: None
    is_preferred: Callable[..., bool] = lambda *arguments: True

    def why_unsupported(self, tensors: tuple[Tensor, ...], arguments: tuple[Any, ...]) -> str | None:
        """Why it cannot run, or None where it can."""
        reason = self.why_unsupported_tensors(tensors)
        return reason if reason is not None or not arguments else self.why_unsupported_arguments(*arguments)


_implementations: dict[str, dict[str, Implementation]] = {}
_choices: ContextVar[list[tuple[str, str]] | None] = ContextVar("_choices", default=None)


def register(
    operation: str,
    backend: str,
    run: Callable[..., Any],
    why_unsupported: Callable[[tuple[Tensor, ...]], str | None] = lambda tensors: None,
    why_unsupported_arguments: Callable[..., str | None] = lambda *arguments: None,
    is_preferred: Callable[..., bool] = lambda *arguments: True,
) -> None:
    """Add a backend to an operation. The reasons are None where it can run; ``is_preferred`` is asked only then."""
    _implementations.setdefault(operation, {})[backend] = Implementation(
        run, why_unsupported, why_unsupported_arguments, is_preferred
    )


def why_unsupported_cpp(tensors: tuple[Tensor, ...]) -> str | None:
    """Why the compiled CPU extension cannot take these tensors, or None where it can."""
    if not _native.extension_loaded():
        return f"the compiled extension is not loaded: {_native.load_error()}"
    devices = sorted({tensor.device.type for tensor in tensors})
    return None if devices == ["cpu"] else f"it runs on cpu tensors, got {', '.join(devices)}"


def is_implemented(operation: str, backend: str) -> bool:
    """Whether ``backend`` has an implementation of ``operation``, be it that it cannot run here."""
    return backend in _implementations[operation]


def can_run(
    operation: str,
    backend: str,
    tensors: tuple[Tensor, ...],
    arguments: tuple[Any, ...] = (),
    *,
    raise_error: bool = False,
) -> bool:
    """Whether ``backend`` can run ``operation`` on these tensors; with ``raise_error`` the reason is raised instead."""
    available = _implementations[operation]
    if backend in available:
        reason = available[backend].why_unsupported(tensors, arguments)
    elif backend in PREFERENCE:
        reason = f"there is no {backend} implementation of {operation} in this version"
    else:
        reason = f"there is no such backend; the backends are {', '.join(repr(name) for name in PREFERENCE)}"
    if reason is not None and raise_error:
        others = [name for name in PREFERENCE if name in available and can_run(operation, name, tensors, arguments)]
        raise BackendUnavailableError(
            f"{operation}: backend={backend!r} cannot run: {reason}. "
            f"For these inputs use backend=None or one of: {', '.join(others)}"
        )
    return reason is None


def choose(
    operation: str, backend: str | None, tensors: tuple[Tensor, ...], arguments: tuple[Any, ...] = ()
) -> Callable[..., Any]:
    """The implementation to run: the named backend or an error, or the best of ``PREFERENCE`` that can run.

    A backend that can run without being preferred is left for the next that is, and taken before plain PyTorch.
    """
    available = _implementations[operation]
    if backend is not None:
        can_run(operation, backend, tensors, arguments, raise_error=True)
        return _take(operation, backend)
    on_cpu = tensors[0].device.type == "cpu"
    second_choice: str | None = None
    for name in PREFERENCE:
        if name not in available or (name == "triton" and on_cpu):
            continue  # Triton's interpreter is for tests: it runs where it is named, and is never chosen
        if can_run(operation, name, tensors, arguments):
            if name == "eager" and second_choice is not None:
                return _take(operation, second_choice)
            if not arguments or available[name].is_preferred(*arguments):
                return _take(operation, name)
            second_choice = second_choice or name
        elif name == "cpp" and on_cpu:
            _native.warn_if_slower()
    raise AssertionError(f"{operation} has no eager implementation")


def _take(operation: str, backend: str) -> Callable[..., Any]:
    choices = _choices.get()
    if choices is not None:
        choices.append((operation, backend))
    return _implementations[operation][backend].run


@contextmanager
def recording_choices() -> Iterator[list[tuple[str, str]]]:
    """Collect the (operation, backend) pairs that are chosen within the block, in their order."""
    choices: list[tuple[str, str]] = []
    token = _choices.set(choices)
    try:
        yield choices
    finally:
        _choices.reset(token)


def _why_unavailable(backend: str) -> str | None:
    """Why no operation can use this backend on this machine, or None where at least one can."""
    operations = [name for name, available in _implementations.items() if backend in available]
    if not operations:
        return "no operation has an implementation for it in this version"
    if backend == "cpp" and not _native.extension_loaded():
        return f"the compiled extension is not loaded: {_native.load_error()}"
    if backend == "triton":
        return availability.why_unsupported_machine()
    if backend == "cuda":
        if not _native.cuda_extension_loaded():
            return f"the compiled CUDA extension is not loaded: {_native.cuda_load_error()}"
        return None if torch.cuda.is_available() else "torch sees no GPU"
    return None


def available_backends() -> tuple[str, ...]:
    """The backends that can run at least one operation on this machine, best first.

    Returns:
        Names out of ``"cuda"``, ``"triton"``, ``"cpp"``, ``"eager"``; ``"eager"`` is always among them.

    Example:
        >>> import nerve_kernels as nk
        >>> "eager" in nk.available_backends()
        True
    """
    return tuple(name for name in PREFERENCE if _why_unavailable(name) is None)


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
    for backend in PREFERENCE:
        reason = _why_unavailable(backend)
        operations = sorted(name for name, available in _implementations.items() if backend in available)
        state = f"available: {', '.join(operations)}" if reason is None else f"not available: {reason}"
        lines.append(f"  {backend:<7} {DESCRIPTIONS[backend]}")
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
