"""Global and shared memory that check and count every access."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Addresses = NDArray[np.uint64]
Bytes = NDArray[np.uint8]
SECTOR = 32  # bytes that a GPU moves at once
NOBODY, SEVERAL = -1, -2


@dataclass(frozen=True)
class Fault:
    """Something that a GPU would answer with an error, or with a result that depends on luck."""

    kind: str  # "race", "out of bounds" or "misaligned"
    where: str  # the tensor, or "shared"
    line: int  # of the PTX
    text: str


@dataclass
class Traffic:
    """What was read of, or written to, one tensor."""

    bytes: int = 0  # asked for by threads
    warp_sectors: int = 0  # sectors of each warp's instruction: what goes through the first cache
    program_sectors: int = 0  # sectors of each program, once each: what a perfect first cache leaves
    sectors: int = 0  # sectors of the launch, once each: what a perfect second cache leaves


@dataclass
class Tensor:
    """A tensor in global memory, and who touched what of it."""

    name: str
    start: int
    data: Bytes
    traffic: Traffic = field(default_factory=Traffic)
    touched: NDArray[np.bool_] = field(init=False)
    touched_by_program: NDArray[np.bool_] = field(init=False)
    writer: NDArray[np.int32] = field(init=False)
    reader: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        sectors = -(-self.data.size // SECTOR)
        self.touched, self.touched_by_program = np.zeros(sectors, bool), np.zeros(sectors, bool)
        self.writer, self.reader = (np.full(self.data.size, NOBODY, np.int32) for _ in range(2))


class GlobalMemory:
    """Tensors at addresses far from each other; a byte that one program writes is no other program's business."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.faults: list[Fault] = []
        self.program = 0

    def add(self, name: str, array: NDArray[np.generic]) -> int:
        """Put an array where programs can reach it, uncopied; its address."""
        start = (len(self.tensors) + 1) << 40
        self.tensors.append(Tensor(name, start, array.reshape(-1).view(np.uint8)))
        return start

    def begin_program(self, program: int) -> None:
        """From here on, accesses are those of another program."""
        self.program = program
        for tensor in self.tensors:
            tensor.touched_by_program[:] = False

    def load(self, addresses: Addresses, size: int, threads: NDArray[np.intp], line: int, text: str) -> Bytes:
        """``size`` bytes of each address; zeros where there is a fault."""
        result = np.zeros((len(addresses), size), np.uint8)
        for tensor, index, which in self._find(addresses, size, threads, line, text):
            result[which] = tensor.data[index]
            self._check(tensor, index, tensor.writer, line, text)
            reader = tensor.reader[index]
            mixed = (reader != NOBODY) & (reader != self.program)
            tensor.reader[index] = np.where(mixed, SEVERAL, self.program)
        return result

    def store(self, addresses: Addresses, values: Bytes, threads: NDArray[np.intp], line: int, text: str) -> None:
        """Write a row of bytes to each address."""
        for tensor, index, which in self._find(addresses, values.shape[1], threads, line, text):
            tensor.data[index] = values[which]
            self._check(tensor, index, tensor.writer, line, text)
            self._check(tensor, index, tensor.reader, line, text)
            tensor.writer[index] = self.program

    def _check(self, tensor: Tensor, index: NDArray[np.int64], others: NDArray[np.int32], line: int, text: str) -> None:
        other = others[index]
        if ((other != NOBODY) & (other != self.program)).any():
            self.faults.append(Fault("race", tensor.name, line, text))

    def _find(
        self, addresses: Addresses, size: int, threads: NDArray[np.intp], line: int, text: str
    ) -> list[tuple[Tensor, NDArray[np.int64], NDArray[np.intp]]]:
        """For each tensor the bytes that are asked for, (threads, size), and by which rows; counted and checked."""
        offsets = (addresses & np.uint64((1 << 40) - 1)).astype(np.int64)
        number = (addresses >> np.uint64(40)).astype(np.int64) - 1
        found = []
        good = np.zeros(len(addresses), bool)
        for index in np.unique(number):
            if not 0 <= index < len(self.tensors):
                continue
            tensor = self.tensors[index]
            inside = (number == index) & (offsets + size <= tensor.data.size)
            good |= inside
            which = np.nonzero(inside)[0]
            self._count(tensor, offsets[which], size, threads[which])
            found.append((tensor, offsets[which][:, None] + np.arange(size), which))
        if not good.all():
            self.faults.append(Fault("out of bounds", "global", line, text))
        if (offsets[good] % size).any():
            self.faults.append(Fault("misaligned", "global", line, text))
        return found

    def _count(self, tensor: Tensor, offsets: NDArray[np.int64], size: int, threads: NDArray[np.intp]) -> None:
        traffic, sectors = tensor.traffic, offsets // SECTOR  # aligned accesses of up to 16 bytes: one sector each
        traffic.bytes += size * len(offsets)
        traffic.warp_sectors += np.unique(sectors + threads // 32 * tensor.touched.size).size
        unique = np.unique(sectors)
        traffic.program_sectors += int((~tensor.touched_by_program[unique]).sum())
        tensor.touched_by_program[unique] = True
        traffic.sectors += int((~tensor.touched[unique]).sum())
        tensor.touched[unique] = True


class SharedMemory:
    """One program's shared memory: NaN until written, and a race detector between barriers.

    Lanes of one warp are trusted to keep their order; two warps that touch a byte between two barriers, one of them
    writing, are a race.
    """

    def __init__(self, size: int, faults: list[Fault]) -> None:
        self.data = np.full(size, 0xFF, np.uint8)
        self.faults = faults
        self.writer, self.reader = (np.full(size, NOBODY, np.int32) for _ in range(2))

    def barrier(self) -> None:
        """What happened before is seen by all."""
        self.writer[:] = NOBODY
        self.reader[:] = NOBODY

    def load(self, addresses: Addresses, size: int, threads: NDArray[np.intp], line: int, text: str) -> Bytes:
        """``size`` bytes of each address."""
        index, warp = self._access(addresses, size, threads, False, line, text)
        reader = self.reader[index]
        self.reader[index] = np.where((reader != NOBODY) & (reader != warp), SEVERAL, warp)
        return self.data[index]

    def store(self, addresses: Addresses, values: Bytes, threads: NDArray[np.intp], line: int, text: str) -> None:
        """Write a row of bytes to each address."""
        index, warp = self._access(addresses, values.shape[1], threads, True, line, text)
        self.data[index] = values
        self.writer[index] = warp

    def _access(
        self, addresses: Addresses, size: int, threads: NDArray[np.intp], writes: bool, line: int, text: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        index = addresses.astype(np.int64)[:, None] + np.arange(size)
        if index.size and (index.min() < 0 or index.max() >= self.data.size):
            self.faults.append(Fault("out of bounds", "shared", line, text))
            index = np.clip(index, 0, self.data.size - 1)
        warp = np.broadcast_to((threads // 32)[:, None], index.shape).astype(np.int32)
        writer, reader = self.writer[index], self.reader[index]
        race = (writer != NOBODY) & (writer != warp)
        if writes:
            race |= (reader != NOBODY) & (reader != warp)
        if race.any():
            self.faults.append(Fault("race", "shared", line, text))
        return index, warp
