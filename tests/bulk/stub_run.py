"""``python -m tests.bulk.stub_run FOLDER OUT``: a run whose segmenter only waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nerve_kernels.bulk.rows import SCHEMA
from nerve_kernels.bulk.runner import Resources, Run, run
from nerve_kernels.bulk.sources import find_sources


class StubSegmenter:
    """Gives rows without labels, one after a little while."""

    def __init__(self, seconds: float, weights: str | None) -> None:
        self._seconds = seconds

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Any:
        time.sleep(self._seconds * len(batch["id"]))
        rows = [
            {"id": str(one), "source": str(source), "weights": "stub", "error": error or None}
            for one, source, error in zip(batch["id"], batch["source"], batch["error"], strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=SCHEMA)


def main() -> None:
    folder, out, seconds, actors, address, *rows_per_file = sys.argv[1:]
    wanted = Run(
        find_sources([folder]),
        out,
        {"seconds": float(seconds)},
        {"stub": True},
        Resources(actors=int(actors), address=address or None),
        rows_per_file=int(rows_per_file[0]) if rows_per_file else 8,
    )
    print(run(wanted, kind=StubSegmenter), Path(out))


if __name__ == "__main__":
    main()
