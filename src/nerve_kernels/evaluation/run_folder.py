"""What a run leaves on disk while it goes on: finished pictures in shards, and what they were made with."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nerve_kernels.segmentation.files import write_whole

DESCRIPTION = "run.json"
SHARDS = "shards"


@dataclass(frozen=True)
class PictureRecord:
    """One finished picture.

    Args:
        index: in the data set.
        counts: for each variant of the method the non-zero entries of its confusion matrix, as (cell, pixels) with
            cell = truth · classes + prediction.
    """

    index: int
    counts: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def from_matrices(cls, index: int, matrices: list[torch.Tensor]) -> PictureRecord:
        """From dense confusion matrices, of which a picture fills few cells."""

        def entries(matrix: torch.Tensor) -> tuple[tuple[int, int], ...]:
            flat = matrix.flatten()
            cells = flat.nonzero()[:, 0]
            return tuple(zip(cells.tolist(), flat[cells].tolist(), strict=True))

        return cls(index, tuple(entries(matrix) for matrix in matrices))


class RunFolder:
    """Finished pictures of a run, safe against being killed at any moment.

    Records are collected and written as a new shard, whole or not at all, under a name no other process uses; what
    has been written is never touched again.

    Args:
        folder: made where it is missing.
        description: what the run is made with; records of another one are never mixed in.
        save_every: seconds from one shard to the next; what is lost when the process is killed.

    Raises:
        ValueError: the folder holds a run with another description; names what differs.
    """

    def __init__(self, folder: str | os.PathLike[str], description: dict[str, Any], *, save_every: float) -> None:
        self.folder = Path(folder)
        self._save_every = save_every
        self._waiting: list[PictureRecord] = []
        self._saved_at = time.monotonic()
        plain = json.loads(json.dumps(description))
        file = self.folder / DESCRIPTION
        if file.exists():
            difference = _difference(json.loads(file.read_text(encoding="utf-8")), plain)
            if difference:
                raise ValueError(
                    f"out: {self.folder} holds a run with {difference}; results of different runs are not mixed, so "
                    "choose another folder or delete this one"
                )
        else:
            write_whole(file, (json.dumps(plain, indent=2) + "\n").encode())

    def add(self, record: PictureRecord) -> None:
        """Keep a finished picture; it is on disk after at most `save_every` seconds and one more picture."""
        self._waiting.append(record)
        if time.monotonic() - self._saved_at >= self._save_every:
            self.save()

    def save(self) -> None:
        """Write what is waiting."""
        if self._waiting:
            rows = [[record.index, record.counts] for record in self._waiting]
            name = f"{self._waiting[0].index:09d}-{uuid.uuid4().hex[:12]}.json"
            write_whole(self.folder / SHARDS / name, json.dumps(rows, separators=(",", ":")).encode())
        self._waiting = []
        self._saved_at = time.monotonic()

    def records(self) -> Iterator[PictureRecord]:
        """Every record on disk, shard after shard.

        Raises:
            ValueError: a damaged shard.
        """
        for path in sorted((self.folder / SHARDS).glob("*.json")):
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))
                found = [
                    PictureRecord(index, tuple(tuple((cell, pixels) for cell, pixels in one) for one in counts))
                    for index, counts in rows
                ]
            except (OSError, ValueError, TypeError) as error:
                raise ValueError(f"out: the shard {path} is damaged ({error}); delete it and run again") from error
            yield from found


def digest(*parts: bytes | str) -> str:
    """A fingerprint of texts and bytes."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:32]


def digest_of_weights(*models: torch.nn.Module) -> str:
    """A fingerprint of the names and bits of all parameters and buffers."""
    sha = hashlib.sha256()
    for model in models:
        for name, tensor in model.state_dict().items():
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()[:32]


def _difference(old: Any, new: Any, name: str = "") -> str:
    """The first place in which two descriptions differ, in words; empty where there is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = _difference(old.get(key), new.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return ""
    return "" if old == new else f"{name} = {old!r}, this one has {new!r}"
