"""Images with a class for each pixel, as a PyTorch dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from .class_lists import UNKNOWN
from .layouts import read_split

if TYPE_CHECKING:
    from PIL import Image


class UnreadableImageError(OSError):
    """An image or its annotation is damaged, missing, or not what the data set promises."""


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image and the truth about it.

    Args:
        image: RGB.
        mask: (height, width) uint8, the class of each pixel; 255 is not scored.
        identifier: names the image within its data set.
    """

    image: Image.Image
    mask: npt.NDArray[np.uint8]
    identifier: str


class ImageFiles(NamedTuple):
    """Where one labelled image is."""

    identifier: str
    image: Path
    annotation: Path


Item = TypeVar("Item", bound=LabelledImage, covariant=True)


class LabelledImages(Dataset[Item]):
    """What every data set here has, whatever its files look like; a map-style ``torch.utils.data.Dataset``.

    Attributes:
        name: for reports.
        names: of each class its names, the first to be shown; class 0 is called ``background`` where there is one.
        identifiers: of each image, known without reading any.
    """

    name: str
    names: tuple[tuple[str, ...], ...]
    identifiers: Sequence[str]

    @property
    def classes(self) -> tuple[str, ...]:
        """The shown name of each class; masks hold indices into this."""
        return tuple(names[0] for names in self.names)

    @property
    def has_background(self) -> bool:
        """Whether class 0 is whatever no other class is."""
        return self.classes[0] == "background"

    def __len__(self) -> int:
        return len(self.identifiers)

    def __getitem__(self, index: int) -> Item:
        raise NotImplementedError

    def files(self, index: int) -> tuple[Path, ...]:
        """The files that an image and its truth are read from; none where they come with the package."""
        return ()


class ImagesInFiles(LabelledImages[LabelledImage]):
    """A data set of image and annotation files.

    Args:
        name: for reports.
        names: of each class its names.
        files: one entry an image.
        table: class of each label in the annotations, 255 (not scored) or -1 (no such label).
        read_labels: reads an annotation file as (height, width) integers.
    """

    def __init__(
        self,
        *,
        name: str,
        names: tuple[tuple[str, ...], ...],
        files: Sequence[ImageFiles],
        table: npt.NDArray[np.int16],
        read_labels: Callable[[Path], npt.NDArray[Any]] | None = None,
    ) -> None:
        self.name = name
        self.names = names
        self.identifiers = tuple(file.identifier for file in files)
        self._files = tuple(files)
        self._table = table
        self._read_labels = read_labels or read_png

    def __getitem__(self, index: int) -> LabelledImage:
        """One image.

        Raises:
            UnreadableImageError: says which file and why.
        """
        file = self._files[index]
        image = read_image(file.image)
        labels = _readable(file.annotation, self._read_labels)
        if labels.shape != (image.height, image.width):
            raise UnreadableImageError(
                f"{file.annotation}: is {labels.shape[::-1]} pixels, wanted one label for each pixel of "
                f"{file.image.name}, which is {image.size}"
            )
        return LabelledImage(image, self._classes_of(labels, file.annotation), file.identifier)

    def files(self, index: int) -> tuple[Path, ...]:
        """The image's file and that of its annotation."""
        file = self._files[index]
        return file.image, file.annotation

    def _classes_of(self, labels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
        inside = (labels >= 0) & (labels < len(self._table))
        classes = self._table[np.where(inside, labels, 0)]
        stray = labels[~inside | (classes == UNKNOWN)]
        if stray.size:
            raise UnreadableImageError(f"{path}: holds the label {stray[0]}, which {self.name} does not have")
        return classes.astype(np.uint8)


def read_image(path: Path) -> Image.Image:
    """An image as 8-bit RGB, pixel for pixel as stored: annotations know nothing of EXIF rotation."""
    from nerve_kernels.segmentation.images import read_image_file, to_rgb_as_stored

    def convert(opened: Image.Image) -> Image.Image:
        image = to_rgb_as_stored(opened)
        image.info.clear()  # with the EXIF data in it, later steps would turn the image
        return image

    return _readable(path, lambda path: read_image_file(path, convert))


def read_png(path: Path) -> npt.NDArray[Any]:
    """A PNG of palette indices or grey values as integers."""
    from nerve_kernels.segmentation.images import read_image_file

    def convert(opened: Image.Image) -> npt.NDArray[Any]:
        if opened.mode not in ("P", "L", "I", "I;16"):
            raise ValueError(f"it is an image of mode {opened.mode}, wanted one label a pixel (mode P, L or I)")
        return np.array(opened)

    return read_image_file(path, convert)


Read = TypeVar("Read")


def _readable(path: Path, read: Callable[[Path], Read]) -> Read:
    from nerve_kernels.segmentation.images import NotAnImageError

    if not path.exists():
        raise UnreadableImageError(f"{path}: no such file")
    if not path.is_file():  # reading from a pipe may never end
        raise UnreadableImageError(f"{path}: not a file")
    try:
        return read(path)
    except NotAnImageError as error:
        raise UnreadableImageError(str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # SciPy reports damage in many ways; each ends here as one plain sentence
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"{path}: unreadable ({reason})") from error


def read_label_map(path: Path) -> npt.NDArray[Any]:
    """The ``LabelMap`` of one of Pascal Context's .mat files, (height, width) integers."""
    from nerve_kernels.segmentation.extras import require_extra

    require_extra("scipy", extra="evaluation")
    from scipy.io import loadmat

    return np.asarray(loadmat(path)["LabelMap"]).astype(np.int64)


def files_by_identifier(parts: Mapping[str, Path], annotation_suffix: str) -> list[ImageFiles]:
    """The files of each image that a split file names: JPEGs, and annotations of the same name."""
    return [
        ImageFiles(name, parts["images"] / f"{name}.jpg", parts["annotations"] / f"{name}{annotation_suffix}")
        for name in read_split(parts["split"])
    ]
