"""Images inside other files: rows of Parquet or of a saved Hugging Face data set, members of WebDataset's shards.

What lists them says where each of them is, so that what reads them need not look for it.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from nerve_kernels._operators.checks import refusal
from nerve_kernels.segmentation.images import is_called_like_an_image

SUFFIXES = (".parquet", ".arrow", ".tar")
READ_AHEAD = 2**20
# Rows of Parquet that are decoded at once.
ROWS = 16


class Entry(NamedTuple):
    """An image that is wanted.

    Args:
        id: what it is called, once in a run.
        source: where it comes from, for people: a path, a URL, or one of these with a row or a member behind it.
        file: what it is read from; None: `source` itself.
        column: of a table's rows; None: bytes of the file.
        start: the first byte, or the row.
        size: how many bytes.
        error: what was wrong with it already, in an earlier run.
    """

    id: str
    source: str
    file: str | None = None
    column: str | None = None
    start: int | None = None
    size: int | None = None
    error: str | None = None


def is_packed(name: str) -> bool:
    """Whether a file of this name holds images, each as a row or a member.

    Example:
        >>> is_packed("data/train-00000-of-00002.parquet"), is_packed("s3://bucket/shard.tar"), is_packed("a.png")
        (True, True, False)
    """
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def list_packed(filesystem: fs.FileSystem, path: str, name: str, column: str | None = None) -> Iterator[Entry]:
    """The images of a file, in its order.

    Args:
        filesystem: where it is.
        path: where on it.
        name: its path or URL for people.
        column: of the images in a table; None: the only one that holds bytes, or the one that is called ``image``.

    Raises:
        ValueError: the file is damaged; or NoImagesError: a table without such a column.
    """
    try:
        with filesystem.open_input_file(path) as file:
            if path.lower().endswith(".tar"):
                yield from _members(file, name)
                return
            if path.lower().endswith(".parquet"):
                parquet = pq.ParquetFile(file)
                schema, count = parquet.schema_arrow, parquet.metadata.num_rows
            elif isinstance(filesystem, fs.LocalFileSystem):
                reader = pa.ipc.open_stream(pa.memory_map(path))
                schema, count = reader.schema, sum(batch.num_rows for batch in reader)
            else:
                raise ValueError(f"SOURCE: {name}: Arrow files are read from this machine's disks only; save Parquet")
    except (pa.ArrowException, tarfile.TarError, OSError) as error:
        raise ValueError(f"SOURCE: {name}: unreadable ({error}); leave it out or fetch it anew") from None
    chosen = _image_column(schema, name, column)
    for row in range(count):
        place = f"{name}/{row}"
        yield Entry(place, place, name, chosen, row)


def read_packed(
    filesystem: fs.FileSystem, path: str, column: str | None, places: Sequence[tuple[int, int | None]]
) -> Iterator[bytes | str | None]:
    """What is at several places of a file, for which it is read once.

    Args:
        filesystem: where it is.
        path: where on it.
        column: as in the entries.
        places: start and size of each, ascending.

    Yields:
        The bytes of an image file; or the path of one, where a row has no more; or None, where it has nothing.

    Raises:
        OSError, pa.ArrowException: the file cannot be read.
    """
    with filesystem.open_input_file(path) as file:
        if column is None:
            for start, size in places:
                file.seek(start)
                yield file.read(size)
            return
        rows = [start for start, _ in places]
        done = 0
        for first, values in _columns(file, path, column, rows):
            while done < len(rows) and rows[done] < first + len(values):
                found = values[rows[done] - first].as_py()
                if isinstance(found, dict):  # as Hugging Face writes images
                    found = found.get("path") if found.get("bytes") is None else found["bytes"]
                yield found
                done += 1


class NoImagesError(ValueError):
    """A table without a column of images."""


def _members(file: pa.NativeFile, name: str) -> Iterator[Entry]:
    # Read ahead: small members are streamed, over large ones it seeks, which of an object store is a request each.
    with tarfile.open(fileobj=io.BufferedReader(file, READ_AHEAD), mode="r:") as archive:
        while member := archive.next():
            archive.members = []  # type: ignore[attr-defined]  # else it remembers every one
            folder, slash, base = member.name.rpartition("/")
            key, _, extension = base.partition(".")
            if member.isreg() and is_called_like_an_image(f"image.{extension}") and "." not in extension:
                yield Entry(
                    f"{folder}{slash}{key}",
                    f"{name}/{member.name}",
                    name,
                    start=member.offset_data,
                    size=member.size,
                )


def _image_column(schema: pa.Schema, name: str, wanted: str | None) -> str:
    def is_binary(kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def is_image(kind: pa.DataType) -> bool:
        return pa.types.is_struct(kind) and any(one.name == "bytes" and is_binary(one.type) for one in kind)

    found = [one.name for one in schema if is_image(one.type)] or [one.name for one in schema if is_binary(one.type)]
    for likely in (wanted, "image") if wanted is None else (wanted,):
        if likely in found:
            return str(likely)
    if len(found) == 1 and wanted is None:
        return str(found[0])
    expected = f"the column {wanted} with image files" if wanted else "one column of image files, or one called image"
    got = f"{', '.join(found) or 'none'} among {', '.join(schema.names)}"
    kind = ValueError if found else NoImagesError
    raise kind(refusal(f"SOURCE: {name}", expected, got, "name one with --column" if found else "leave it out"))


def _columns(file: pa.NativeFile, path: str, column: str, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Parts of a column that hold these rows, each with the number of its first row."""
    first = 0
    if path.lower().endswith(".arrow"):
        for batch in pa.ipc.open_stream(pa.memory_map(path)):
            yield first, batch.column(column)
            first += batch.num_rows
        return
    parquet = pq.ParquetFile(file, buffer_size=READ_AHEAD)  # else a group's whole column comes into memory
    for group in range(parquet.num_row_groups):
        last = first + parquet.metadata.row_group(group).num_rows
        if any(first <= row < last for row in rows):
            for batch in parquet.iter_batches(ROWS, row_groups=[group], columns=[column]):
                yield first, batch.column(0)
                first += batch.num_rows
        first = last
