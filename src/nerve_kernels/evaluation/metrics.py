"""Mean intersection over union, from one confusion matrix over all images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from nerve_kernels._operators.checks import refusal

LabelMap = torch.Tensor | npt.NDArray[np.integer]


@dataclass(frozen=True)
class IoUScore:
    """What :class:`MeanIoU` found.

    Args:
        miou: mean over the classes that occur in the truth or in a prediction.
        per_class: IoU of each of these classes, by name.
        pixel_accuracy: share of the pixels labelled rightly.
    """

    miou: float
    per_class: dict[str, float]
    pixel_accuracy: float


def confusion_matrix(prediction: LabelMap, truth: LabelMap, *, classes: int, ignore_index: int = 255) -> torch.Tensor:
    """Pixels by class, n_tp: of class t in the truth, predicted as p; counted by torchmetrics.

    Args:
        prediction: label map of integers 0 .. classes - 1.
        truth: the same, of the same shape; pixels with the value `ignore_index` are left out.
        classes: how many there are.
        ignore_index: see `truth`.

    Returns:
        (classes, classes) int64 on the CPU.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 255]), classes=2).tolist()
        [[1, 1], [0, 0]]
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    predicted, wanted = _same_shape(prediction, truth)
    # its own checks would sort all pixels, several times what counting them takes
    return multiclass_confusion_matrix(
        predicted.flatten(), wanted.flatten(), classes, ignore_index=ignore_index, validate_args=False
    ).cpu()


BOUNDARY_SHARE = 0.02  # of an image's diagonal, as Boundary IoU has it


def boundary_matrix(prediction: LabelMap, truth: LabelMap, *, classes: int, ignore_index: int = 255) -> torch.Tensor:
    """The confusion matrix of the pixels near a boundary, from which :func:`boundary_iou` comes.

    A pixel is near the boundary of its class if a pixel of another class, or the outside of the image, is within 2 % of
    the image's diagonal of it, along each axis; those that are not are of class C.

    Args:
        prediction, truth, classes, ignore_index: as for :func:`confusion_matrix`; the maps are (H, W), and what is
            ignored in the truth is another class than its neighbours.

    Returns:
        (classes + 1, classes + 1) int64 on the CPU, the last class the pixels far from a boundary.

    Raises:
        ValueError: shapes that differ.

    Source:
        Cheng et al., *Boundary IoU: Improving Object-Centric Image Segmentation Evaluation*, CVPR 2021, equation 2;
        they take the pixels near one object's boundary, this takes those of all objects of a class.

    Example:
        >>> columns = torch.arange(100).expand(100, 100)
        >>> boundary_matrix((columns >= 50).long(), (columns >= 50).long(), classes=2).diagonal().tolist()
        [864, 864, 8272]
    """
    predicted, wanted = _same_shape(prediction, truth)
    distance = max(1, round(BOUNDARY_SHARE * math.hypot(*wanted.shape)))
    near = [torch.where(_is_near_another(labels, distance), labels, classes) for labels in (predicted, wanted)]
    near[1] = torch.where(wanted == ignore_index, ignore_index, near[1])
    return confusion_matrix(*near, classes=classes + 1, ignore_index=ignore_index)


def _is_near_another(labels: torch.Tensor, distance: int) -> torch.Tensor:
    """Whether another label or the outside is within a distance of a pixel, along each axis."""
    outside = torch.nn.functional.pad(labels.float()[None], (distance,) * 4, value=-1.0)
    side = 2 * distance + 1

    def largest(values: torch.Tensor) -> torch.Tensor:
        rows = torch.nn.functional.max_pool2d(values, (side, 1), stride=1)
        return torch.nn.functional.max_pool2d(rows, (1, side), stride=1)[0]

    return largest(outside) != -largest(-outside)


