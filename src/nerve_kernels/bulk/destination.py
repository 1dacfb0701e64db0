"""The folder of a run, on any file system: what it was made with, its list of images, its checkpoint and its rows.

``run.json`` says what the rows were made with, ``inputs.parquet`` which images are wanted, ``attempt`` which of several
commands writes; ``checkpoint`` is Ray Data's, and ``rows`` the result.
"""

from __future__ import annotations

import json
import uuid
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs
from ray.data.datasource import FilenameProvider

from nerve_kernels.evaluation.run_folder import difference

from .packed import Entry

DESCRIPTION = "run.json"
INPUTS = "inputs.parquet"
ATTEMPT = "attempt"
CHECKPOINT = "checkpoint"
ROWS = "rows"
ENTRIES = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("column", pa.string()),
        ("start", pa.int64()),
        ("size", pa.int64()),
        ("error", pa.string()),
    ]
)
"""Of ``inputs.parquet``."""


class Destination:
    """A folder, or a prefix of ``s3://`` or ``gs://``, for one run.

    Args:
        place: a path or a URL.

    Raises:
        ValueError: not a place that can be written to.
    """

    def __init__(self, place: str) -> None:
        self.place = place if "://" in place else str(Path(place).expanduser().absolute())
        try:
            self.filesystem, self.path = fs.FileSystem.from_uri(self.place)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"out: cannot use {place}: {_first_line(error)}") from None
        self.rows, self.checkpoint = f"{self.path}/{ROWS}", f"{self.path}/{CHECKPOINT}"

    def open(self, description: dict[str, Any]) -> None:
        """Make the folder, or find in it a run with the same description; one without rows is described anew.

        Raises:
            ValueError: it holds another run, whose first difference is named, or something else, or cannot be written.
        """
        plain = json.loads(json.dumps(description, allow_nan=False))
        try:
            there = self._entries()
            if DESCRIPTION in there and self._files(self.rows):
                found = difference(self.description(), plain)
                if found:
                    raise ValueError(
                        f"out: {self.place} holds a run with {found}; rows of different runs are not mixed, so choose "
                        "another destination"
                    )
            elif there and DESCRIPTION not in there:
                raise ValueError(
                    f"out: {self.place} holds {sorted(there)[0]}, which is no run of this command; choose another "
                    "destination"
                )
            else:
                self.filesystem.create_dir(self.path, recursive=True)
                self._write(DESCRIPTION, (json.dumps(plain, indent=2) + "\n").encode())
        except OSError as error:
            raise ValueError(f"out: cannot write to {self.place}: {_first_line(error)}") from None

    def write_inputs(self, entries: Iterable[Entry], *, rows_per_group: int) -> int:
        """Write the list of images, whole or not at all; how many they are.

        Raises:
            ValueError: the same image twice.
        """
        keys = array("q")  # eight bytes an image, however many there are
        part = f"{self.path}/{INPUTS}.part"
        try:
            with self.filesystem.open_output_stream(part) as stream, pq.ParquetWriter(stream, ENTRIES) as writer:
                for chunk in _chunks(entries, rows_per_group):
                    keys.extend(hash(one.id) for one in chunk)
                    writer.write_table(pa.Table.from_pylist([one._asdict() for one in chunk], schema=ENTRIES))
        except OSError as error:
            raise ValueError(f"out: cannot write to {self.place}: {_first_line(error)}") from None
        if not keys:
            raise ValueError("SOURCE: expected images, got none")
        self._refuse_duplicates(part, np.sort(np.frombuffer(keys, dtype=np.int64)))
        self.filesystem.move(part, self.inputs)
        return len(keys)

    def _refuse_duplicates(self, part: str, ordered: np.ndarray) -> None:
        equal = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if not equal:
            return
        counts: Counter[str] = Counter()
        for batch in ds.dataset([part], filesystem=self.filesystem, format="parquet").to_batches(columns=["id"]):
            counts.update(one for one in batch["id"].to_pylist() if hash(one) in equal)
        twice = next((one for one, count in counts.items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"SOURCE: expected each image once, got {twice} twice; leave out what overlaps")

    @property
    def inputs(self) -> str:
        """The path of the list of images."""
        return f"{self.path}/{INPUTS}"

    def take_over(self) -> TaskNames:
        """From now on, what an earlier command into the same folder still has running writes nothing more."""
        token = uuid.uuid4().hex
        self._write(ATTEMPT, token.encode())
        return TaskNames(self.filesystem, f"{self.path}/{ATTEMPT}", token)

    def finished(self) -> int:
        """How many images the checkpoint knows."""
        files = [one for one in self._files(self.checkpoint) if not one.endswith(".pending.parquet")]
        return int(ds.dataset(files, filesystem=self.filesystem).count_rows()) if files else 0

    def table(self) -> ds.Dataset:
        """All rows."""
        files = self._files(self.rows)
        return ds.dataset(files, filesystem=self.filesystem) if files else ds.dataset(pa.table({}))

    def description(self) -> Any:
        """What the rows were made with.

        Raises:
            ValueError: it is damaged.
            OSError: it is not there.
        """
        try:
            with self.filesystem.open_input_file(f"{self.path}/{DESCRIPTION}") as file:
                return json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"out: {self.place}/{DESCRIPTION} is damaged ({_first_line(error)}); choose another destination"
            ) from None

    def weights(self) -> str | None:
        """The digest of the models that made the rows which are there."""
        files = self._files(self.rows)
        for file in files:
            try:
                for batch in ds.dataset([file], filesystem=self.filesystem).to_batches(columns=["weights"]):
                    found = [one for one in batch["weights"].to_pylist() if one is not None]
                    if found:
                        return str(found[0])
            except (pa.ArrowInvalid, OSError):  # half a file of a command that was killed; Ray removes it
                continue
        return None

    def _files(self, folder: str) -> list[str]:
        selector = fs.FileSelector(folder, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return sorted(one.path for one in found if one.path.endswith(".parquet"))

    def _entries(self) -> set[str]:
        info = self.filesystem.get_file_info(self.path)
        if info.type == fs.FileType.File:
            raise ValueError(f"out: expected a folder, got the file {self.place}")
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return {one.base_name for one in self.filesystem.get_file_info(selector)}

    def _write(self, name: str, content: bytes) -> None:
        part = f"{self.path}/{name}.part"
        with self.filesystem.open_output_stream(part) as stream:
            stream.write(content)
        self.filesystem.move(part, f"{self.path}/{name}")


class TaskNames(FilenameProvider):
    """Ray's names of files, given only to tasks of the newest command.

    After a kill, tasks may outlive their driver for a moment; a file of theirs that the next command does not know of
    would double its rows.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str, token: str) -> None:
        super().__init__(file_format="parquet")
        self._filesystem, self._path, self._token = filesystem, path, token

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        """Of the file of a task; called before and while it is written."""
        with self._filesystem.open_input_file(self._path) as file:
            if file.read().decode() != self._token:
                raise TakenOverError("out: another command writes to this destination now; this one stops")
        return str(super().get_filename_for_task(write_uuid, task_index))


class TakenOverError(RuntimeError):
    """Another command writes to the same destination."""


def _chunks(items: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
