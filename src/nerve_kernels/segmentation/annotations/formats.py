"""The formats by name, as many at once as are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nerve_kernels.segmentation.extras import require_extra
from nerve_kernels.segmentation.result import Segmentation

from .annotated_image import AnnotatedImage, AnnotationFormat
from .coco import CocoFile
from .labelme import LabelmeFiles
from .yolo import YoloFiles

FORMATS: dict[str, Callable[[Path, Sequence[str]], AnnotationFormat]] = {
    "coco": CocoFile,
    "labelme": lambda folder, labels: LabelmeFiles(folder),
    "yolo": YoloFiles,
}


class Annotations:
    """Files of several formats in one folder.

    Args:
        formats: Some of ``FORMATS``; none: nothing is written.
        folder: Where they go.
        labels: All labels of all images, without the background.

    Raises:
        MissingExtraError: The libraries are not installed.
    """

    def __init__(self, formats: Sequence[str], folder: Path, labels: Sequence[str]) -> None:
        if formats:
            require_extra("pycocotools", "skimage", extra="formats")
        self._formats = {name: FORMATS[name](folder, labels) for name in formats}

    def paths(self, names: Iterable[str]) -> list[Path]:
        """Every file that images of these names lead to.

        Raises:
            ValueError: Two images lead to the same.
        """
        names, found = list(names), []
        for one in self._formats.values():
            paths = one.paths(names)
            path, times = Counter(paths).most_common(1)[0]
            if times > 1:
                raise ValueError(f"--format: two images would go to {path}; rename one of them")
            found += paths
        return found

    def add(self, segmentation: Segmentation, source: str, name: str) -> dict[str, Path]:
        """Write one image in every format; the files by format."""
        return self.add_masks(AnnotatedImage.of(segmentation, source, name)) if self._formats else {}

    def add_masks(self, image: AnnotatedImage) -> dict[str, Path]:
        """The same for masks from elsewhere."""
        return {name: one.add(image) for name, one in self._formats.items()}

    @contextmanager
    def closing(self) -> Iterator[Annotations]:
        """Finish the files at the end of the block, whether or not it was interrupted."""
        with ExitStack() as stack:
            for one in self._formats.values():
                stack.callback(one.close)
            yield self
