"""When memory runs out: which size was too large, and which one fits."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from .pictures import load_picture
from .pipeline import NervePipeline
from .prompts import LabelsLike
from .result import Segmentation
from .stages import AFFINITY, CLIP_PICTURE, CLIP_WORDS, DIFFUSION, SEEDS, WALK

SHRINKING = 0.75
SMALLEST_PICTURE = 16

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
    CLIP_PICTURE: ("clip_size", "--clip-size"),
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


def advice(pipeline: NervePipeline, file: Path, labels: LabelsLike, failed_stage: str | None) -> str:
    """What ran out of memory, and the largest size found to fit, found by trying.

    The traceback of the error must be gone by now: its frames hold the memory that ran out.

    Args:
        pipeline: as it was when memory ran out.
        file: the picture.
        labels: its labels.
        failed_stage: the name of the stage in which it happened; None where that is not known.

    Returns:
        A part of a sentence, to go after the file's name.
    """
    if failed_stage == CLIP_WORDS:
        return "out of memory for so many words; give fewer labels, or fewer prompts with --templates name"
    if failed_stage in _MODEL_SIZES:
        field, option = _MODEL_SIZES[failed_stage]
        tried = getattr(pipeline.config, field) or pipeline.clip.native_size
        picture = load_picture(file)

        def with_size(size: int) -> Segmentation:
            return pipeline(picture, labels, **{field: size})

        size = _first_that_fits(_smaller_sizes(tried), with_size)
        found = f"{option} {size} fits here" if size else "no smaller size fits either"
        return f"out of memory with {option} {tried}; {found}"
    with Image.open(file) as opened:
        width, height = opened.size

    def with_picture(size: tuple[int, int]) -> None:
        result = pipeline(Image.new("RGB", size), labels)
        result.overlay(), result.indexed(), result.summary()

    fitting = _first_that_fits(_smaller_pictures(width, height), with_picture)
    found = f"{fitting[0]}x{fitting[1]} fits here, so make it smaller" if fitting else "no smaller one fits either"
    return f"out of memory for a picture of {width}x{height} pixels; {found}"


def _smaller_sizes(size: int) -> Iterator[int]:
    while size * SHRINKING >= SMALLEST_PICTURE:
        size = int(size * SHRINKING)
        yield size


def _smaller_pictures(width: int, height: int) -> Iterator[tuple[int, int]]:
    while max(width, height) * SHRINKING >= SMALLEST_PICTURE:
        width, height = max(1, int(width * SHRINKING)), max(1, int(height * SHRINKING))
        yield width, height


def _first_that_fits(sizes: Iterable[Size], attempt: Callable[[Size], object]) -> Size | None:
    for size in sizes:
        _let_go()
        try:
            attempt(size)
        except Exception as error:
            if not is_out_of_memory(error):
                return None  # smaller sizes fail by themselves, as where the window no longer fits the grid
        else:
            return size
    return None


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
