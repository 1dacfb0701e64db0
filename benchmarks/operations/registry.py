"""What is measured, as data: operations, their sizes, our backends, their peers, and the least work they can be.

Nothing here runs anything. :mod:`benchmarks.operations.catalog` holds every operation, :mod:`benchmarks.measure` times
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from benchmarks.operations.problems import Problem


class PeerUnavailableError(RuntimeError):
    """A peer that is not to be had on this device; the message says why."""


BACKENDS = ("cuda", "triton", "cpp", "eager")

Call = Callable[[], Tensor]
"""One timed call on inputs that were made before."""
Prepare = Callable[["Problem"], Call]
"""Makes whatever may be made once for many calls (a sparse matrix, a compiled function), untimed."""


@dataclass(frozen=True)
class Size:
    """One problem: a layer of attention, a grid of tokens, labels that walk on it. Unused fields keep their default."""

    name: str
    grid: tuple[int, int]
    batch: int = 1
    heads: int = 8
    head_size: int = 40
    labels: int = 21
    window: int = 7
    cells: int = 16
    steps: int = 20
    pixels: tuple[int, int] = (512, 512)
    neighbours: int = 4  # of a token in a graph

    @property
    def tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def map_bytes(self) -> int:
        """One float32 attention map for each head and image: what streaming avoids."""
        return 4 * self.batch * self.heads * self.tokens**2


@dataclass(frozen=True)
class Work:
    """The least an operation can do, whoever does it: compulsory bytes (each input read, each output written once, all
    in float32), floating-point operations (a multiplication and an addition are two), and exponentials."""

    bytes: int
    operations: int = 0
    exponentials: int = 0


@dataclass(frozen=True)
class Peer:
    """Another way to the same result, or (``same_result=False``) to another answer to the same question.

    ``extra_bytes`` estimates what it allocates, so that it is left out, by name, where that does not fit; ``too_long``
    says for which sizes it would take minutes. ``past_cache`` marks a peer whose own prepared matrices do not fit any
    cache, so that one copy of its inputs is cold already. ``full_only`` marks one too slow to prepare for a quick run.
    """

    name: str
    prepare: Prepare
    same_result: bool = True
    published: bool = False
    requires: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")
    extra_bytes: Callable[[Size], int] = lambda size: 0
    too_long: Callable[[Size], bool] = lambda size: False
    past_cache: bool = False
    full_only: bool = False


@dataclass(frozen=True)
class Operation:
    """One of ours, against its definition and its peers.

    ``baseline`` names the peer to which ``python -m benchmarks compare`` holds it; ``cold`` says that in real use its
    inputs are not in any cache; ``extra_bytes`` is the memory beyond inputs and result that a test allows one call.
    """

    name: str
    ours: Callable[[Problem, str | None], Call]
    reference: Callable[[Problem], Tensor]
    work: Callable[[Size], Work]
    extra_bytes: Callable[[Size], int]
    baseline: str
    peers: tuple[Peer, ...]
    sizes: tuple[Size, ...]
    quick: tuple[Size, ...]
    sweeps: dict[str, tuple[Size, ...]] = field(default_factory=dict)
    sweep_peers: tuple[str, ...] = ()
    backends: tuple[str, ...] = BACKENDS
    cold: bool = True
    differentiates: bool = False
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        names = [peer.name for peer in self.peers]
        for name in (self.baseline, *self.sweep_peers):
            if name not in names:
                raise ValueError(f"{self.name}: expected one of its peers {names}, got {name!r}")


@dataclass(frozen=True)
class Case:
    """One operation at one size; ``sweep`` names the quantity that varies over the cases beside it."""

    operation: Operation
    size: Size
    sweep: str = ""
    quick: bool = False

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All of them, or the few that are worth a curve."""
        if not self.sweep:
            return self.operation.peers
        return tuple(peer for peer in self.operation.peers if peer.name in self.operation.sweep_peers)

    @property
    def name(self) -> str:
        """Operation and size, as one line."""
        return f"{self.operation.name} | {self.size.name}"
