"""``python -m benchmarks.bulk``: what nerve-bulk costs beside nerve-segment, and what its driver keeps in memory.

Images are the embedded scenes, again and again. Start-up is told apart: rates are between the first and the last file
of results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from PIL import Image

from nerve_kernels.bulk.runner import ROWS_PER_FILE

SCENES = Path(__file__).parents[1] / "src/nerve_kernels/evaluation/embedded_scenes"
LABELS = "background, cat, tree, house, car"
SEGMENT = "import sys; from nerve_kernels import cli; cli.main(sys.argv[1:])"
BULK = "import sys; from nerve_kernels import cli; cli.bulk(sys.argv[1:])"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def start(*command: object) -> subprocess.Popen[bytes]:
    words = [sys.executable, *(str(one) for one in command)]
    return subprocess.Popen(words, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rate(processes: Sequence[subprocess.Popen[bytes]], finished: Callable[[], int], images: int) -> tuple[float, float]:
    """Images a second after the first results, and the seconds until these."""
    begun = time.monotonic()
    first: tuple[float, int] | None = None
    while finished() < images:
        assert all(one.poll() in (None, 0) for one in processes), "a command has failed"
        if first is None and finished():
            first = time.monotonic(), finished()
        time.sleep(0.05)
    end = time.monotonic()
    for one in processes:
        one.wait()
    assert first is not None, "all results came at once: take more images"
    return (images - first[1]) / (end - first[0]), first[0] - begun


def rows_in(folder: Path) -> int:
    """Of files that are whole."""
    found = 0
    for file in folder.glob("*.parquet"):
        try:
            found += pq.read_metadata(file).num_rows
        except (OSError, ValueError):
            continue
    return found


def compare_rates(images: int) -> dict[str, float]:
    """``nerve-bulk`` with two actors, and two ``nerve-segment`` with half of the images each."""
    scenes = sorted(SCENES.rglob("*.jpg"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(images):
            half = folder / "images" / str(number % 2)
            half.mkdir(parents=True, exist_ok=True)
            (half / f"{number:05d}.jpg").symlink_to(scenes[number % len(scenes)])
        out = [folder / "0", folder / "1"]
        alone = [
            start("-c", SEGMENT, folder / "images" / str(half), "-l", LABELS, "-o", place, "--format", "json", "-q")
            for half, place in enumerate(out)
        ]
        segment = rate(alone, lambda: sum(len(list(one.glob("**/*.json"))) for one in out), images)
        options = ["--actors", 2, "--rows-per-file", 8, "-q"]
        bulk = start("-c", BULK, folder / "images", "-l", LABELS, "-o", folder / "bulk", *options)
        rates = rate([bulk], lambda: rows_in(folder / "bulk/rows"), images)
    return {
        "images": images,
        "nerve-segment, two processes, images/s": segment[0],
        "nerve-bulk, two actors, images/s": rates[0],
        "ratio": rates[0] / segment[0],
        "nerve-bulk, seconds to the first rows": rates[1],
    }


def driver_memory(rows: int) -> float:
    """The most that the driver of a run with a stub in place of the models has resident, in MB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        Image.new("RGB", (8, 8)).save(Path(name) / "one.png")
        for number in range(rows):
            (folder / f"{number:05d}.png").symlink_to(Path(name) / "one.png")
        process = start("-m", "tests.bulk.stub_run", folder, Path(name) / "out", 0, 1, "", ROWS_PER_FILE)
        driver, most = psutil.Process(process.pid), 0
        while process.poll() is None:
            try:
                most = max(most, driver.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.1)
        assert process.wait() == 0
    return most / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400, help="of the comparison; 0: none")
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000, 10_000], help="of the driver's memory")
    options = parser.parse_args()
    if options.images:
        print(json.dumps(compare_rates(options.images)), flush=True)
    for rows in options.rows:
        print(json.dumps({"rows": rows, "driver, MB": driver_memory(rows)}), flush=True)


if __name__ == "__main__":
    main()
