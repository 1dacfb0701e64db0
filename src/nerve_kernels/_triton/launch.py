"""What every host wrapper does: strides with what is known of their alignment, precision, and the launch itself.

A wrapper first makes a ``Launch``, which is plain data, and then runs it. The compile-only checks make the same
``Launch`` from tensors without storage, so what they measure is what would run.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from nerve_kernels.environment import interpreting_triton

VECTOR_BYTES = 16  # the widest load of one thread
SLICE = 32
H100 = 9, 132  # major compute capability and multiprocessors: what is planned for where there is no GPU


_recorded: ContextVar[list[Launch] | None] = ContextVar("recorded", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect the launches that are planned within the block. They have nothing left to do there, on any device."""
    recorded: list[Launch] = []
    token = _recorded.set(recorded)
    try:
        yield recorded
    finally:
        _recorded.reset(token)


@dataclass(frozen=True)
class Launch:
    """One kernel, how many programs of it, and everything it is called with."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int
    stages: int

    def __post_init__(self) -> None:
        recorded = _recorded.get()
        if recorded is not None:
            recorded.append(copy.copy(self))
            object.__setattr__(self, "programs", 0)

    def run(self) -> None:
        """Start the programs on the device of the arguments; nothing where there is nothing to do."""
        if self.programs == 0:
            return
        with on_device(next(item for item in self.arguments.values() if isinstance(item, Tensor))):
            self.kernel[(self.programs,)](**self.arguments, **self.constants, **self.options())

    def prepared(self, *changing: str) -> Callable[..., None]:
        """What starts the programs on the current device with other tensors in the place of ``changing``, in order.

        Triton binds arguments and finds the compiled kernel once, here. So other tensors must be like those of the
        launch: of their dtype, and at addresses that are multiples of 16, as torch allocates them.
        """
        if self.programs == 0:
            return lambda *tensors: None
        if interpreting_triton():
            return lambda *tensors: replace(
                self, arguments=self.arguments | dict(zip(changing, tensors, strict=True))
            ).run()
        grid = (self.programs, 1, 1)
        start = self.kernel.warmup(grid=grid, **self.arguments, **self.constants, **self.options())[grid]
        values = self.arguments | self.constants
        # addresses: from a tensor Triton's launcher would ask for its address and, the driver, whether it is one
        bound = [_address(values[name]) for name in self.kernel.arg_names]
        places = [self.kernel.arg_names.index(name) for name in changing]

        def run(*tensors: Tensor) -> None:
            for place, tensor in zip(places, tensors, strict=True):
                bound[place] = tensor.data_ptr()
            start(*bound)

        return run

    def options(self) -> dict[str, Any]:
        """How the kernel is compiled; multiplications and additions are fused, whatever Triton's default is."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


class Launches:
    """Launches one after the other, each with the names of what it takes of what changes from step to step."""

    def __init__(self, *parts: tuple[Launch, tuple[str, ...]]) -> None:
        self.parts = parts

    def __add__(self, other: Launches) -> Launches:
        return Launches(*self.parts, *other.parts)

    def kept(self, *names: str) -> Launches:
        """The same where nothing but ``names`` changes."""
        return Launches(*((launch, tuple(name for name in taken if name in names)) for launch, taken in self.parts))

    def run(self) -> None:
        """Start them in their order."""
        for launch, _ in self.parts:
            launch.run()

    def prepared(self, *changing: str) -> Callable[..., None]:
        """As :meth:`Launch.prepared`; what none of them takes may be among ``changing``."""
        starts = []
        for launch, names in self.parts:
            places = [place for place, name in enumerate(changing) if name in names]
            starts.append((launch.prepared(*(changing[place] for place in places)), places))

        def run(*tensors: Tensor) -> None:
            for start, places in starts:
                start(*(tensors[place] for place in places))

        return run


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's device the current one."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else contextlib.nullcontext()


