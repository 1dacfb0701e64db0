"""Which backend runs, what is said of the others, and how much memory eager takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import nerve_kernels as nk
from nerve_kernels import _backends


def test_show_config_names_every_backend_and_why_some_are_missing(capsys):
    nk.show_config()
    printed = capsys.readouterr().out
    assert f"nerve_kernels {nk.__version__}" in printed
    assert torch.__version__ in printed
    for backend in _backends.PREFERENCE:
        assert f"  {backend}" in printed
        state = "available" if backend in nk.available_backends() else "not available: "
        assert state in printed.split(f"  {backend}")[1].splitlines()[1]


def test_choices_are_recorded_within_a_block_and_nowhere_else():
    affinity = nk.LocalAffinity(torch.ones(1, 4, 1), grid=(2, 2), window=1)
    with _backends.recording_choices() as choices:
        nk.random_walk(torch.full((4, 2), 0.5), affinity, alpha=0.5, steps=1, backend="eager")
    nk.random_walk(torch.full((4, 2), 0.5), affinity, alpha=0.5, steps=1)
    assert choices == [("random_walk", "eager")]


def test_eager_is_always_there_and_the_order_is_best_first():
    available = nk.available_backends()
    assert available[-1] == "eager"
    assert list(available) == [name for name in _backends.PREFERENCE if name in available]


def test_a_backend_that_cannot_run_says_why_and_never_gives_way_to_another(monkeypatch):
    monkeypatch.setattr(_backends._native, "load_error", lambda: "no compiler was found")
    monkeypatch.setattr(_backends._native, "extension_loaded", lambda: False)
    affinity = nk.LocalAffinity(torch.ones(1, 4, 1), grid=(2, 2), window=1)
    with pytest.raises(
        nk.BackendUnavailableError,
        match=r"window_product: backend='cpp' cannot run: the compiled extension is not loaded: no compiler was "
        r"found\. For these inputs use backend=None or one of: eager",
    ):
        torch.ops.nerve_kernels.window_product(affinity.values, torch.ones(1, 4, 2), (2, 2), (1, 1), "cpp")
    assert "cpp" not in nk.available_backends()


PEAK_MEMORY = """
import resource, torch, nerve_kernels as nk
generator = torch.Generator().manual_seed(0)
q, k = (torch.randn(1, 8, 4096, 40, generator=generator) for _ in range(2))
warm = q[:, :, :64], k[:, :, :64]
w = torch.full((1, 8), 1 / 8)
def stages(q, k, grid):
    entropy, lse = nk.attention_entropy(q, k, return_lse=True)
    {body}
stages(*warm, (8, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stages(q, k, (64, 64))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
AFFINITIES = "nk.local_affinity(q, k, w, grid=grid, lse=lse); nk.global_affinity(q, k, w, grid=grid, cells=8, lse=lse)"


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize(("body", "megabytes"), [("pass", 64), (AFFINITIES, 64)], ids=["entropy", "both affinities"])
def test_peak_memory_at_4096_tokens(body, megabytes):
    """A (heads, N, N) tensor would be 512 MiB; the whole of stages 1 and 2 takes a tenth of that."""
    script = PEAK_MEMORY.replace("{body}", body)
    # one malloc arena: otherwise the allocator's own hoarding is measured
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert float(finished.stdout) < megabytes
