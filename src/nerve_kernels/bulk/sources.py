"""Which images a command line means, on any file system: their places, one at a time and each once."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from nerve_kernels.segmentation.images import is_called_like_an_image


def find_sources(arguments: Sequence[str]) -> Iterator[str]:
    """The images of files, folders at any depth, globs, and of ``s3://`` or ``gs://`` prefixes, in a fixed order.

    Args:
        arguments: a file is taken as it is; of the others those that are called like images.

    Yields:
        Absolute paths and URLs; images that two arguments name come twice.

    Raises:
        ValueError: an argument that gives none.
        OSError: a folder that cannot be listed.
    """
    for argument in arguments:
        empty = True
        for place in _expand(argument):
            empty = False
            yield place
        if empty:
            raise ValueError(
                f"SOURCE: {argument}: expected images, got none; give a folder, a glob or files that exist"
            )


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
        return iter(sorted(match for match in matches if is_called_like_an_image(match) and Path(match).is_file()))
    return iter(())


def _below(folder: Path) -> Iterator[str]:
    """Folder after folder, so that what is held is the names of one."""
    with os.scandir(folder) as entries:
        ordered = sorted((one.name, one.is_dir(follow_symlinks=False), one.is_file()) for one in entries)
    for name, is_folder, is_file in ordered:
        if is_folder:
            yield from _below(folder / name)
        elif is_file and is_called_like_an_image(name):
            yield str(folder / name)


def _remote(url: str) -> Iterator[str]:
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(url)
    scheme = url.partition("://")[0]
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        yield url
        return
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    files = (one.path for one in filesystem.get_file_info(selector) if one.type == fs.FileType.File)
    yield from sorted(f"{scheme}://{file}" for file in files if is_called_like_an_image(file))
