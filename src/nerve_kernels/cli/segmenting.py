"""What ``nerve-segment`` does with its images: read ahead, segment some at once, write behind, say what went wrong."""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from nerve_kernels.segmentation.annotations.formats import Annotations
from nerve_kernels.segmentation.features import ImageFeatures
from nerve_kernels.segmentation.images import NotAnImageError, load_image
from nerve_kernels.segmentation.phases import READ, WRITE, Phase, phase, recording_phases
from nerve_kernels.segmentation.pipeline import NervePipeline
from nerve_kernels.segmentation.result import Segmentation
from nerve_kernels.segmentation.text_image.prompts import LabelsLike

from .memory import advice, is_out_of_memory
from .report import Report, Written

# Where one image cannot be written for one of these, no other can.
NO_MORE_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
READERS = 2
EXPECTED = (OSError, ValueError, RuntimeError, MemoryError)  # whatever else is raised is a fault of this program


class Wanted(NamedTuple):
    """An image with its words, the stem of its results, and its name in annotations."""

    file: Path
    words: LabelsLike
    stem: Path
    name: str


class Failure(NamedTuple):
    """Why an image has no results; without the error itself, whose frames hold memory."""

    said: str
    ends_all: bool = False
    out_of_memory: bool = False

    @classmethod
    def of(cls, error: BaseException, file: Path) -> Failure:
        """What to say of an error."""
        if isinstance(error, (NotAnImageError, FileNotFoundError)):
            return cls(str(error))
        if isinstance(error, OSError) and error.filename:
            said = f"{error.filename}: cannot be written: {error.strerror}"
            return cls(said, ends_all=error.errno in NO_MORE_WRITING)
        return cls(f"{file}: {error}", out_of_memory=is_out_of_memory(error))


class Outcome(NamedTuple):
    """An image that failed, or whose results are being written, with what was done so far."""

    wanted: Wanted
    phases: list[Phase]
    result: Failure | Future[tuple[Written | Failure, list[Phase]]]


def segment_all(
    pipeline: NervePipeline,
    images: Sequence[Wanted],
    formats: Sequence[str],
    annotations: Annotations,
    *,
    side_by_side: bool,
    batch: int,
    report: Report,
) -> None:
    """Segment images, `batch` at once; what cannot be is reported, in their order, and the others are written."""
    with report.progress() as progress:
        task = progress.add_task("segmenting", total=len(images))
        # Nothing goes on beside a single image, and a thread takes memory.
        pools = (_Here(), _Here()) if len(images) == 1 else (ThreadPoolExecutor(READERS), ThreadPoolExecutor(1))
        work = _Work(pipeline, formats, annotations, side_by_side, batch, report, pools)
        try:
            for number, outcome in enumerate(work.outcomes(images), start=1):
                if not work.settle(outcome):
                    if number < len(images):
                        report.failed(f"stopped: {len(images) - number} more could not be written either")
                    return
                progress.advance(task)
        finally:
            work.stop()


