"""Which images a command line means: files, folders, globs; and where results go."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from nerve_kernels.segmentation.images import is_called_like_an_image
from nerve_kernels.segmentation.result import RESULT_SUFFIXES
from nerve_kernels.segmentation.text_image.prompts import LabelsLike

LABELS_JSON = '{"images": [{"file": "cat.png", "labels": ["cat", "dog"]}]}'


def find_images(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Expand files, folders and globs.

    Args:
        arguments: a file is taken as it is, whatever its name; of a folder the files that are
            called like images; a glob may use ``**`` for any depth.

    Returns:
        The files, each once, in the order of the arguments (by name within one), and one plain
        line for each argument that gave none.
    """
    found: dict[Path, None] = {}
    complaints: list[str] = []
    for argument in arguments:
        try:
            files, complaint = _expand(argument)
        except OSError as error:  # such as no permission, or a name longer than names can be
            files, complaint = [], error.strerror or str(error)
        except RuntimeError as error:  # the home of a user that is not known
            files, complaint = [], str(error)
        if not files:
            complaints.append(f"{argument}: {complaint}")
        found.update(dict.fromkeys(files))
    return list(found), complaints


def _expand(argument: str) -> tuple[list[Path], str]:
    """The files of one argument, and what to say where there are none."""
    path = Path(argument).expanduser()
    if path.is_dir():
        return sorted(file for file in path.iterdir() if _is_image_file(file)), "no images in this folder"
    if path.exists():
        return [path], ""
    if glob.has_magic(argument):
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute and ** alike)
        return sorted(file for file in matches if _is_image_file(file)), "no image fits this pattern"
    return [], "no such file or folder"


def result_stems(images: Iterable[Path], folder: Path) -> list[Path]:
    """Where each image's results go: its name in `folder`, numbered where names repeat.

    Example:
        >>> [str(stem) for stem in result_stems([Path("a/x.png"), Path("b/x.jpg")], Path("out"))]
        ['out/x', 'out/x_2']
    """
    taken: set[str] = set()
    stems: list[Path] = []
    for image in images:
        plain = Path(image.stem)
        while plain.suffix.lower() in RESULT_SUFFIXES:  # which Segmentation.save would take off
            plain = plain.with_suffix("")
        name, number = plain.name, 1
        # Without regard to case: some file systems have none.
        while name.casefold() in taken:
            number += 1
            name = f"{plain.name}_{number}"
        taken.add(name.casefold())
        stems.append(folder / name)
    return stems


def names_below(images: Sequence[Path]) -> list[str]:
    """The images' paths below the folder that all of them have in common, with ``/``.

    Example:
        >>> names_below([Path("photos/a/x.png"), Path("photos/b/x.png")]), names_below([Path("photos/a/x.png")])
        (['a/x.png', 'b/x.png'], ['x.png'])
    """
    whole = [image.absolute() for image in images]
    folder = os.path.commonpath([image.parent for image in whole]) if whole else ""
    return [image.relative_to(folder).as_posix() for image in whole]


def labels_beside(image: Path) -> LabelsLike | None:
    """The labels written beside an image: ``NAME.txt``, or the folder's ``labels.txt`` or ``labels.json``.

    Args:
        image: an image file.

    Returns:
        Labels, or None where none of the files is there or names the image. Text files hold
        labels separated by commas or line ends; ``labels.json`` holds
        ``{"images": [{"file": "cat.png", "labels": ["background", "cat"]}, ...]}``.

    Raises:
        ValueError: a file that is there and cannot be read so.
    """
    try:
        for candidate in (image.with_suffix(".txt"), image.with_name("labels.txt")):
            if candidate.is_file() and candidate != image:
                return candidate.read_text(encoding="utf-8-sig")
        candidate = image.with_name("labels.json")
        if not candidate.is_file():
            return None
        content = json.loads(candidate.read_text(encoding="utf-8-sig"))
        entries = content["images" if "images" in content else "pictures"]
        found: LabelsLike | None = next((entry["labels"] for entry in entries if entry["file"] == image.name), None)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        wanted = LABELS_JSON if candidate.suffix == ".json" else "UTF-8 text"
        raise ValueError(
            f"{candidate}: cannot read labels from it ({type(error).__name__}: {error}); wanted {wanted}"
        ) from error
    return found


def _is_image_file(path: Path) -> bool:
    return is_called_like_an_image(path) and path.is_file()
