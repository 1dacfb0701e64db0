"""How the persistent walk is laid over a GPU, and when it is worth taking: pure functions of sizes.

A part is one image and one range of labels; a team is the blocks of one part, one for each tile of tokens. The blocks
of a team wait for each other once a step, so all of them must be resident on the GPU at once; a team takes part after
part. The rule, in one place:

- The walk *fits* where, with some tile, the GPU holds the blocks of one part, each with its share of P, of the restart
  and of the window values in its shared memory. Rows of U are kept there too where they fit and are else streamed from
  global memory at every step. As many teams are launched as the GPU holds, and no more than there are parts.
- It is *worthwhile* where there is a team for every part, with U resident or no global part: small B · C. Then a step
  reads nothing but what other blocks wrote, and costs no launch. Where U is streamed, as for many cells, one Triton
  launch a step reads as much, and its products run on tensor cores. Where teams take part after part, as for many
  labels or images, each part pays for its waits again, which by our counts is more than a launch a step for all parts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

THREADS = 256
LABEL_LANES = 4  # lanes of a warp side by side over the labels
LABELS_PER_LANE = (2, 4, 6, 8)  # as csrc/cuda/walk.cu instantiates the kernel
TILES = ((8, 4), (8, 8), (8, 16), (16, 16))  # rows × columns of tokens; sides are powers of two
CELLS_PER_CHUNK = (256, 128, 64, 32)  # multiplied at a time; 256 take no more space than the sums of all warps
PAD = 4
# of a step, 2.4 µs, in tokens × labels of a multiprocessor, 768 in 1.6 µs: the counts of benchmarks/NOTES.md
WAITS = 1152


@dataclass(frozen=True)
class WalkSizes:
    """One walk; ``window`` and ``cells`` are (0, 0) without a local or a global part."""

    batch: int
    labels: int
    grid: tuple[int, int]
    window: tuple[int, int]
    cells: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """What a GPU holds: ``resident_blocks(labels_per_lane, shared_bytes)`` on each of its multiprocessors."""

    multiprocessors: int
    shared_bytes_per_block: int
    resident_blocks: Callable[[int, int], int]


@dataclass(frozen=True)
class WalkPlan:
    """One way to lay a walk over a GPU."""

    labels_per_lane: int
    tile: tuple[int, int]
    cells_per_chunk: int
    u_resident: bool
    parts: int
    tiles: int
    teams: int
    shared_bytes: int

    @property
    def blocks(self) -> int:
        """Of the launch."""
        return self.teams * self.tiles

    @property
    def rounds(self) -> int:
        """Parts of the team that takes most."""
        return math.ceil(self.parts / self.teams)

    def padded_work(self, machine: Machine) -> int:
        """Tokens × labels of the multiprocessor with most blocks, those past the edges included, and the waits."""
        tokens_labels = math.prod(self.tile) * LABEL_LANES * self.labels_per_lane
        return self.rounds * (math.ceil(self.blocks / machine.multiprocessors) * tokens_labels + WAITS)


def shared_bytes(
    sizes: WalkSizes, labels_per_lane: int, tile: tuple[int, int], cells_per_chunk: int, u_resident: bool
) -> int:
    """Shared memory of a block: ``SharedLayout`` of csrc/cuda/walk_plan.cuh, which the emulator holds it against."""
    labels, tokens, cells = LABEL_LANES * labels_per_lane, math.prod(tile), math.prod(sizes.cells)
    apart = {8: 4, 4: 16}.get(labels_per_lane, 8)
    row = (tile[1] + 2 * (sizes.window[1] // 2)) * labels
    row += (apart - row) % 32
    floats = (tile[0] + 2 * (sizes.window[0] // 2)) * row  # P and its halo
    floats += tokens * labels  # restart
    floats += math.prod(sizes.window) * (tokens + PAD)
    floats += (cells if u_resident else cells_per_chunk) * (tokens + PAD)
    floats += (cells + 1) // 2 * 4 + (tokens * 4 if cells else 0)  # where cells and pieces of cells lie
    floats += max(THREADS * labels, cells_per_chunk * labels)
    return 4 * floats


def candidates(sizes: WalkSizes) -> Iterator[WalkPlan]:
    """Every way the kernel can be launched with a team for every part, whether or not it fits."""
    cells = math.prod(sizes.cells)
    chunks = [(min(cells, CELLS_PER_CHUNK[0]), True), *((chunk, False) for chunk in CELLS_PER_CHUNK if chunk <= cells)]
    for labels_per_lane, tile, (chunk, resident) in itertools.product(LABELS_PER_LANE, TILES, chunks):
        parts = sizes.batch * math.ceil(sizes.labels / (LABEL_LANES * labels_per_lane))
        tiles = math.prod(math.ceil(side / tile_side) for side, tile_side in zip(sizes.grid, tile, strict=True))
        needed = shared_bytes(sizes, labels_per_lane, tile, chunk, resident)
        yield WalkPlan(labels_per_lane, tile, chunk, resident, parts, tiles, parts, needed)


def plan_walk(sizes: WalkSizes, machine: Machine) -> WalkPlan | str:
    """The best way that fits, or why there is none.

    A team for every part comes before teams that take several, U resident before U streamed, then the least work on
    the busiest multiprocessor, then the fewest blocks.
    """
    small_enough = [plan for plan in candidates(sizes) if plan.shared_bytes <= machine.shared_bytes_per_block]
    if not small_enough:
        least = min(plan.shared_bytes for plan in candidates(sizes))
        return (
            f"its smallest block, 32 tokens of 8 labels, needs {least} bytes of shared memory for a window of "
            f"{sizes.window[0]} × {sizes.window[1]} and {sizes.cells[0]} × {sizes.cells[1]} cells, this GPU gives a "
            f"block at most {machine.shared_bytes_per_block}"
        )
    held = {
        plan: machine.multiprocessors * machine.resident_blocks(plan.labels_per_lane, plan.shared_bytes)
        for plan in small_enough
    }
    fitting = [
        dataclasses.replace(plan, teams=min(plan.parts, held[plan] // plan.tiles))
        for plan in small_enough
        if plan.tiles <= held[plan]
    ]
    if not fitting:
        nearest = min(small_enough, key=lambda plan: plan.tiles / max(held[plan], 0.5))
        return (
            f"the blocks that walk one image must be on the GPU at once: {sizes.grid[0]} × {sizes.grid[1]} tokens take "
            f"at least {nearest.tiles}, of {nearest.shared_bytes} bytes of shared memory each, and "
            f"{machine.multiprocessors} multiprocessors hold {held[nearest]}"
        )
    return min(fitting, key=lambda plan: (plan.rounds > 1, not plan.u_resident, plan.padded_work(machine), plan.blocks))


def is_worthwhile(plan: WalkPlan | str) -> bool:
    """Whether the persistent walk is expected to beat one launch a step; see the rule above."""
    return isinstance(plan, WalkPlan) and plan.u_resident and plan.rounds == 1
