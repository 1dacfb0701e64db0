"""Which images a command line means, on any file system: their places, one at a time and each once."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from pyarrow import fs

from nerve_kernels.segmentation.images import is_called_like_an_image

from .packed import Entry, NoImagesError, is_packed, list_packed


def find_sources(arguments: Sequence[str], column: str | None = None) -> Iterator[Entry]:
    """The images of files, folders at any depth, globs, and of ``s3://``, ``gs://`` or ``hf://``, in a fixed order.

    Files ending in ``.parquet`` or ``.tar`` stand for the images in them, and so does a folder that Hugging Face's
    ``save_to_disk`` wrote.

    Args:
        arguments: a file is taken as it is; of the others those that are called like images, or hold some.
        column: as in :func:`~.packed.list_packed`.

    Yields:
        Images; those that two arguments name come twice.

    Raises:
        ValueError: an argument that gives none, or holds a damaged file.
        OSError: a folder that cannot be listed.
    """
    for argument in arguments:
        empty = True
        for name in _expand(argument):
            if not is_packed(name):
                empty = False
                yield Entry(name, name)
                continue
            try:
                for one in list_packed(*locate(name), name, column):
                    empty = False
                    yield one
            except NoImagesError:  # some other table, which a folder may well hold
                if name.rstrip("/").endswith(argument.rstrip("/")):
                    raise
        if empty:
            raise ValueError(
                f"SOURCE: {argument}: expected images, got none; give a folder, a glob or files that exist"
            )


def locate(name: str) -> tuple[fs.FileSystem, str]:
    """The file system of an absolute path or a URL, and the path on it."""
    scheme, separator, path = name.partition("://")
    return (_filesystem(scheme, path.partition("/")[0]), path) if separator else (fs.LocalFileSystem(), name)


@cache
def _filesystem(scheme: str, bucket: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(f"{scheme}://{bucket or '/'}")[0]


def _is_wanted(name: str) -> bool:
    return is_called_like_an_image(name) or (is_packed(name) and not name.endswith(".arrow"))


def _expand(argument: str) -> Iterator[str]:
    if "://" in argument:
        return _remote(argument)
    path = Path(argument).expanduser()
    if path.is_dir():
        return _below(path.absolute())
    if path.exists():
        return iter([str(path.absolute())])
    if glob.has_magic(argument):
        matches = glob.iglob(str(path.absolute()), recursive=True)  # noqa: PTH207 (absolute and ** alike)
        return iter(sorted(match for match in matches if _is_wanted(match) and Path(match).is_file()))
    return iter(())


def _below(folder: Path) -> Iterator[str]:
    """Folder after folder, so that what is held is the names of one."""
    with os.scandir(folder) as entries:
        ordered = sorted((one.name, one.is_dir(follow_symlinks=False), one.is_file()) for one in entries)
    yield from (str(folder / name) for name in _saved(folder / "state.json"))
    for name, is_folder, is_file in ordered:
        if is_folder:
            yield from _below(folder / name)
        elif is_file and _is_wanted(name):
            yield str(folder / name)


def _saved(state: Path) -> Iterable[str]:
    """The files of a data set that ``save_to_disk`` wrote: others in its folder are its cache, or older."""
    try:
        return [str(one["filename"]) for one in json.loads(state.read_bytes())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()


def _remote(url: str) -> Iterator[str]:
    filesystem, path = fs.FileSystem.from_uri(url)
    scheme = url.partition("://")[0]
    if "?" in url and scheme != "file":
        raise ValueError(f"SOURCE: {url}: expected no query; where an object store is, AWS_ENDPOINT_URL says")
    if filesystem.get_file_info(path).type == fs.FileType.File:
        yield url
        return

    def below(folder: str) -> Iterator[str]:
        found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        for one in sorted(found, key=lambda one: one.path):
            if one.type == fs.FileType.Directory:
                yield from below(one.path)
            elif _is_wanted(one.base_name):
                yield f"{scheme}://{one.path}"

    yield from below(path)
