"""The profile times functions by their names, which must be there."""

from __future__ import annotations

from benchmarks.sd15_profile import MODELS, OURS, stage_times


def test_every_function_that_is_timed_is_there_and_put_back() -> None:
    import nerve_kernels as nk

    before = nk.random_walk
    with stage_times(lambda: 0.0) as seconds:
        assert nk.random_walk is not before
    assert nk.random_walk is before
    assert dict(seconds) == {}
    assert {*MODELS} & {*OURS} == set()
