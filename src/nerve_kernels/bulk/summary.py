"""What a destination holds at the end: images, failures, what is missing, and where the time went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from .destination import Destination


@dataclass(frozen=True)
class Summary:
    """All rows of a run, those of earlier commands included.

    Args:
        rows: how many there are.
        distinct: how many ids.
        failures: rows with an error.
        examples: the first few of them, as (source, error).
        seconds: of each phase over all rows.
    """

    rows: int
    distinct: int
    failures: int
    examples: tuple[tuple[str, str], ...]
    seconds: dict[str, float]

    @classmethod
    def of(cls, destination: Destination, *, examples: int = 5) -> Summary:
        """Read the columns that it takes, batch after batch."""
        keys: list[np.ndarray] = []
        seconds: Counter[str] = Counter()
        first: list[tuple[str, str]] = []
        failures = 0
        for batch in destination.table().to_batches(columns=["id", "source", "error", "seconds"]):
            keys.append(np.array([hash(one) for one in batch["id"].to_pylist()], dtype=np.int64))
            failed = batch.filter(pc.is_valid(batch["error"]))
            failures += failed.num_rows
            if len(first) < examples:
                first += list(zip(failed["source"].to_pylist(), failed["error"].to_pylist(), strict=True))
            for entries in batch["seconds"].to_pylist():
                seconds.update(dict(entries or ()))
        all_keys = np.concatenate(keys) if keys else np.empty(0, dtype=np.int64)
        return cls(len(all_keys), len(np.unique(all_keys)), failures, tuple(first[:examples]), dict(seconds))
