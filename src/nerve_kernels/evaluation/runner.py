"""Evaluation over a whole data set: on many processes, resumed where it was killed, in flat memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from nerve_kernels._operators.checks import refusal
from nerve_kernels._peak_memory import highest_resident_bytes
from nerve_kernels.segmentation.finite import NotFiniteError

from .file_states import FileState
from .finished import Finished
from .labelled_images import LabelledImage, LabelledImages, UnreadableImageError
from .metrics import IoUScore, boundary_iou, score
from .processes import Processes
from .run_folder import ImageRecord, RunFolder, RunShape
from .scorer import Cost, Scorer

SAVE_EVERY_SECONDS = 30.0
EXTREMES = 3


@dataclass(frozen=True)
class Evaluation:
    """What a run has found.

    Args:
        confusions: for each variant its confusion matrix (classes, classes), rows the truth.
        scores: for each variant its mIoU, IoU by class and pixel accuracy.
        images: how many were scored, over all processes and interruptions.
        resumed: how many of them an earlier run had finished.
        unchecked: how many of these come from a version that kept no state of the files it read, so that nobody
            knows whether they have changed since.
        failures: images that could not be scored, with the reason.
        seconds: what this run took for the images it computed itself, without loading models.
        processes: how many shared the work.
        peak_memory_bytes: the largest of any process.
        peak_gpu_memory_bytes: likewise on its GPU; None without one.
        best, worst: indices of the images with the highest and lowest mIoU under the first variant.
        boundaries: for each variant the Boundary IoU by class; empty where it was not counted.
        costs: for each variant the median over the first images of this run of what came after seeds and affinity;
            none with one variant, or where this run had nothing left to do.
    """

    confusions: Mapping[str, torch.Tensor]
    scores: Mapping[str, IoUScore]
    images: int
    resumed: int
    unchecked: int
    failures: tuple[tuple[str, str], ...]
    seconds: float
    processes: int
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None
    best: tuple[int, ...]
    worst: tuple[int, ...]
    boundaries: Mapping[str, Mapping[str, float]]
    costs: Mapping[str, Cost]

    @property
    def images_per_second(self) -> float:
        """Of this run, over all processes; 0 where it had nothing left to do."""
        computed = self.images - self.resumed
        return computed / self.seconds if computed else 0.0


@dataclass
class Tally:
    """The sum over images, and which were best and worst."""

    classes: tuple[str, ...]
    variants: int
    images: int = 0
    scored: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Nothing is counted yet."""
        classes = len(self.classes)
        self.counts = torch.zeros(self.variants, classes, classes, dtype=torch.int64)
        self.boundary_counts = torch.zeros(self.variants, classes + 1, classes + 1, dtype=torch.int64)

    def add(self, record: ImageRecord) -> None:
        """Count one image."""
        for number, entries in enumerate(record.counts):
            matrix = _dense(entries, len(self.classes))
            self.counts[number] += matrix
            if number == 0 and entries:
                self.scored.append((score(matrix, self.classes).miou, record.index))
        for number, entries in enumerate(record.boundary_counts or ()):
            self.boundary_counts[number] += _dense(entries, len(self.classes) + 1)
        if len(self.scored) > 16 * EXTREMES:
            self.scored = extremes(self.scored)
        self.images += 1


def _dense(entries: Sequence[tuple[int, int]], classes: int) -> torch.Tensor:
    cells, pixels = zip(*entries, strict=True) if entries else ((), ())
    matrix = torch.zeros(classes**2, dtype=torch.int64)
    matrix[list(cells)] = torch.tensor(pixels, dtype=torch.int64)
    return matrix.view(classes, classes)


