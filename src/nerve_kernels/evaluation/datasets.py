"""The data sets of the field, read in the layouts in which they are distributed, and the embedded scenes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from nerve_kernels._operators.checks import refusal

from .class_lists import IGNORED, ClassList
from .embedded import EmbeddedScenes
from .labelled_images import ImageFiles, ImagesInFiles, LabelledImages, files_by_identifier, read_label_map
from .layouts import files_below, find_parts

PathLike = str | os.PathLike[str]


class PascalVOC(ImagesInFiles):
    """Pascal VOC 2012: 20 classes, with the background 21.

    ``VOCdevkit/VOC2012`` as unpacked: palette PNGs in ``SegmentationClass`` (0 background, 255 not scored) and
    ``ImageSets/Segmentation/<split>.txt``.

    Args:
        root: the folder that holds ``VOCdevkit``, ``VOC2012``, or what is in it.
        background: False: pixels of the background are not scored (the protocol with 20 classes).
        split: ``"train"``, ``"val"`` or ``"trainval"``.

    Raises:
        DatasetNotFoundError: a wrong root.
    """

    def __init__(self, root: PathLike, *, background: bool, split: str = "val") -> None:
        layout = {
            "images": "JPEGImages",
            "annotations": "SegmentationClass",
            "split": f"ImageSets/Segmentation/{split}.txt",
        }
        parts = find_parts("Pascal VOC 2012", root, [layout], below=("VOCdevkit/VOC2012", "VOC2012", ""))
        classes = ClassList.read("pascal_voc")
        super().__init__(
            name=f"Pascal VOC 2012 ({20 + background})",
            names=classes.all_names(background=background),
            files=files_by_identifier(parts, ".png"),
            table=classes.table(range(21), background=background),
        )


class PascalContext(ImagesInFiles):
    """Pascal Context: 59 classes, with the background 60.

    Either the published annotations, ``trainval/*.mat`` with a ``LabelMap`` of 459 labels, beside VOC 2010's images
    and ``ImageSets/Main/<split>.txt``; or PNGs of the 59 classes (0 background) in ``SegmentationClassContext`` with
    ``ImageSets/SegmentationContext/<split>.txt``.

    Args:
        root: the folder that holds ``VOCdevkit``, ``VOC2010``, or what is in it.
        background: False: pixels of none of the 59 classes are not scored.
        split: ``"train"`` or ``"val"``.

    Raises:
        DatasetNotFoundError: a wrong root.
    """

    def __init__(self, root: PathLike, *, background: bool, split: str = "val") -> None:
        converted = {
            "images": "JPEGImages",
            "annotations": "SegmentationClassContext",
            "split": f"ImageSets/SegmentationContext/{split}.txt",
        }
        published = {
            "images": "JPEGImages",
            "annotations": "trainval",
            "split": f"ImageSets/Main/{split}.txt",
        }
        below = ("VOCdevkit/VOC2010", "VOC2010", "")
        parts = find_parts("Pascal Context", root, [converted, published], below=below)
        classes = ClassList.read("pascal_context")
        is_converted = parts["annotations"].name == "SegmentationClassContext"
        numbered = ClassList(tuple(range(1, 60)), classes.names) if is_converted else classes
        super().__init__(
            name=f"Pascal Context ({59 + background})",
            names=classes.all_names(background=background),
            files=files_by_identifier(parts, ".png" if is_converted else ".mat"),
            table=numbered.table(range(60 if is_converted else 460), background=background),
            read_labels=None if is_converted else read_label_map,
        )


class COCO(ImagesInFiles):
    """COCO 2017 with the pixel maps of COCO-Stuff (``stuffthingmaps``): 80 objects and background, or 171 classes.

    The maps hold the published ids less one; 255 is unlabelled: not scored among the 171 classes, background where
    only objects are asked for.

    Args:
        root: holds ``val2017`` (or ``images/val2017``) and the unpacked ``stuffthingmaps_trainval2017``.
        stuff: False: 81 classes, background first. True: all 171, no background.
        split: ``"val"`` or ``"train"``.

    Raises:
        DatasetNotFoundError: a wrong root.
    """

    def __init__(self, root: PathLike, *, stuff: bool, split: str = "val") -> None:
        images = (f"images/{split}2017", f"{split}2017")
        maps = [f"{folder}/{split}2017" for folder in ("stuffthingmaps_trainval2017", "stuffthingmaps", "annotations")]
        layouts = [{"images": image, "annotations": annotation} for annotation in maps for image in images]
        parts = find_parts("COCO 2017 with COCO-Stuff's pixel maps", root, layouts)
        classes = ClassList.read("coco") if stuff else ClassList.read("coco").first(80)
        published = range(182)
        table = classes.table(published if stuff else [*published, IGNORED], background=not stuff)
        super().__init__(
            name="COCO-Stuff (171)" if stuff else "COCO-Object (81)",
            names=classes.all_names(background=not stuff),
            files=[
                ImageFiles(path.stem, parts["images"] / f"{path.stem}.jpg", path)
                for path in files_below(parts["annotations"], ".png")
                if path.stem.isdigit()  # conversions lie beside the maps as 000000000139_labelTrainIds.png
            ],
            table=table,
        )


class ADE20K(ImagesInFiles):
    """ADE20K's scene parsing benchmark: 150 classes.

    ``ADEChallengeData2016`` as unpacked: ``annotations/validation/*.png`` with labels 1 to 150; 0 is not scored.

    Args:
        root: the folder that holds ``ADEChallengeData2016``, or what is in it.
        split: ``"validation"`` or ``"training"``.

    Raises:
        DatasetNotFoundError: a wrong root.
    """

    def __init__(self, root: PathLike, *, split: str = "validation") -> None:
        layout = {"images": f"images/{split}", "annotations": f"annotations/{split}"}
        parts = find_parts("ADE20K", root, [layout], below=("ADEChallengeData2016", ""))
        classes = ClassList.read("ade20k")
        super().__init__(
            name="ADE20K (150)",
            names=classes.names,
            files=[
                ImageFiles(path.stem, parts["images"] / f"{path.stem}.jpg", path)
                for path in files_below(parts["annotations"], ".png")
            ],
            table=classes.table(range(151), background=False),
        )


class Cityscapes(ImagesInFiles):
    """Cityscapes: the 19 evaluated classes.

    ``leftImg8bit/<split>/<city>/*_leftImg8bit.png`` and ``gtFine/<split>/<city>/*_gtFine_labelIds.png`` with the
    published ids; those of the 15 other labels are not scored.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: ``"val"`` or ``"train"``.

    Raises:
        DatasetNotFoundError: a wrong root.
    """

    def __init__(self, root: PathLike, *, split: str = "val") -> None:
        layout = {"images": f"leftImg8bit/{split}", "annotations": f"gtFine/{split}"}
        parts = find_parts("Cityscapes", root, [layout], below=("", "cityscapes"))
        classes = ClassList.read("cityscapes")
        ending = "_gtFine_labelIds.png"
        files = []
        for path in files_below(parts["annotations"], ending):
            identifier = path.name.removesuffix(ending)
            image = parts["images"] / path.parent.name / f"{identifier}_leftImg8bit.png"
            files.append(ImageFiles(identifier, image, path))
        super().__init__(
            name="Cityscapes (19)",
            names=classes.names,
            files=files,
            table=classes.table(range(34), background=False),
        )


@dataclass(frozen=True)
class DatasetEntry:
    """How a data set is opened and what it is evaluated with unless told otherwise.

    Args:
        title: one line for the command line's help.
        open: (root, split) to the data set.
        split: the usual one.
        preset: models.
        vocabulary: ``"dataset"``: every image is asked for all classes; ``"image"``: for those in its truth.
    """

    title: str
    open: Callable[[PathLike, str], LabelledImages[Any]]
    split: str = "val"
    preset: str = "sd15-clip-b16"
    vocabulary: str = "dataset"


DATASETS: Mapping[str, DatasetEntry] = MappingProxyType(
    {
        "voc21": DatasetEntry(
            "Pascal VOC 2012 with background", lambda root, split: PascalVOC(root, background=True, split=split)
        ),
        "voc20": DatasetEntry(
            "Pascal VOC 2012, objects only", lambda root, split: PascalVOC(root, background=False, split=split)
        ),
        "context60": DatasetEntry(
            "Pascal Context with background", lambda root, split: PascalContext(root, background=True, split=split)
        ),
        "context59": DatasetEntry(
            "Pascal Context, 59 classes only", lambda root, split: PascalContext(root, background=False, split=split)
        ),
        "coco-object": DatasetEntry(
            "COCO 2017, 80 objects and background", lambda root, split: COCO(root, stuff=False, split=split)
        ),
        "coco-stuff": DatasetEntry("COCO-Stuff, 171 classes", lambda root, split: COCO(root, stuff=True, split=split)),
        "ade20k": DatasetEntry(
            "ADE20K, 150 classes", lambda root, split: ADE20K(root, split=split), split="validation"
        ),
        "cityscapes": DatasetEntry("Cityscapes, 19 classes", lambda root, split: Cityscapes(root, split=split)),
        "embedded": DatasetEntry(
            "the scenes that ship with the package",
            lambda root, split: EmbeddedScenes(split),
            split="test",
            preset="embedded",
            vocabulary="image",
        ),
    }
)


def open_dataset(name: str, root: PathLike | None = None, *, split: str | None = None) -> LabelledImages[Any]:
    """A data set by its name.

    Args:
        name: a key of ``DATASETS``, such as ``"voc21"`` or ``"embedded"``.
        root: the folder it was unpacked into; ``"embedded"`` needs none.
        split: None: the one that is usually scored.

    Returns:
        A map-style dataset of :class:`LabelledImage`.

    Raises:
        ValueError: an unknown name or split, or no root.
        DatasetNotFoundError: a wrong root; says what was looked for and what is there.

    Example:
        >>> len(open_dataset("embedded"))
        200
    """
    if name not in DATASETS:
        raise ValueError(refusal("dataset", f"one of {', '.join(DATASETS)}", repr(name)))
    entry = DATASETS[name]
    if root is None and name != "embedded":
        raise ValueError(refusal("root", f"the folder that {entry.title} was unpacked into", "none"))
    return entry.open(root or "", split or entry.split)
