"""The registry on a GPU, against its peers there, with ceilings measured on the same GPU: part of ``make gpu-check``.

Every contender that can be is captured as a CUDA graph and replayed, so that Python's share is in nobody's time.
``--dry-run`` runs the same code on the CPU at a small size and expects nothing of its figures.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.expectations import ON_H100
from benchmarks.measure import Contest
from benchmarks.operations import attention, sizes
from benchmarks.operations import walk as walking
from benchmarks.operations.registry import Case, Operation, Size
from benchmarks.rows import rows_of
from benchmarks.tables import aligned, write_rows

CASE_SECONDS = 0.4

# The expected first: what is left when time is up is named.
CASES: tuple[tuple[Operation, Size, torch.dtype], ...] = (
    (attention.ENTROPY, sizes.SD15_64, torch.float16),
    (attention.FUSE_MAPS, sizes.SD15_64, torch.float16),
    (walking.WALK, sizes.walk(64, 21), torch.float32),
    (attention.ENTROPY, sizes.SD15_64, torch.float32),
    (attention.BOTH, sizes.SD15_64, torch.float16),
    (attention.LOCAL, sizes.SD15_64, torch.float16),
    (attention.GLOBAL, sizes.SD15_64, torch.float16),
    (attention.MARGINAL, sizes.SD15_64, torch.float16),
    (attention.FUSE, sizes.SD15_64, torch.float16),
    (attention.MAP_ENTROPY, sizes.SD15_64, torch.float16),
    (walking.WALK, sizes.walk(64, 171), torch.float32),
    (walking.WALK, sizes.walk(128, 150, 32), torch.float32),
    (walking.WALK, sizes.walk(256, 19, 32), torch.float32),
    (walking.WALK, sizes.walk(64, 21, batch=8), torch.float32),
    (walking.WALK, sizes.walk(64, 847), torch.float32),
    (walking.LOCAL_WALK, sizes.walk(64, 21), torch.float32),
    (walking.PRODUCT, sizes.walk(64, 171), torch.float32),
    (attention.ENTROPY, sizes.SD21_96, torch.float16),
    (attention.ENTROPY, sizes.SDXL_64, torch.bfloat16),
    (attention.ENTROPY, sizes.SD15_32_BATCH_8, torch.float16),
    (attention.BOTH, sizes.SD15_16_BATCH_32, torch.float16),
    (walking.WALK_GRADIENT, sizes.walk(64, 21), torch.float32),
    (walking.REFINE, sizes.SD15_64, torch.float32),
    (walking.LIMIT, sizes.walk(64, 21), torch.float32),
)


def measure(
    device: str, seconds: float, ceilings: dict[torch.dtype, Ceilings]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of every case that time was left for, and what went wrong or was left out, in words."""
    deadline, rows, remarks = time.monotonic() + seconds, list[dict[str, Any]](), list[str]()
    for operation, size, dtype in CASES:
        label = f"{operation.name} | {size.name} | {dtype}"
        if time.monotonic() > deadline:
            remarks.append(f"no time was left for {label}")
            continue
        try:
            case = Case(operation, size if device == "cuda" else sizes.SMALL_IMAGE)
            contest = Contest(case, budget=CASE_SECONDS if device == "cuda" else 0.01, device=device, dtype=dtype)
            contest.run()
        except Exception as error:  # a kernel that does not compile must not hide the others
            remarks.append(f"FAILED {label}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        rows += rows_of(contest, ceilings[dtype])
        print(f"measured {label}", flush=True)
        if device == "cuda":
            del contest
            torch.cuda.empty_cache()
    return rows, remarks


def printed(rows: Sequence[dict[str, Any]]) -> str:
    """Every contender with time, memory, and its share of copy bandwidth and of the matrix product's rate."""
    lines = [("operation", "size", "dtype", "contender", "ms", "graph", "MiB", "% copy", "% matmul")]
    for row in rows:
        if row["missing"]:
            continue
        shares = (row["percent_of_bandwidth"], row["percent_of_fma_peak"])
        lines.append(
            (
                row["operation"],
                row["size"],
                row["dtype"],
                row["implementation"],
                row["median_ms"],
                "yes" if row["cuda_graph"] is True else "",
                row["peak_extra_mib"],
                *(f"{float(share):.1f}" if share else "" for share in shares),
            )
        )
    return aligned(lines)


def main() -> int:
    """1 where a case failed; a missed expectation is shown and is no failure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the CSV")
    parser.add_argument("--seconds", type=float, default=120, help="no case is begun after so many")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = "cpu" if options.dry_run else "cuda"
    ceilings = {dtype: measure_ceilings(device, dtype) for dtype in {dtype for *_, dtype in CASES}}
    rows, remarks = measure(device, options.seconds, ceilings)
    if rows:
        write_rows(options.out, rows)
        print(printed(rows))
    missing = sorted({f"{row['implementation']}: {row['missing']}" for row in rows if row["missing"]})
    print("\n".join(f"missing: {line}" for line in missing))
    print("\n".join(remarks))
    for dtype, of_dtype in ceilings.items():
        print(f"ceilings for {dtype}: {of_dtype}")
    if not options.dry_run:
        verdicts = [expectation.row(rows) for expectation in ON_H100]
        print("\n" + aligned([("expectation, for an H100", "measured", "wanted", "verdict"), *verdicts]))
    failed = [remark for remark in remarks if remark.startswith("FAILED")]
    print(f"{len(rows)} rows in {options.out}, {len(failed)} cases failed")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
