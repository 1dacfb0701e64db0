"""What a run leaves on disk while it goes on: finished images in shards, and what they were made with."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nerve_kernels.segmentation.config import NerveConfig
from nerve_kernels.segmentation.output.files import write_atomic

from .file_states import FileState

DESCRIPTION = "run.json"
SHARDS = "shards"
# More pixels than any image that is read has; sums of such counts over a billion of them fit into 64 bits.
MAX_PIXELS = 2**32


@dataclass(frozen=True)
class ImageRecord:
    """One finished image.

    Args:
        index: in the data set.
        counts: for each variant of the method the non-zero entries of its confusion matrix, as (cell, pixels) with
            cell = truth · classes + prediction.
        files: the state of each file that the image and its truth were read from; None where the version that
            made the record kept none.
        boundary_counts: likewise of the pixels near a boundary, with one class more; None where they are not counted.
    """

    index: int
    counts: tuple[tuple[tuple[int, int], ...], ...]
    files: tuple[FileState, ...] | None = None
    boundary_counts: tuple[tuple[tuple[int, int], ...], ...] | None = None

    @classmethod
    def from_matrices(
        cls,
        index: int,
        matrices: list[torch.Tensor],
        files: tuple[FileState, ...] = (),
        boundary_matrices: list[torch.Tensor] | None = None,
    ) -> ImageRecord:
        """From dense confusion matrices, of which an image fills few cells."""

        def entries(matrix: torch.Tensor) -> tuple[tuple[int, int], ...]:
            flat = matrix.flatten()
            cells = flat.nonzero()[:, 0]
            return tuple(zip(cells.tolist(), flat[cells].tolist(), strict=True))

        boundary = None if boundary_matrices is None else tuple(entries(matrix) for matrix in boundary_matrices)
        return cls(index, tuple(entries(matrix) for matrix in matrices), files, boundary)


class RunShape(NamedTuple):
    """What the records of a run hold: how many images, variants and classes there are, and whether boundaries."""

    images: int
    variants: int
    classes: int
    boundary: bool = False


class RunFolder:
    """Finished images of a run, safe against being killed at any moment.

    Records are collected and written as a new shard, whole or not at all, under a name no other process uses; what
    has been written is never touched again.

    Args:
        folder: made where it is missing.
        description: what the run is made with; records of another one are never mixed in.
        shape: what its records can hold.
        digest_of_weights: as earlier versions described a run by; called where one of them has made the folder.
        save_every: seconds from one shard to the next; what is lost when the process is killed.

    Raises:
        ValueError: the folder holds a run with another description, whose difference is named, or a damaged one.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        description: dict[str, Any],
        shape: RunShape,
        *,
        digest_of_weights: Callable[[], str],
        save_every: float,
    ) -> None:
        self.folder = Path(folder)
        self._shape = shape
        self._save_every = save_every
        self._waiting: list[ImageRecord] = []
        self._saved_at = time.monotonic()
        plain = json.loads(json.dumps(description, allow_nan=False))
        file = self.folder / DESCRIPTION
        if file.exists():
            there = _read_json(file, "the description", "this folder")
            found = difference(_in_new_words(there, plain, digest_of_weights), plain)
            if found:
                raise ValueError(
                    f"out: {self.folder} holds a run with {found}; results of different runs are not mixed, so "
                    "choose another folder or delete this one"
                )
        else:
            write_atomic(file, (json.dumps(plain, indent=2, allow_nan=False) + "\n").encode())

    def add(self, record: ImageRecord) -> None:
        """Keep a finished image; it is on disk after at most `save_every` seconds and one more image."""
        self._waiting.append(record)
        if time.monotonic() - self._saved_at >= self._save_every:
            self.save()

    def save(self) -> None:
        """Write what is waiting."""
        if self._waiting:
            rows = json.dumps([_as_row(record) for record in self._waiting], separators=(",", ":"))
            name = f"{self._waiting[0].index:09d}-{uuid.uuid4().hex[:12]}.json"
            content = f'{{"sha256":"{_sha256(rows)}","rows":{rows}}}'
            write_atomic(self.folder / SHARDS / name, content.encode())
        self._waiting = []
        self._saved_at = time.monotonic()

    def records(self) -> Iterator[ImageRecord]:
        """Every record on disk, shard after shard.

        Raises:
            ValueError: a damaged shard.
        """
        for path in sorted((self.folder / SHARDS).glob("*.json")):
            content = _read_json(path, "the shard", "it")
            try:
                found = [_from_row(row, self._shape) for row in _rows(content)]
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"out: the shard {path} is damaged ({error}); delete it and run again") from error
            yield from found