def score(counts: torch.Tensor, classes: Sequence[str]) -> IoUScore:
    """IoU of class c = n_cc / (Σ_k n_ck + Σ_k n_kc − n_cc), and their mean.

    Args:
        counts: (C, C) confusion matrix, rows the truth, columns the prediction.
        classes: their names.

    Returns:
        The score.

    Raises:
        ValueError: no pixel was counted.
    """
    exact = counts.double()
    hits = exact.diagonal()
    union = exact.sum(dim=0) + exact.sum(dim=1) - hits
    occurs = union > 0
    if not bool(occurs.any()):
        raise ValueError("counts: no pixel was counted yet; call update first")
    iou = hits[occurs] / union[occurs]
    names = [name for name, there in zip(classes, occurs.tolist(), strict=True) if there]
    return IoUScore(
        miou=float(iou.mean()),
        per_class=dict(zip(names, iou.tolist(), strict=True)),
        pixel_accuracy=float(hits.sum() / exact.sum()),
    )


def boundary_iou(counts: torch.Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Boundary IoU of each class: that of the pixels near its boundaries, |G_d ∩ P_d| / |G_d ∪ P_d|.

    Args:
        counts: (C + 1, C + 1), the sum of :func:`boundary_matrix` over images.
        classes: names of the C classes.

    Returns:
        By name, for the classes that occur.

    Example:
        >>> columns = torch.arange(100).expand(100, 100)
        >>> counts = boundary_matrix((columns >= 50).long(), (columns >= 51).long(), classes=2)
        >>> round(boundary_iou(counts, ["left", "right"])["left"], 3)  # IoU has 0.98
        0.799
    """
    found = score(counts, (*classes, "")).per_class
    found.pop("", None)
    return found


class MeanIoU:
    """Accumulates label maps; the counts are one ``torchmetrics`` confusion matrix.

    IoU of class c = n_cc / (Σ_k n_ck + Σ_k n_kc − n_cc), with n_tp the number of pixels of
    class t predicted as p, over *all* images (not a mean of means over images).

    Args:
        classes: names, the position being the index in the label maps.
        ignore_index: truth pixels with this value are left out.
        device: where the counts are kept.

    Raises:
        ValueError: fewer than two classes; in `update`, shapes that differ.

    Example:
        >>> score = MeanIoU(["background", "cat"])
        >>> score.update(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 0], [1, 1]]))
        >>> round(score.compute().miou, 4)  # background 1/2, cat 2/3
        0.5833
    """

    def __init__(
        self, classes: Sequence[str], *, ignore_index: int = 255, device: str | torch.device | None = None
    ) -> None:
        from torchmetrics.classification import MulticlassConfusionMatrix

        if len(classes) < 2:
            raise ValueError(refusal("classes", "at least 2", len(classes)))
        self.classes = tuple(classes)
        #: The torchmetrics metric itself; it sums over processes under ``torch.distributed``.
        self.confusion = MulticlassConfusionMatrix(len(classes), ignore_index=ignore_index).to(device or "cpu")

    def update(self, prediction: LabelMap, truth: LabelMap) -> None:
        """Count one image (or a batch): label maps of one shape."""
        predicted, wanted = _same_shape(prediction, truth)
        device = self.confusion.device
        self.confusion.update(predicted.flatten().to(device), wanted.flatten().to(device))

    def compute(self) -> IoUScore:
        """The score of everything counted so far."""
        return score(self.confusion.compute(), self.classes)

    def reset(self) -> None:
        """Forget everything."""
        self.confusion.reset()


def _same_shape(prediction: LabelMap, truth: LabelMap) -> tuple[torch.Tensor, torch.Tensor]:
    predicted, wanted = _integers(prediction), _integers(truth)
    if predicted.shape != wanted.shape:
        raise ValueError(
            refusal("prediction, truth", "one shape", f"{tuple(predicted.shape)} and {tuple(wanted.shape)}")
        )
    return predicted, wanted


def _integers(label_map: LabelMap) -> torch.Tensor:
    return torch.as_tensor(np.asarray(label_map) if not isinstance(label_map, torch.Tensor) else label_map).long()