class _Here(Executor):
    """Does what it is given at once, in the thread that gives it."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """A future that is done; what is raised is raised here."""
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **options))
        return future


class _Work:
    def __init__(
        self,
        pipeline: NervePipeline,
        formats: Sequence[str],
        annotations: Annotations,
        side_by_side: bool,
        batch: int,
        report: Report,
        pools: tuple[Executor, Executor],
    ) -> None:
        self._pipeline, self._formats, self._annotations = pipeline, formats, annotations
        self._side_by_side, self._batch, self._report = side_by_side, batch, report
        self._models = f"torch on {pipeline.text_image.device}, {str(pipeline.text_image.dtype).removeprefix('torch.')}"
        self._readers, self._writer = pools
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Wait for what is being read and written, an image at most, and begin nothing more."""
        self._stopped.set()
        for pool in (self._readers, self._writer):
            pool.shutdown(cancel_futures=True)

    def outcomes(self, images: Sequence[Wanted]) -> Iterator[Outcome]:
        """What becomes of each image, in their order; the next ones are read meanwhile, the last ones written."""
        reads: deque[Future[tuple[Image.Image | Failure, list[Phase]]]] = deque()
        written: deque[Outcome] = deque()
        done = asked = 0
        while done < len(images):
            group = images[done : done + self._batch]
            while asked < min(len(images), done + 2 * self._batch):
                reads.append(self._readers.submit(self._read, images[asked]))
                asked += 1
            read = [reads.popleft().result() for _ in group]
            done += len(group)
            for outcome in self._segment(group, read):
                written.append(outcome)
                if len(written) > self._batch:
                    yield written.popleft()
        yield from written

    def settle(self, outcome: Outcome) -> bool:
        """Wait for an image's results and report them; False where nothing more can be written."""
        phases = outcome.phases
        if isinstance(outcome.result, Future):
            result, own = outcome.result.result()
            if isinstance(result, Written):
                self._report.done(result, phases + own, self._models)
                return True
            phases = phases + own
        else:
            result = outcome.result
        file, words = outcome.wanted.file, outcome.wanted.words
        said = result.said
        if result.out_of_memory:
            failed = next((one.name for one in phases if one.failed), None)
            said = f"{file}: {advice(self._pipeline, file, words, failed)}"
        self._report.failed(said, file)
        return not result.ends_all

    def _segment(
        self, group: Sequence[Wanted], read: Sequence[tuple[Image.Image | Failure, list[Phase]]]
    ) -> Iterator[Outcome]:
        images = {place: image for place, (image, _) in enumerate(read) if isinstance(image, Image.Image)}
        encoded = dict(
            zip(images, self._encode([group[place].file for place in images], [*images.values()]), strict=True)
        )
        for place, one in enumerate(group):
            image, phases = read[place]
            if isinstance(image, Failure):
                yield Outcome(one, phases, image)
                continue
            features, shared = encoded.pop(place)
            phases = phases + shared
            if isinstance(features, Failure):
                yield Outcome(one, phases, features)
                continue
            with recording_phases() as own:
                try:
                    segmentation: Segmentation | Failure = self._pipeline.segment(features, one.words)
                except EXPECTED as error:
                    segmentation = Failure.of(error, one.file)
            phases = phases + own
            if isinstance(segmentation, Failure):
                yield Outcome(one, phases, segmentation)
            else:
                yield Outcome(one, phases, self._writer.submit(self._write, segmentation, one))

    def _encode(
        self, files: Sequence[Path], images: Sequence[Image.Image]
    ) -> list[tuple[ImageFeatures | Failure, list[Phase]]]:
        """Features of images, each with its share of the time; where one of several fails, they go one by one."""
        if not images:
            return []
        with recording_phases() as phases:
            try:
                features: list[ImageFeatures | Failure] = [*self._pipeline.encode_all(images)]
            except EXPECTED as error:
                failure = Failure.of(error, files[0])
                features = [failure]
        if len(features) == len(images):
            share = [replace(one, seconds=one.seconds / len(images)) for one in phases]
            return [(one, share) for one in features]
        if failure.out_of_memory:
            self._report.note(
                f"out of memory with --batch {self._batch}: the rest go one by one; a smaller one may fit"
            )
            self._batch = 1
        return [self._encode([file], [image])[0] for file, image in zip(files, images, strict=True)]

    def _read(self, one: Wanted) -> tuple[Image.Image | Failure, list[Phase]]:
        with recording_phases() as phases:
            try:
                with phase(READ):
                    return load_image(one.file), phases
            except EXPECTED as error:
                return Failure.of(error, one.file), phases

    def _write(self, segmentation: Segmentation, one: Wanted) -> tuple[Written | Failure, list[Phase]]:
        with recording_phases() as phases:
            try:
                if self._stopped.is_set():  # the one before could not be written, nor will this be
                    return Failure("", ends_all=True), phases
                files = segmentation.save(one.stem, side_by_side=self._side_by_side, formats=self._formats)
                with phase(WRITE):
                    files |= self._annotations.add(segmentation, str(one.file), one.name)
                return Written(one.file, segmentation, files), phases
            except EXPECTED as error:
                failure = Failure.of(error, one.file)
                if failure.ends_all:
                    self._stopped.set()
                return failure, phases
