"""``python -m tests.bulk.kills``: a run that is killed again and again, and what its destination holds in the end.

Nothing lost and nothing doubled: after SIGKILL of the driver, of an actor or of a worker that reads and writes, at
seeded numbers of finished rows, the same command goes on, and in the end every id is there once.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nerve_kernels.bulk.sources import find_sources

VICTIMS = {
    "driver": None,
    "actor": re.compile(r"ray::MapWorker\(MapBatches\(StubSegmenter"),
    "worker": re.compile(r"ray::(IDLE|Write|ReadImageList|MapBatches\(read_images\))"),
}
SECONDS_PER_ROW = 0.1
PATIENCE = 600.0


class Kill(NamedTuple):
    """One kill: of what, at how many rows it was meant, and how many were finished then."""

    victim: str
    meant: int
    rows: int


def make_images(folder: Path, count: int) -> None:
    """Half of them as files, the others in a shard and in rows of Parquet."""
    folder.mkdir()
    rows = []
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for number in range(count):
            file = folder / f"{number:05d}.png"
            Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(file)
            if number % 2:
                continue
            if number % 4:
                shard.add(file, file.name)
            else:
                rows.append(file.read_bytes())
            file.unlink()
    pq.write_table(pa.table({"image": rows}), folder / "rows.parquet")


def check(folder: Path, images: int, victims: Sequence[str], seed: int, *, actors: int = 1) -> Iterator[Kill]:
    """Kill, go on, and compare; each kill as it happens.

    Raises:
        AssertionError: ids are missing or there twice.
    """
    random_numbers = random.Random(seed)
    make_images(folder / "images", images)
    out = folder / "out"
    process = start(folder / "images", out, actors)
    try:
        for victim, meant in zip(
            victims, sorted(random_numbers.sample(range(images * 3 // 4), len(victims))), strict=True
        ):
            wait_for(process, out, meant)
            for found in victims_of(process, victim):
                found.send_signal(signal.SIGKILL)
            yield Kill(victim, meant, finished(out))
            if victim == "driver":
                process.wait()
                process = start(folder / "images", out, actors)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
    ids = [one for file in (out / "rows").iterdir() for one in pq.read_table(file, columns=["id"])["id"].to_pylist()]
    wanted = [one.id for one in find_sources([str(folder / "images")])]
    assert len(wanted) == images
    assert sorted(ids) == sorted(wanted), f"{len(wanted)} images, {len(ids)} rows of {len(set(ids))} ids"


def start(images: Path, out: Path, actors: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.bulk.stub_run", images, out, SECONDS_PER_ROW, actors, ""]
    return subprocess.Popen([str(one) for one in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finished(out: Path) -> int:
    """Rows that the checkpoint knows."""
    files = [file for file in (out / "checkpoint").glob("*.parquet") if not file.name.endswith(".pending.parquet")]
    return sum(pq.read_metadata(file).num_rows for file in files)


def wait_for(process: subprocess.Popen[bytes], out: Path, rows: int) -> None:
    end = time.monotonic() + PATIENCE
    while finished(out) < rows:
        assert process.poll() is None, f"ended with {process.returncode} before {rows} rows"
        assert time.monotonic() < end, f"no {rows} rows after {PATIENCE} s"
        time.sleep(0.05)


def victims_of(process: subprocess.Popen[bytes], victim: str) -> list[psutil.Process]:
    """The driver, or one of its workers of that kind, once there is one."""
    pattern = VICTIMS[victim]
    driver = psutil.Process(process.pid)
    end = time.monotonic() + PATIENCE
    while pattern is not None and process.poll() is None and time.monotonic() < end:
        for one in driver.children(recursive=True):
            try:
                if pattern.match(" ".join(one.cmdline())):
                    return [one]
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    return [driver] if pattern is None else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    victims = random.Random(options.seed).choices(list(VICTIMS), weights=(2, 1, 1), k=options.kills)
    with tempfile.TemporaryDirectory() as folder:
        print("| kill | of the | meant at row | rows then |\n|---|---|---|---|")
        for number, kill in enumerate(check(Path(folder), options.images, victims, options.seed, actors=2), start=1):
            print(f"| {number} | {kill.victim} | {kill.meant} | {kill.rows} |", flush=True)
    print(f"every one of {options.images} ids once after {options.kills} kills")


if __name__ == "__main__":
    main()
