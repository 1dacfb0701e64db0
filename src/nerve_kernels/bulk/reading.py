"""The list of images as a Ray Data source, and the tasks that read and decode them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from nerve_kernels.segmentation.images import NotAnImageError, load_image, read_image_bytes

from .packed import Entry, read_packed
from .sources import locate

# Images that are decoded at once.
BATCH = 8


class ImageList(Datasource):
    """Entries of images, as they stand in a Parquet file; each row group of it is read by a task.

    Not ``ray.data.read_parquet``: that samples files and starts several more workers before the first image.

    Args:
        filesystem: where the file is.
        path: the file.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        super().__init__()
        self._filesystem, self._path = filesystem, path
        with filesystem.open_input_file(path) as file:
            metadata = pq.ParquetFile(file).metadata
            self._rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self._rows)

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known, and little."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """A task for each row group, whatever the parallelism."""
        filesystem, path = self._filesystem, self._path

        def task(number: int, rows: int) -> ReadTask:
            def read() -> list[pa.Table]:
                with filesystem.open_input_file(path) as file:
                    return [pq.ParquetFile(file).read_row_group(number)]

            return ReadTask(read, BlockMetadata(num_rows=rows, size_bytes=None, input_files=None, exec_stats=None))

        return [task(number, rows) for number, rows in enumerate(self._rows)]


def read_images(batch: pa.Table) -> Iterator[dict[str, np.ndarray]]:
    """Read and decode images, a few at a time; one that cannot be read has no pixels and says why.

    Args:
        batch: entries, as :class:`~.packed.Entry` says.

    Yields:
        Columns ``id``, ``source``, ``image`` as uint8 arrays (H, W, 3), and ``error``, empty where there is none.
    """
    wanted = sorted((Entry(**row) for row in batch.to_pylist()), key=lambda one: (one.file or "", one.start or 0))
    decoded = (_decode(*one) for one in _contents(wanted))
    while few := list(islice(decoded, BATCH)):
        images = np.empty(len(few), dtype=object)
        images[:] = [image for _, image, _ in few]
        columns = {
            "id": [one.id for one, _, _ in few],
            "source": [one.source for one, _, _ in few],
            "error": [error for _, _, error in few],
        }
        yield {"image": images, **{name: np.array(column, dtype=object) for name, column in columns.items()}}


def _contents(wanted: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | str | Exception | None]]:
    """For each entry what is to be decoded: a file's bytes, or the place of one, or what was wrong."""
    for (file, column), group in groupby(wanted, key=lambda one: (one.file, one.column)):
        if file is None:
            yield from ((one, one.source) for one in group)
            continue
        left = list(group)
        places = [(one.start or 0, one.size) for one in left]
        try:
            for content in read_packed(*locate(file), column, places):
                one = left.pop(0)
                if isinstance(content, str) and "://" not in content and "://" not in file:
                    content = str(Path(file).parent / content)
                yield one, content
        except (OSError, pa.ArrowException, MemoryError) as problem:
            yield from ((one, problem) for one in left)
            continue
        yield from ((one, None) for one in left)


def _decode(entry: Entry, content: bytes | str | Exception | None) -> tuple[Entry, np.ndarray, str]:
    nothing = np.zeros((1, 1, 3), dtype=np.uint8)
    try:
        if content is None:
            return entry, nothing, f"{entry.source}: no image"
        if isinstance(content, Exception):
            return entry, nothing, f"{entry.source}: unreadable ({content})"
        if isinstance(content, bytes):
            return entry, np.asarray(read_image_bytes(content, entry.source)), ""
        if "://" not in content:
            return entry, np.asarray(load_image(content)), ""
        filesystem, path = locate(content)
        with filesystem.open_input_file(path) as file:
            return entry, np.asarray(read_image_bytes(file.read(), entry.source)), ""
    except (NotAnImageError, OSError, MemoryError, pa.ArrowException) as problem:
        return entry, nothing, str(problem) or type(problem).__name__
