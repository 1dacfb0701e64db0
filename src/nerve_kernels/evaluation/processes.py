"""The processes that share an evaluation: one, or as many as torchrun has started, on any number of nodes."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as distributed

Shared = TypeVar("Shared")

# The processes meet at the start and at the end only, and one may be busy for long after another has finished.
GROUP_TIMEOUT = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """All processes of a run, seen from one of them; a context manager that leaves the group.

    Args:
        rank: of this process.
        count: of all processes.
        device: what this process computes on.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Join the group that torchrun, or whatever sets the same variables, has made: nccl on CUDA, gloo elsewhere.

        Args:
            device: what the models are on; of several GPUs each process of a node takes its own
                (see :func:`local_device`).
        """
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return cls(device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=GROUP_TIMEOUT)
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the report and shows the progress."""
        return self.rank == 0

    def total(self, counts: torch.Tensor) -> torch.Tensor:
        """The sum of integer tensors over all processes."""
        return self._reduced(counts, distributed.ReduceOp.SUM)

    def smallest(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise minimum over all processes."""
        return self._reduced(values, distributed.ReduceOp.MIN)

    def gather(self, item: Shared) -> list[Shared]:
        """The items of all processes, by rank; also a point that none passes before all have reached it."""
        if self.count == 1:
            return [item]
        items: list[Shared | None] = [None] * self.count
        distributed.all_gather_object(items, item)
        return items  # type: ignore[return-value]

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def _reduced(self, values: torch.Tensor, operation: distributed.ReduceOp.RedOpType) -> torch.Tensor:
        if self.count == 1:
            return values
        shared = values.to(self.device, copy=True)
        distributed.all_reduce(shared, op=operation)
        return shared.cpu()


def local_device(device: str | None) -> str | None:
    """The device a process of torchrun uses where the user has named none, or just ``cuda``: the GPU of its number.

    Example:
        >>> local_device("cpu")
        'cpu'
    """
    number = os.environ.get("LOCAL_RANK")
    if number is None or device not in (None, "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{number}"
