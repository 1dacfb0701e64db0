"""Nothing is lost and nothing doubled by SIGKILL; `make bulk-check` does more of it."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("ray", reason="needs nerve_kernels[bulk]")
pytest.importorskip("pycocotools", reason="needs nerve_kernels[bulk]")
psutil = pytest.importorskip("psutil")


@pytest.mark.slow
def test_every_id_is_there_once_after_three_kills(tmp_path, monkeypatch):
    from tests.bulk.kills import check

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["src", "."]))
    kills = list(check(tmp_path, 40, ["driver", "actor", "worker"], seed=1))
    assert [kill.victim for kill in kills] == ["driver", "actor", "worker"]
    assert kills[0].rows < 40
