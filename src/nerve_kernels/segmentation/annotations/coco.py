"""COCO: one file for all images, with a mask for each label of each image as compressed run lengths."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from nerve_kernels import __version__
from nerve_kernels.segmentation.output.files import write_atomic

from .annotated_image import AnnotatedImage
from .run_lengths import encode

FILE = "coco.json"
CHUNK = 2**20


class CocoFile:
    """``coco.json``: images, categories, and an annotation for each label of an image, with ``iscrowd`` 0.

    What is added waits in unnamed files on the disk, so that memory does not grow with the number of images.

    Args:
        folder: Where the file goes.
        labels: The categories, numbered from 1 in this order.
    """

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self._file = folder / FILE
        self._categories = {label: number for number, label in enumerate(labels, start=1)}
        self._waiting: dict[str, IO[bytes]] = {}
        self._counts = {"images": 0, "annotations": 0}

    def paths(self, names: Iterable[str]) -> list[Path]:
        """The one file."""
        return [self._file]

    def add(self, image: AnnotatedImage) -> Path:
        """Keep an image and its masks for the file."""
        from pycocotools import mask as coco_mask

        number = self._keep(
            "images", {"file_name": image.name, "width": image.width, "height": image.height, "source": image.source}
        )
        for label, mask in image.masks.items():
            lengths = encode(mask)
            self._keep(
                "annotations",
                {
                    "image_id": number,
                    "category_id": self._categories[label],
                    "segmentation": lengths,
                    "area": int(coco_mask.area(lengths)),
                    "bbox": [float(value) for value in coco_mask.toBbox(lengths)],
                    "iscrowd": 0,
                },
            )
        return self._file

    def close(self) -> None:
        """Write the file, where there is anything to write."""
        if self._waiting:
            write_atomic(self._file, self._whole())
        for stream in self._waiting.values():
            stream.close()
        self._waiting = {}

    def _keep(self, kind: str, entry: dict[str, Any]) -> int:
        """Number an entry and write it to the file of its kind."""
        if not self._waiting:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            for name in self._counts:
                self._waiting[name] = tempfile.TemporaryFile(dir=self._file.parent)  # noqa: SIM115 (until close)
        self._counts[kind] += 1
        separator = b",\n" if self._counts[kind] > 1 else b""
        text = json.dumps({"id": self._counts[kind], **entry}, allow_nan=False)
        self._waiting[kind].write(separator + text.encode())
        return self._counts[kind]

    def _whole(self) -> Iterator[bytes]:
        categories = [{"id": number, "name": label} for label, number in self._categories.items()]
        info = {"description": f"segmented by nerve_kernels {__version__}"}
        yield f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)}'.encode()
        for kind, stream in self._waiting.items():
            yield f',\n"{kind}": [\n'.encode()
            stream.seek(0)
            yield from iter(lambda stream=stream: stream.read(CHUNK), b"")  # type: ignore[misc]
            yield b"]"
        yield b"}\n"