def _address(value: Any) -> Any:
    return value.data_ptr() if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class HeadSplit:
    """A head size as a power of two and a smaller rest: 40 = 32 + 8, 80 = 64 + 16, 160 = 128 + 32.

    Tiles are powers of two. One tile of the next power would spend up to half of its products on padding.
    """

    first: int
    rest: int
    repeat: int = 1  # times that ``first`` is taken

    @classmethod
    def of(cls, size: int) -> HeadSplit:
        """The split of one head size; dots want at least 16 columns."""
        if size <= 16:
            return cls(16, 0)
        first = 1 << (size.bit_length() - 1)
        rest = size - first
        if rest > first // 2:  # such as 56 = 32 + 24: the rest would be as large as the first part
            return cls(2 * first, 0)
        return cls(first, 0 if rest == 0 else max(16, triton.next_power_of_2(rest)))

    @classmethod
    def into_slices(cls, size: int) -> HeadSplit:
        """Slices of 32 columns, in a loop, and a rest; unrolled, a long product of float32 or of wide tiles spills."""
        if size <= SLICE:
            return cls.of(size)
        repeat, rest = divmod(size, SLICE)
        return cls(SLICE, 0 if rest == 0 else max(16, triton.next_power_of_2(rest)), repeat)

    def constants(self) -> dict[str, int]:
        """As the kernels name them."""
        return {"FIRST": self.first, "REPEAT": self.repeat, "REST": self.rest}


def is_low_precision(tensor: Tensor) -> bool:
    """Whether elements take two bytes, and products run on tensor cores without being asked."""
    return tensor.element_size() == 2


def dot_precision(tensor: Tensor) -> str:
    """How products of float32 are taken: exactly, or as TF32 where torch's own matrix products may do so."""
    allowed = tensor.dtype == torch.float32 and torch.version.hip is None
    return "tf32" if allowed and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


_planned_capability: ContextVar[int | None] = ContextVar("_planned_capability", default=None)


@contextlib.contextmanager
def planning_for(capability: int) -> Iterator[None]:
    """Launches are planned as for a GPU of this major compute capability, whatever is there; 0 is AMD's."""
    token = _planned_capability.set(capability)
    try:
        yield
    finally:
        _planned_capability.reset(token)


def compute_capability(tensor: Tensor) -> int:
    """The major one of the GPU that holds a tensor, or of the current one where none does; 0 of AMD's."""
    planned = _planned_capability.get()
    if planned is not None:
        return planned
    if torch.version.hip is not None:
        return 0
    gpu = _gpu_of(tensor)
    return H100[0] if gpu is None else torch.cuda.get_device_capability(gpu)[0]


def multiprocessors(tensor: Tensor) -> int:
    """Of that GPU."""
    gpu = _gpu_of(tensor)
    return H100[1] if gpu is None else torch.cuda.get_device_properties(gpu).multi_processor_count


def _gpu_of(tensor: Tensor) -> torch.device | None:
    if tensor.is_cuda:
        return tensor.device
    return torch.device("cuda") if torch.cuda.is_available() else None


def score_precision(q: Tensor, columns: int = 0) -> str:
    """``dot_precision``, with exact products of float32 in three TF32 terms where that is the quicker way.

    Hopper reads an operand of a product from shared memory, which leaves registers for the terms of large tiles. Other
    NVIDIA GPUs hold both in registers: there only heads of up to so many ``columns`` have three terms.
    """
    precision = dot_precision(q)
    if precision != "ieee" or q.dtype != torch.float32:
        return precision
    capability = compute_capability(q)
    return "tf32x3" if capability == 9 or (capability and q.shape[-1] <= columns) else precision


def matrix_strides(**matrices: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """Strides of (batch, head, row, column) tensors, as arguments ``<name>_batch`` … and constants ``<name>_align``.

    All but the last are in units of the largest vector that they are all multiples of: 40 columns of float16 are 5
    vectors of 8, and the kernel multiplies by 8 again. Triton by itself notices multiples of 16 only.
    """
    arguments: dict[str, int] = {}
    constants: dict[str, int] = {}
    for name, matrix in matrices.items():
        batch, head, row, column = matrix.stride()
        align = math.gcd(batch, head, row, VECTOR_BYTES // matrix.element_size()) if column == 1 else 1
        arguments |= {
            f"{name}_batch": batch // align,
            f"{name}_head": head // align,
            f"{name}_row": row // align,
            f"{name}_column": column,
        }
        constants[f"{name}_align".upper()] = align
    return arguments, constants
