"""When memory runs out: which size was too large, and which one fits."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from nerve_kernels.segmentation.images import load_image, read_image_file
from nerve_kernels.segmentation.phases import AFFINITY, CLIP_IMAGE, CLIP_WORDS, DIFFUSION, SEEDS, WALK
from nerve_kernels.segmentation.pipeline import NervePipeline
from nerve_kernels.segmentation.result import Segmentation
from nerve_kernels.segmentation.text_image.prompts import LabelsLike

SHRINKING = 0.75
MARGIN = 0.75**0.5
MIN_SIZE = 16

Size = TypeVar("Size")

# The words of torch's CPU allocator, of oneDNN (which says no more than that), of the C++ library, of CUDA, and of an
# allocation through torch's stable ABI (which loses what the allocator said).
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "could not create a ",
    "bad_alloc",
    "out of memory",
    '"aten::new_empty"',
)
_MODEL_SIZES = {
    CLIP_IMAGE: ("clip_size", "--clip-size"),
    DIFFUSION: ("diffusion_size", "--size"),
    AFFINITY: ("diffusion_size", "--size"),
    SEEDS: ("diffusion_size", "--size"),
    WALK: ("diffusion_size", "--size"),
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on the CPU or on a GPU.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def advice(pipeline: NervePipeline, file: Path, labels: LabelsLike, failed_phase: str | None) -> str:
    """What ran out of memory, and the largest size found to fit, found by trying.

    The traceback of the error must be gone by now: its frames hold the memory that ran out.

    Args:
        pipeline: as it was when memory ran out.
        file: the image.
        labels: its labels.
        failed_phase: the name of the phase in which it happened; None where that is not known.

    Returns:
        A part of a sentence, to go after the file's name.
    """
    if failed_phase == CLIP_WORDS:
        return "out of memory for so many words; give fewer labels, or fewer prompts with --templates name"
    if failed_phase in _MODEL_SIZES:
        field, option = _MODEL_SIZES[failed_phase]
        tried = getattr(pipeline.config, field) or pipeline.text_image.native_size
        image = load_image(file)

        def with_size(size: int) -> Segmentation:
            return pipeline(image, labels, **{field: size})

        size = _first_that_fits(_smaller_sizes(tried), with_size)
        found = f"{option} {size} fits here" if size else "no smaller size fits either"
        return f"out of memory with {option} {tried}; {found}"
    # by all that was done to the file itself: what is opened, converted and written takes memory too
    width, height, mode = read_image_file(file, lambda opened: (*opened.size, opened.mode))

    def with_image(size: tuple[int, int]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            smaller = Path(folder) / "smaller.tif"  # of any mode
            Image.new(mode, size).save(smaller)
            pipeline(smaller, labels).save(smaller.with_suffix(""))

    fitting = _first_that_fits(_smaller_images(width, height), with_image)
    if fitting is not None:
        # A new process lays out its memory otherwise than this one, which has failed: a quarter fewer pixels is room.
        fitting = max(1, int(fitting[0] * MARGIN)), max(1, int(fitting[1] * MARGIN))
    found = f"{fitting[0]}x{fitting[1]} fits here, so make it smaller" if fitting else "no smaller one fits either"
    return f"out of memory for an image of {width}x{height} pixels; {found}"


def _smaller_sizes(size: int) -> Iterator[int]:
    while size * SHRINKING >= MIN_SIZE:
        size = int(size * SHRINKING)
        yield size


def _smaller_images(width: int, height: int) -> Iterator[tuple[int, int]]:
    while max(width, height) * SHRINKING >= MIN_SIZE:
        width, height = max(1, int(width * SHRINKING)), max(1, int(height * SHRINKING))
        yield width, height


def _first_that_fits(sizes: Iterable[Size], attempt: Callable[[Size], object]) -> Size | None:
    for size in sizes:
        let_go()
        try:
            attempt(size)
        except Exception as error:
            if not is_out_of_memory(error):
                return None  # smaller sizes fail by themselves, as where the window no longer fits the grid
        else:
            return size
    return None


def let_go() -> None:
    """Give memory that nothing holds any more back to the system, or to torch."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