def _read_json(path: Path, what: str, to_delete: str) -> Any:
    try:
        if not path.is_file():  # reading from a pipe may never end
            raise ValueError("not a file")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"out: {what} {path} is damaged ({error}); delete {to_delete} and run again") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _rows(content: Any) -> list[Any]:
    """The rows of a shard: a list in the first version, since then with a checksum."""
    if isinstance(content, dict):
        rows = content.get("rows")
        if _sha256(json.dumps(rows, separators=(",", ":"))) != content.get("sha256"):
            raise ValueError("its checksum differs")
        content = rows
    if not isinstance(content, list):
        raise ValueError(f"it holds a {type(content).__name__}, expected a list of records")
    return content


def _as_row(record: ImageRecord) -> list[Any]:
    row = [record.index, record.counts, record.files]
    return row if record.boundary_counts is None else [*row, record.boundary_counts]


def _from_row(row: Any, shape: RunShape) -> ImageRecord:
    index, counts, *rest = row
    _check_count("index", index, shape.images)
    files, *boundary = rest or (None,)
    if len(boundary) != shape.boundary:
        raise ValueError(f"{len(boundary)} counts near boundaries, expected {shape.boundary:d}")
    return ImageRecord(
        index,
        _checked_counts(counts, shape.variants, shape.classes),
        None if files is None else tuple(FileState(*state) for state in files),
        _checked_counts(boundary[0], shape.variants, shape.classes + 1) if boundary else None,
    )


def _checked_counts(counts: Any, variants: int, classes: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    if len(counts) != variants:
        raise ValueError(f"counts of {len(counts)} variants, expected {variants}")
    for entries in counts:
        for cell, pixels in entries:
            _check_count("cell", cell, classes**2)
            _check_count("pixels", pixels, MAX_PIXELS)
        if len({cell for cell, _ in entries}) != len(entries):
            raise ValueError("a cell that is there twice")
    if len({sum(pixels for _, pixels in entries) for entries in counts}) > 1:
        raise ValueError("variants that counted different numbers of pixels")
    return tuple(tuple((cell, pixels) for cell, pixels in entries) for entries in counts)


def _check_count(name: str, value: Any, end: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < end:
        raise ValueError(f"{name} {value!r:.40}, expected an integer from 0 to {end - 1}")


def digest(*parts: bytes | str) -> str:
    """A fingerprint of texts and bytes."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:32]


def _in_new_words(description: Any, now: dict[str, Any], digest_of_weights: Callable[[], str]) -> Any:
    """The description that a run has left, in today's words.

    Earlier, images were called pictures, and all weights had one digest; where that is the one of the weights now,
    the models are those of now.
    """
    if not isinstance(description, dict):
        return description
    words = {"pictures": "images", "picture": "image"}
    found = {words.get(key, key): value for key, value in description.items()}
    if found.get("vocabulary") == "picture":
        found["vocabulary"] = "image"
    if "weights" in found:
        found["models"] = now.get("models") if found.pop("weights") == digest_of_weights() else "other weights"
    if isinstance(found.get("variants"), dict) and isinstance(now.get("variants"), dict):
        found["variants"] = {
            name: _with_new_fields(settings, now["variants"].get(name)) for name, settings in found["variants"].items()
        }
    return found


def _with_new_fields(settings: Any, now: Any) -> Any:
    """A config with the fields that came since it was written, at their defaults, with which all is as it was."""
    if not isinstance(settings, dict) or not isinstance(now, dict):
        return settings
    defaults = json.loads(NerveConfig().to_json())
    return {**{field: defaults[field] for field in now if field in defaults and field not in settings}, **settings}


def difference(old: Any, new: Any, name: str = "") -> str:
    """The first place in which two descriptions differ, in words; empty where there is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = difference(old.get(key), new.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return ""
    return "" if old == new else f"{name} = {old!r}, this one has {new!r}"