def extremes(scored: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """The lowest and the highest few, in order."""
    ordered = sorted(scored)
    return ordered if len(ordered) <= 2 * EXTREMES else ordered[:EXTREMES] + ordered[-EXTREMES:]


def evaluate(
    scorer: Scorer,
    out: str | os.PathLike[str],
    *,
    processes: Processes | None = None,
    limit: int | None = None,
    save_every: float = SAVE_EVERY_SECONDS,
    workers: int = 0,
    verify: bool = False,
    redo_changed: bool = False,
    on_start: Callable[[int], None] | None = None,
    on_image: Callable[[int, str | None], None] | None = None,
) -> Evaluation:
    """Score the images of a data set that no earlier run into the same folder has finished.

    Processes share the unfinished images round-robin, score one at a time, and save as they go. Counts are
    integers, so their sum does not depend on how the images were shared out.

    Args:
        scorer: pipeline, data set and variants.
        out: folder of the run. Nodes need not share it: each process resumes what it sees.
        processes: None: this one alone.
        limit: score only so many images, spread evenly over the data set.
        save_every: seconds between two savings; what is lost when a process is killed.
        workers: processes that read images ahead; 0: none, they are read between two computations.
        verify: compare the bytes of every file that an earlier run has read with what they were then; else size and
            time of change, and the bytes where the time alone differs.
        redo_changed: score images again whose files have changed since, in place of refusing to count them.
        on_start: called with the number of images this process will score.
        on_image: called after each with its index and what was wrong with it, or None.

    Returns:
        The same evaluation in every process.

    Raises:
        ValueError: the folder holds another run, results of files that have changed since, or damage; processes with
            different models or data, a limit below 1, or not a single image could be scored.
    """
    check_save_every(save_every)
    processes = processes or Processes()
    dataset = scorer.dataset
    chosen = spread(len(dataset), limit)
    if len({repr(description) for description in processes.gather(scorer.description)}) > 1:
        raise ValueError("processes: their models, settings or data sets differ; start all with the same command")
    classes = dataset.classes
    shape = RunShape(len(dataset), len(scorer.variants), len(classes), scorer.boundary)
    folder = RunFolder(
        out, scorer.description, shape, digest_of_weights=scorer.digest_of_weights, save_every=save_every
    )
    tally = Tally(classes, len(scorer.variants))
    finished = Finished(folder, dataset, chosen, processes, verify=verify, redo_changed=redo_changed)
    for record in finished.records():
        tally.add(record)
    resumed = tally.images
    mine = finished.still_open[processes.rank :: processes.count]
    if on_start is not None:
        on_start(len(mine))
    failures: list[tuple[str, str]] = []
    started = time.perf_counter()
    for index, labelled, files in _reader(dataset, mine, workers):
        reason = labelled if isinstance(labelled, str) else None
        if not isinstance(labelled, str):
            try:
                record = scorer.record(index, labelled, files)
            except torch.OutOfMemoryError as error:
                reason = f"{labelled.identifier}: too large for this device ({error})"
            except NotFiniteError as error:
                reason = f"{labelled.identifier}: {error}"
            else:
                folder.add(record)
                tally.add(record)
        if reason is not None:
            failures.append((dataset.identifiers[index], reason))
        if on_image is not None:
            on_image(index, reason)
    folder.save()
    seconds = time.perf_counter() - started
    return _gather(scorer, processes, tally, (resumed, finished.unchecked), failures, seconds)


def check_save_every(seconds: float) -> float:
    """The seconds between two savings, as they are; NaN, which is never reached, and less than none are refused."""
    if not seconds >= 0:
        raise ValueError(f"save_every: expected seconds, 0 or more, got {seconds}")
    return seconds


def spread(count: int, limit: int | None) -> list[int]:
    """Indices of so many images from all over a data set.

    Example:
        >>> spread(10, 4), spread(3, 5), spread(2, None)
        ([0, 2, 5, 7], [0, 1, 2], [0, 1])
    """
    if limit is not None and limit < 1:
        raise ValueError(refusal("limit", "at least 1", limit))
    wanted = count if limit is None else min(limit, count)
    return [position * count // wanted for position in range(wanted)]


class _Readable(Dataset[tuple[int, LabelledImage | str, tuple[FileState, ...]]]):
    """Gives what is wrong with an image in place of raising it, so that readers ahead carry on."""

    def __init__(self, dataset: LabelledImages[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, LabelledImage | str, tuple[FileState, ...]]:
        try:
            files = tuple(FileState.of(path) for path in self._dataset.files(index))
        except OSError:
            files = ()  # what is wrong with them is said where they are read as images
        try:
            return index, self._dataset[index], files
        except UnreadableImageError as error:
            return index, str(error), files


def _reader(dataset: LabelledImages[Any], indices: list[int], workers: int) -> DataLoader[Any]:
    return DataLoader(
        _Readable(dataset),
        sampler=indices,
        batch_size=None,
        num_workers=min(workers, len(indices)),
        collate_fn=_unchanged,
    )


def _unchanged(item: Any) -> Any:
    return item


def _gather(
    scorer: Scorer,
    processes: Processes,
    tally: Tally,
    earlier: tuple[int, int],
    failures: list[tuple[str, str]],
    seconds: float,
) -> Evaluation:
    counts = processes.total(tally.counts)
    boundaries = {}
    if scorer.boundary:
        boundaries = dict(zip(scorer.variants, processes.total(tally.boundary_counts), strict=True))
    numbers = processes.total(torch.tensor([tally.images, *earlier]))
    found = extremes(tally.scored), failures, seconds, scorer.costs, highest_resident_bytes(), _peak_gpu_memory()
    others = processes.gather(found)
    ordered = extremes([entry for scored, *_ in others for entry in scored])
    all_failures = tuple(sorted(entry for _, failed, *_ in others for entry in failed))
    if not int(numbers[0]):
        first = f"; the first: {all_failures[0][1]}" if all_failures else ""
        raise ValueError(f"dataset: not a single image of {scorer.dataset.name} could be scored{first}")
    confusions = dict(zip(scorer.variants, counts, strict=True))
    costs = {name: [cost for *_, costs, _, _ in others for cost in costs[name]] for name in scorer.variants}
    half = len(ordered) // 2
    gpu = [memory for *_, memory in others if memory is not None]
    return Evaluation(
        confusions=confusions,
        scores={name: score(matrix, scorer.dataset.classes) for name, matrix in confusions.items()},
        images=int(numbers[0]),
        resumed=int(numbers[1]),
        unchecked=int(numbers[2]),
        failures=all_failures,
        seconds=max(seconds for _, _, seconds, *_ in others),
        processes=processes.count,
        peak_memory_bytes=max((memory for *_, memory, _ in others if memory is not None), default=None),
        peak_gpu_memory_bytes=max(gpu, default=None),
        best=tuple(index for _, index in reversed(ordered[-min(EXTREMES, len(ordered) - half) :])),
        worst=tuple(index for _, index in ordered[: min(EXTREMES, half)]),
        boundaries={name: boundary_iou(matrix, scorer.dataset.classes) for name, matrix in boundaries.items()},
        costs={name: _median(measured) for name, measured in costs.items() if measured},
    )


def _median(costs: list[Cost]) -> Cost:
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    return Cost(statistics.median(cost.seconds for cost in costs), statistics.median_high(peaks) if peaks else None)


def _peak_gpu_memory() -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
