"""Which backend runs, and what is said of the others."""

from __future__ import annotations

import pytest
import torch

import nerve_kernels as nk
from nerve_kernels._operators import dispatch


def test_show_config_names_every_backend_and_why_some_are_missing(capsys):
    nk.show_config()
    printed = capsys.readouterr().out
    assert f"nerve_kernels {nk.__version__}" in printed
    assert torch.__version__ in printed
    for backend in dispatch.BACKENDS:
        assert f"  {backend}" in printed
        state = "available" if backend in nk.available_backends() else "not available: "
        assert state in printed.split(f"  {backend}")[1].splitlines()[1]


def test_choices_are_recorded_within_a_block_and_nowhere_else():
    affinity = nk.LocalAffinity(torch.ones(1, 4, 1), grid=(2, 2), window=1)
    with dispatch.recording_choices() as choices:
        nk.random_walk(torch.full((4, 2), 0.5), affinity, alpha=0.5, steps=1, backend="eager")
    nk.random_walk(torch.full((4, 2), 0.5), affinity, alpha=0.5, steps=1)
    assert choices == [("random_walk", "eager")]


def test_eager_is_always_there_and_the_order_is_best_first():
    available = nk.available_backends()
    assert available[-1] == "eager"
    assert list(available) == [name for name in dispatch.BACKENDS if name in available]


def test_a_backend_that_cannot_run_says_why_and_never_gives_way_to_another(monkeypatch):
    monkeypatch.setattr(dispatch._native, "load_error", lambda: "no compiler was found")
    monkeypatch.setattr(dispatch._native, "extension_loaded", lambda: False)
    affinity = nk.LocalAffinity(torch.ones(1, 4, 1), grid=(2, 2), window=1)
    with pytest.raises(
        nk.BackendUnavailableError,
        match=r"window_product: backend='cpp' cannot run: the compiled extension is not loaded: no compiler was "
        r"found\. For these inputs use backend=None or one of: eager",
    ):
        torch.ops.nerve_kernels.window_product(affinity.values, torch.ones(1, 4, 2), (2, 2), (1, 1), "cpp")
    assert "cpp" not in nk.available_backends()


def test_the_gradient_runs_where_the_caller_named_it_and_else_where_it_can(monkeypatch):
    ran = []
    forward, backward = (dispatch._operations[name] for name in ("random_walk", "random_walk_backward"))
    run = backward["eager"].run

    def recording(backend):
        return dispatch.Implementation(lambda *arguments: (ran.append(backend), run(*arguments))[1])

    monkeypatch.setitem(forward, "cuda", forward["eager"])
    monkeypatch.delitem(backward, "cuda", raising=False)
    for backend in ("eager", "cpp"):
        monkeypatch.setitem(backward, backend, recording(backend))
    affinity = nk.LocalAffinity(torch.ones(1, 4, 1), grid=(2, 2), window=1)
    for backend in ("eager", None, "cuda"):
        seeds = torch.full((1, 4, 2), 0.5, requires_grad=True)
        nk.random_walk(seeds, affinity, alpha=0.5, steps=2, backend=backend).sum().backward()
    # the last has no gradient of its own here: the best that can run on the device takes its place
    assert ran == ["eager", "cpp", "cpp"]
