"""Which images earlier runs into a folder have finished, and whether their files are still those."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .labelled_images import LabelledImages
from .processes import Processes
from .run_folder import ImageRecord, RunFolder

MAX_NAMED = 3


class Finished:
    """The records that count, each image once over all processes.

    A record counts while the files that it was made from are as they were; of one that does not, another record of
    the same image may, made after the change.

    Args:
        folder: Of the run. Nodes need not share it: each process counts what it sees.
        dataset: The images.
        chosen: Indices of those that are to be scored.
        processes: All of the run.
        verify: Compare the bytes of files, whatever their size and time.
        redo_changed: Leave images whose files have changed open, in place of refusing them.

    Raises:
        ValueError: Files have changed since they were scored; up to three images are named. Or a damaged shard.

    Attributes:
        still_open: Indices that no process has a record of.
        unchecked: How many of this process's records do not say what their files were.
    """

    def __init__(
        self,
        folder: RunFolder,
        dataset: LabelledImages[Any],
        chosen: Sequence[int],
        processes: Processes,
        *,
        verify: bool = False,
        redo_changed: bool = False,
    ) -> None:
        self._folder, self._dataset, self._verify = folder, dataset, verify
        self._stale: set[ImageRecord] = set()
        self.unchecked = 0
        wanted = torch.zeros(len(dataset), dtype=torch.bool)
        wanted[list(chosen)] = True
        # of each image the first process that sees it finished, or the number of processes
        owner = torch.full((len(dataset),), processes.count, dtype=torch.int64)
        for record in folder.records():
            if wanted[record.index] and owner[record.index] != processes.rank:
                if self._is_fresh(record):
                    owner[record.index] = processes.rank
                else:
                    self._stale.add(record)
        owner = processes.smallest(owner)
        self.still_open = list(itertools.compress(chosen, (owner[list(chosen)] == processes.count).tolist()))
        self._to_count = wanted & (owner == processes.rank)
        seen = {index for indices in processes.gather({record.index for record in self._stale}) for index in indices}
        changed = sorted(seen.intersection(self.still_open))
        if changed and not redo_changed:
            self._refuse(changed)

    def records(self) -> Iterator[ImageRecord]:
        """Those of this process's share; to be gone through once."""
        for record in self._folder.records():
            if self._to_count[record.index] and record not in self._stale:
                self._to_count[record.index] = False
                self.unchecked += not record.files and bool(self._dataset.files(record.index))
                yield record

    def _is_fresh(self, record: ImageRecord) -> bool:
        if not record.files:
            return True
        paths = self._dataset.files(record.index)
        return len(paths) == len(record.files) and all(
            state.is_unchanged(path, verify=self._verify) for path, state in zip(paths, record.files, strict=True)
        )

    def _refuse(self, changed: Sequence[int]) -> None:
        named = ", ".join(self._dataset.identifiers[index] for index in changed[:MAX_NAMED])
        more = f" and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
        raise ValueError(
            f"out: {self._folder.folder} expected the files that its results were made from, got changed or missing "
            f"ones of {named}{more}; score these again with --redo-changed (redo_changed=True), or choose another "
            "folder"
        )
