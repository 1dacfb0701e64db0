"""What ``nerve-segment`` does with each image: segment, write, and say what went wrong."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nerve_kernels.segmentation.annotations.formats import Annotations
from nerve_kernels.segmentation.images import NotAnImageError
from nerve_kernels.segmentation.phases import WRITE, phase, recording_phases
from nerve_kernels.segmentation.pipeline import NervePipeline
from nerve_kernels.segmentation.text_image.prompts import LabelsLike

from .memory import advice, is_out_of_memory
from .report import Report, Written

# Where one image cannot be written for one of these, no other can.
NO_MORE_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class Wanted(NamedTuple):
    """An image with its words, the stem of its results, and its name in annotations."""

    file: Path
    words: LabelsLike
    stem: Path
    name: str


def segment_all(
    pipeline: NervePipeline,
    images: Sequence[Wanted],
    formats: Sequence[str],
    annotations: Annotations,
    *,
    side_by_side: bool,
    report: Report,
) -> None:
    """Segment image after image; what cannot be is reported, and the others are written all the same."""
    models = f"torch on {pipeline.text_image.device}, {str(pipeline.text_image.dtype).removeprefix('torch.')}"

    def write(one: Wanted) -> Written:
        segmentation = pipeline(one.file, one.words)
        files = segmentation.save(one.stem, side_by_side=side_by_side, formats=formats)
        with phase(WRITE):
            files |= annotations.add(segmentation, str(one.file), one.name)
        return Written(one.file, segmentation, files)

    with report.progress() as progress:
        task = progress.add_task("segmenting", total=len(images))
        for number, one in enumerate(images, start=1):
            file, out_of_memory = one.file, False
            with recording_phases() as phases:
                try:
                    written = write(one)
                except (NotAnImageError, FileNotFoundError) as error:
                    report.failed(str(error), file)
                except (OSError, ValueError, RuntimeError, MemoryError) as error:
                    out_of_memory = is_out_of_memory(error)
                    if isinstance(error, OSError) and error.filename:
                        report.failed(f"{error.filename}: cannot be written: {error.strerror}", file)
                        if error.errno in NO_MORE_WRITING:
                            if number < len(images):
                                report.failed(f"stopped: {len(images) - number} more could not be written either")
                            return
                    elif not out_of_memory:
                        report.failed(f"{file}: {error}", file)
                else:
                    report.done(written, phases, models)
            if out_of_memory:  # here, where the error and the memory that its frames hold are gone
                failed = next((one.name for one in phases if one.failed), None)
                report.failed(f"{file}: {advice(pipeline, file, one.words, failed)}", file)
            progress.advance(task)
