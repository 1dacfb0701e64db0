"""Six kernels at the size of a user: under ``ncu``, and with other warps, stages and tiles than those chosen.

``--ncu FILE.csv`` profiles each once; ``--sweep FILE.csv`` times every candidate, a line each as it is known, those
chosen first. On a CPU the launches are planned at a small size and two candidates are compiled for sm_90; none is
timed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from benchmarks import graphs
from benchmarks.measure import milliseconds
from benchmarks.operations import sizes
from benchmarks.operations.problems import ALPHA, BETA, Problem
from verification.checks import ROOT, UNAVAILABLE
from verification.compile_kernels import WITHOUT_GPU

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._triton.attention import attention_entropy, fuse_attention_maps, global_affinity, local_affinity
from nerve_kernels._triton.compilation import compile_in_processes, current_target
from nerve_kernels._triton.launch import Launch, recording
from nerve_kernels._triton.walk import random_walk
from nerve_kernels._triton.walk.walk_gradients import plan_window_values

WARPS, STAGES = (2, 4, 8), (1, 2, 3, 4)
TILES = ((64, 64), (128, 64), (128, 128), (64, 128), (64, 32), (32, 64))  # rows × keys of the entropy
SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "WarpStateStats")
COLUMNS = ("kernel", "warps", "stages", "rows", "keys", "chosen", "microseconds", "error")


def six_kernels(device: str) -> dict[str, Launch]:
    """One launch of each, on tensors of its own."""
    size = sizes.SD15_64 if device == "cuda" else sizes.SMALL_IMAGE
    half, single = Problem(size, dtype=torch.float16, device=device), Problem(size, device=device)
    grid, window, cells, scale = list(size.grid), [size.window] * 2, [size.cells] * 2, size.head_size**-0.5
    q, k, w = half.q, half.k, half.w
    lse = torch.zeros(q.shape[:3], device=device)
    values, u = single.local.values, single.global_affinity.u
    affinity = AffinityArguments(values, u, grid=grid, window=window, cells=cells, beta=BETA)
    with recording() as entropy:
        attention_entropy.run(q, k, scale)
    with recording() as local:
        local_affinity.run(q, k, w, lse, grid, window, scale, True)
    with recording() as coarse:
        global_affinity.run(q, k, w, lse, grid, cells, scale)
    with recording() as fused:
        fuse_attention_maps.run(half.maps, w)
    with recording() as walk:
        random_walk.run(single.seeds, affinity, ALPHA, size.steps, False)
    with recording() as gradient:
        plan_window_values(single.seeds, single.seeds, grid, window, ALPHA, torch.zeros_like(values))
    return {
        "attention_entropy": entropy[0],
        "local_affinity": local[0],
        "global_affinity": coarse[0],
        "fuse_attention_maps": fused[0],
        "random_walk": walk[-2],  # one of the steps between the first and the last
        "window values' gradient": gradient[0],
    }


def candidates(name: str, launch: Launch) -> Iterator[Launch]:
    """The launch as it is, then with other warps and stages, then, of the entropy, with other tiles."""
    yield launch
    for warps, stages in itertools.product(WARPS, STAGES):
        if (warps, stages) != (launch.warps, launch.stages):
            yield replace(launch, warps=warps, stages=stages)
    if name != "attention_entropy":
        return
    batch, heads, queries, _ = launch.arguments["q"].shape
    for rows, keys in TILES:
        if (rows, keys) == (launch.constants["ROWS"], launch.constants["KEYS"]):
            continue
        tile = {"ROWS": rows, "KEYS": keys, "MASK_KEYS": launch.arguments["keys"] % keys != 0}
        programs = batch * heads * triton.cdiv(queries, rows)
        for warps in WARPS[1:]:
            yield replace(launch, programs=programs, constants=launch.constants | tile, warps=warps)


def microseconds(launch: Launch) -> float:
    """Of one launch, out of a graph of many; the best of five replays."""

    def call() -> torch.Tensor:
        launch.run()
        return launch.arguments["q"] if "q" in launch.arguments else next(iter(launch.arguments.values()))

    call()
    torch.cuda.synchronize()
    graph = graphs.captured([call], repeats := 20, "cuda")
    assert graph is not None
    return 1e3 * min(milliseconds(graph, "cuda") for _ in range(5)) / repeats


def row_of(name: str, launch: Launch, chosen: Launch) -> dict[str, Any]:
    """What says which candidate it is."""
    tile = {"rows": launch.constants.get("ROWS", ""), "keys": launch.constants.get("KEYS", "")}
    return {"kernel": name, "warps": launch.warps, "stages": launch.stages, **tile, "chosen": launch is chosen}


def sweep(device: str, path: Path, seconds: float) -> int:
    """All candidates that time is left for, compiled beforehand in parallel; how many are faster than the chosen."""
    deadline = time.monotonic() + seconds
    all_of = {name: list(candidates(name, launch)) for name, launch in six_kernels(device).items()}
    # every kernel's first, then every kernel's second: whatever time is left for
    ordered = [
        pair for turn in itertools.zip_longest(*([(n, c) for c in cs] for n, cs in all_of.items())) for pair in turn
    ]
    wanted = [pair for pair in ordered if pair is not None]
    print(f"{len(wanted)} candidates of {len(all_of)} kernels", flush=True)
    target, tried = (current_target(), wanted) if device == "cuda" else (WITHOUT_GPU, wanted[:2])
    best: dict[str, tuple[float, str]] = {}
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        results = {}
        for result in compile_in_processes([launch for _, launch in tried], target, os.cpu_count() or 1):
            results[result["index"]] = result["error"]
            if device == "cuda" and time.monotonic() > deadline - 5:
                break
        for index, (name, launch) in enumerate(tried):
            if device == "cuda" and time.monotonic() > deadline:
                print(f"no time was left for {len(tried) - index} candidates")
                break
            row = row_of(name, launch, all_of[name][0])
            error = results.get(index, "not compiled in time")
            if device == "cpu":
                error = error or "no GPU: compiled for sm_90, not timed"
            elif error is None:
                try:
                    row["microseconds"] = f"{microseconds(launch):.2f}"
                    best[name] = min(best.get(name, (1e30, "")), (float(row["microseconds"]), str(row)))
                except Exception as problem:  # too much shared memory, or too many registers
                    error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
            writer.writerow(row | {"error": error or ""})
            stream.flush()
    for _, row_text in best.values():
        print(f"best: {row_text}")
    where = "" if device == "cuda" else "; no GPU: two compiled for sm_90, none timed"
    print(f"{len(tried)} candidates tried{where}; {path}")
    return 0


def run_each(device: str) -> int:
    """Start each once, between the marks that a profiler looks for."""
    launches = six_kernels(device)
    if device == "cpu":
        print(f"no GPU: {len(launches)} launches planned, none started")
        return 0
    for launch in launches.values():
        launch.run()  # compiled before the marks
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for launch in launches.values():
        launch.run()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    print(f"{len(launches)} kernels started")
    return 0


def profile(device: str, path: Path) -> int:
    """This module under ``ncu``; 77 where that may not look at the GPU's counters."""
    if device == "cpu":
        return run_each(device)
    if shutil.which("ncu") is None:
        print("skipped: ncu is not on the PATH")
        return UNAVAILABLE
    command = ["ncu", "--profile-from-start", "off", "--csv", "--log-file", str(path)]
    command += [word for section in SECTIONS for word in ("--section", section)]
    command += [sys.executable, "-m", "verification.six_kernels", "--run"]
    finished = subprocess.run(command, cwd=ROOT, check=False)
    said = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if finished.returncode or "ERR_NVGPUCTRPERM" in said:
        print(f"skipped: ncu cannot profile here: {' '.join(said.split())[:200]}")
        return UNAVAILABLE
    print(f"six kernels profiled; {path}")
    return 0


def main() -> int:
    """The exit code of what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=15, help="of the sweep")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ncu", type=Path, metavar="FILE.csv")
    what.add_argument("--sweep", type=Path, metavar="FILE.csv")
    what.add_argument("--run", action="store_true", help="start each once")
    options = parser.parse_args()
    if options.sweep is not None:
        return sweep(options.device, options.sweep, options.seconds)
    return profile(options.device, options.ncu) if options.ncu is not None else run_each(options.device)


if __name__ == "__main__":
    sys.exit(main())
