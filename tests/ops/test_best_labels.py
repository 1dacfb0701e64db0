"""Labels of pixels: against the definition, and to the bit against interpolation and argmax of whole planes."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional
from benchmarks import memory
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import _native, reference

operator = importlib.import_module("nerve_kernels._operators.pixels.best_labels")
OPERATOR = torch.ops.nerve_kernels.best_labels
ROOT = Path(__file__).parents[2]
# labels, tokens, pixels: enlarged, shrunk along one side or both, as they are, single tokens, sides that divide nothing
SIZES = {
    "enlarged": (21, (9, 7), (130, 97)),
    "more labels than a vector": (203, (6, 5), (70, 90)),
    "two labels": (2, (16, 24), (100, 333)),
    "as it is": (3, (64, 70), (64, 70)),
    "shrunk": (9, (60, 70), (31, 105)),
    "shrunk in height alone": (9, (60, 9), (20, 150)),
    "one token": (5, (1, 1), (70, 80)),
    "one row of tokens": (7, (1, 9), (130, 7)),
    "one pixel": (4, (5, 6), (1, 1)),
    "one label": (1, (3, 4), (90, 91)),
}
BACKENDS = [
    pytest.param("cpp", marks=pytest.mark.skipif(not _native.extension_loaded(), reason=str(_native.load_error()))),
    "eager",
]


def make_planes(name: str, dtype: torch.dtype = torch.float32, sharpness: float = 1.0, batch: int = 2) -> Tensor:
    """Probabilities; sharp ones leave few candidates between four tokens, and some tokens are alike in two labels."""
    labels, tokens, _ = SIZES[name]
    generator = torch.Generator().manual_seed(len(name))
    planes = (sharpness * torch.randn(batch, labels, *tokens, generator=generator)).softmax(1)
    planes[:, labels // 2, ::2] = planes[:, 0, ::2]
    return planes.to(dtype)


def whole_planes(planes: Tensor, size: tuple[int, int], threshold: float, fallback: int) -> Tensor:
    """What one writes in torch: every label at every pixel, then the best."""
    values = functional.interpolate(planes.contiguous(), size=size, mode="bilinear", align_corners=False)
    best, label = values.max(1)
    return torch.where(best < threshold, fallback, label)


def is_right(labels: Tensor, planes: Tensor, size: tuple[int, int], threshold: float) -> bool:
    """Whether the chosen labels are the best, or as good as the best but for rounding."""
    values = functional.interpolate(planes.double(), size=size, mode="bilinear", align_corners=False)
    best = values.amax(1)
    chosen = values.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    below, above = best < threshold + 1e-6, best > threshold - 1e-6
    return bool(torch.where(labels < 0, below, above & (chosen >= best - 1e-6)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SIZES)
def test_labels_are_those_of_the_definition(name: str, backend: str, dtype: torch.dtype) -> None:
    planes, size = make_planes(name, dtype, 3.0), SIZES[name][2]
    for threshold in (0.0, 0.45):
        labels = OPERATOR(planes, *size, threshold, -1, backend)
        assert labels.dtype == torch.int64
        assert is_right(labels, planes, size, threshold)
        expected = reference.best_labels(planes, size=size, threshold=threshold, fallback=-1)
        # where two labels are equally good, rounding decides
        assert (labels == expected).double().mean() > 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sharpness", [0.3, 6.0])
@pytest.mark.parametrize("name", [name for name, (_, _, size) in SIZES.items() if sum(size) > 128])
def test_labels_equal_those_of_whole_planes_to_the_bit(name: str, sharpness: float, backend: str) -> None:
    """Up to 128 rows and columns torch adds the four corners in another order, and ties fall elsewhere."""
    size = SIZES[name][2]
    for dtype in (torch.float32, torch.float64):
        planes = make_planes(name, dtype, sharpness)
        for threshold in (0.0, 0.4):
            labels = OPERATOR(planes, *size, threshold, 77, backend)
            assert torch.equal(labels, whole_planes(planes, size, threshold, 77))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_of_equal_labels_wins(backend: str) -> None:
    planes = torch.full((1, 40, 3, 4), 0.025)
    assert OPERATOR(planes, 50, 60, 0.0, -1, backend).eq(0).all()
    planes[:, 7:] = 0.5
    assert OPERATOR(planes, 50, 60, 0.0, -1, backend).eq(7).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_number_is_never_the_best(backend: str) -> None:
    planes = make_planes("enlarged", sharpness=0.1)
    planes[:, 20] = 0.0  # no equal of another label
    expected = OPERATOR(planes, 130, 97, 0.0, -1, backend)
    spoiled = planes.clone()
    spoiled[:, 20] = torch.nan
    assert torch.equal(OPERATOR(spoiled, 130, 97, 0.0, -1, backend), expected)
    spoiled[0, :, 4:6] = torch.nan
    labels = OPERATOR(spoiled, 130, 97, 0.0, -1, backend)
    assert labels[0, 75].eq(-1).all()
    assert torch.equal(labels[1], expected[1])
    spoiled = planes.clone()
    spoiled[1, 13, 4, 3] = torch.inf
    assert (OPERATOR(spoiled, 130, 97, 0.0, -1, backend)[1] == 13).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e30, 1e-30, -1.0])
def test_any_numbers_not_only_probabilities(scale: float, backend: str) -> None:
    planes = scale * make_planes("enlarged")
    assert torch.equal(OPERATOR(planes, 130, 97, -torch.inf, -1, backend), whole_planes(planes, (130, 97), -1e38, -1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend: str) -> None:
    planes = make_planes("enlarged")
    expected = OPERATOR(planes, 130, 97, 0.2, -1, backend)
    side_by_side = planes.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    transposed = planes.transpose(2, 3).contiguous().transpose(2, 3)
    for view in (side_by_side, transposed, planes.repeat_interleave(2, dim=1)[:, ::2]):
        assert torch.equal(OPERATOR(view, 130, 97, 0.2, -1, backend), expected)


def test_blocks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    planes = make_planes("shrunk", sharpness=3.0)
    expected = OPERATOR(planes, 31, 105, 0.2, -1, "eager")
    for row_count in (1, 7):
        monkeypatch.setattr(operator, "BLOCK_BYTES", row_count * 4 * 2 * 9 * 105)
        assert torch.equal(OPERATOR(planes, 31, 105, 0.2, -1, "eager"), expected)


@pytest.mark.skipif(not _native.extension_loaded(), reason=str(_native.load_error()))
def test_the_number_of_threads_does_not_matter() -> None:
    planes = make_planes("more labels than a vector")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(OPERATOR(planes, 370, 290, 0.0, -1, "cpp"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do_is_done(backend: str) -> None:
    planes = make_planes("one label")
    assert OPERATOR(planes[:0], 5, 6, 0.0, -1, backend).shape == (0, 5, 6)
    assert OPERATOR(planes, 0, 6, 0.0, -1, backend).shape == (2, 0, 6)
    assert OPERATOR(planes, 5, 0, 0.0, -1, backend).shape == (2, 5, 0)


def test_vmap_and_compile() -> None:
    planes = make_planes("enlarged")
    call = functools.partial(OPERATOR, height=40, width=50, threshold=0.1, fallback=-1)
    expected = call(planes)
    assert torch.equal(torch.vmap(call)(planes[:, None])[:, 0], expected)
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(planes), expected)


@pytest.mark.skipif(not memory.can_measure("cpu"), reason="no /proc/self/clear_refs on this system")
@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_is_that_of_the_label_map(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 labels on 1000 × 750 pixels would be 286 MiB."""
    monkeypatch.setattr(operator, "BLOCK_BYTES", 4 * 2**20)
    planes = torch.rand(1, 100, 32, 24, generator=torch.Generator().manual_seed(0))
    call = functools.partial(OPERATOR, planes, 1000, 750, 0.0, -1, backend)
    call()
    measured = memory.peak_extra_bytes(call)
    assert measured is not None
    label_map, blocks = 8 * 1000 * 750, 6 * operator.BLOCK_BYTES if backend == "eager" else 0
    assert measured < label_map + blocks + 8 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(not _native.extension_loaded(), reason=str(_native.load_error()))
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_passes_the_same_tests(capability: str) -> None:
    # the choice is made once for a process, by torch and by us
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k"]
    finished = subprocess.run(
        [*command, "to_the_bit or no_number or not_only_probabilities", __file__],
        cwd=ROOT,
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout


def test_a_backend_that_is_not_there_says_so() -> None:
    with pytest.raises(nk.BackendUnavailableError, match="no cuda implementation of best_labels"):
        OPERATOR(make_planes("one token"), 5, 6, 0.0, -1, "cuda")
