"""Finding a data set below a folder, and saying what is missing where it is not there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

MAX_SHOWN = 12


class DatasetNotFoundError(FileNotFoundError):
    """The folder given as a data set's root does not hold it; the message says what was looked for."""


def find_parts(
    title: str,
    root: str | os.PathLike[str],
    layouts: Sequence[Mapping[str, str]],
    *,
    below: Sequence[str] = ("",),
) -> dict[str, Path]:
    """The folders and files a data set consists of.

    Args:
        title: the data set, for the message.
        root: the folder the user gave.
        layouts: ways in which the data set is distributed, each a relative path for every part.
        below: folders below `root` that the paths may be relative to.

    Returns:
        Of the first layout that is there in full, the path of each part.

    Raises:
        DatasetNotFoundError: what was looked for and not found, what was found of it, and what the folder holds.
    """
    base = Path(root).expanduser()
    candidates = [
        {part: base / middle / path for part, path in layout.items()} for layout in layouts for middle in below
    ]
    for parts in candidates:
        if all(path.exists() for path in parts.values()):
            return parts
    lines = [f"root: {base} does not hold {title}. Looked for"]
    for number, parts in enumerate(candidates):
        lines.append("  or" if number else "")
        lines += [
            f"  {'found  ' if path.exists() else 'missing'} {path.relative_to(base).as_posix()}"
            for path in parts.values()
        ]
    lines.append(f"{base} holds: {_contents(base)}")
    raise DatasetNotFoundError("\n".join(line for line in lines if line))


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return "nothing; it is no folder" if folder.exists() else "nothing; it does not exist"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return (", ".join(names[:MAX_SHOWN]) or "nothing; it is empty") + more


def read_split(path: Path) -> list[str]:
    """Identifiers in a split file: the first word of each line."""
    return [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def files_below(folder: Path, ending: str) -> list[Path]:
    """Files whose name ends so, at any depth, sorted.

    Raises:
        DatasetNotFoundError: there is none.
    """
    found = sorted(folder.rglob(f"*{ending}"))
    if not found:
        raise DatasetNotFoundError(f"root: {folder} holds no file *{ending}; it holds: {_contents(folder)}")
    return found
