"""The list of images as a Ray Data source, and the tasks that read and decode them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from nerve_kernels.segmentation.images import NotAnImageError, load_image, read_image_bytes


class ImageList(Datasource):
    """``id`` and ``source`` of images, as they stand in a Parquet file; each row group of it is read by a task.

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


def read_images(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Read and decode the images of a batch; one that cannot be read has no pixels and says why.

    Args:
        batch: columns ``id`` and ``source``.

    Returns:
        These, ``image`` as uint8 arrays (H, W, 3), and ``error``, empty where there is none.
    """
    images = np.empty(len(batch["id"]), dtype=object)
    errors = []
    for number, source in enumerate(batch["source"]):
        try:
            images[number], error = np.asarray(_read(str(source))), ""
        except (NotAnImageError, OSError, MemoryError) as problem:
            images[number], error = np.zeros((1, 1, 3), dtype=np.uint8), str(problem) or type(problem).__name__
        errors.append(error)
    return {"id": batch["id"], "source": batch["source"], "image": images, "error": np.array(errors, dtype=object)}


def _read(source: str) -> Any:
    if "://" not in source:
        return load_image(source)
    filesystem, path = _filesystem(source.partition("://")[0], source.split("/")[2]), source.partition("://")[2]
    with filesystem.open_input_file(path) as file:
        return read_image_bytes(file.read(), source)


@cache
def _filesystem(scheme: str, bucket: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(f"{scheme}://{bucket}")[0]
