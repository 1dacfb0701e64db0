"""Nothing is lost and nothing doubled by SIGKILL; `make bulk-check` does more of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="needs nerve_kernels[bulk]")
pytest.importorskip("pycocotools", reason="needs nerve_kernels[bulk]")
psutil = pytest.importorskip("psutil")


def ray_starts() -> bool:
    """Whether Ray runs a task here at all, without anything of this package: some sandboxes leave it no sockets."""
    start = "import ray; ray.init(address='local', num_cpus=2, include_dashboard=False)"
    program = f"{start}; ray.get(ray.remote(lambda: 1).remote())"
    try:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=300).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@pytest.mark.slow
def test_every_id_is_there_once_after_three_kills(tmp_path, monkeypatch):
    from tests.bulk.kills import check

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["src", "."]))
    try:
        kills = list(check(tmp_path, 40, ["driver", "actor", "worker"], seed=1))
    except Exception:
        if not ray_starts():
            pytest.skip("Ray itself does not start on this machine")
        raise
    assert [kill.victim for kill in kills] == ["driver", "actor", "worker"]
    assert kills[0].rows < 40
