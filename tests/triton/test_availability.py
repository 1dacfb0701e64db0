"""When triton is offered, and what is said where it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import nerve_kernels as nk
from nerve_kernels._operators import dispatch
from nerve_kernels._triton import availability
from nerve_kernels.environment import interpreting_triton

pytestmark = pytest.mark.skipif(interpreting_triton(), reason="says what is said without the interpreter")
OPERATIONS = ["attention_entropy", "attention_map_entropy", "attention_marginal", "fuse_attention",
              "fuse_attention_maps", "global_affinity", "local_affinity", "random_walk", "random_walk_backward",
              "window_product"]  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
def test_cpu_tensors_are_refused(operation):
    q = torch.ones(1, 1, 4, 4)
    reason = "runs on cuda or rocm tensors, got cpu"
    if availability.missing_triton() is not None:
        reason = "triton is not installed"
    with pytest.raises(nk.BackendUnavailableError, match=reason):
        dispatch.choose(operation, "triton", q, q)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_show_config_says_why_not():
    wanted = "torch sees no GPU" if availability.missing_triton() is None else "triton is not installed"
    lines = dispatch.config_lines()
    assert wanted in lines[next(i for i, line in enumerate(lines) if line.startswith("  triton")) + 1]
    assert "triton" not in nk.available_backends()


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError, as if it were not installed
import torch
import nerve_kernels as nk
q = torch.ones(1, 1, 2, 4)
nk.attention_entropy(q, q)
nk.show_config()
try:
    nk.attention_entropy(q, q, backend="triton")
except nk.BackendUnavailableError as error:
    print(error)
"""


def test_without_triton_everything_else_works():
    finished = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=True)
    assert "not available: triton is not installed; install it with `pip install triton`" in finished.stdout
    assert "backend='triton' cannot run: triton is not installed" in finished.stdout


BY_DEFAULT = """
import sys
import torch
import nerve_kernels as nk
q = torch.ones(1, 1, 2, 4)
nk.attention_entropy(q, q)
print([name for name in sys.modules if name.startswith("nerve_kernels._triton")])
"""


def test_the_switch_of_the_interpreter_changes_no_default():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", BY_DEFAULT], capture_output=True, text=True, check=True, env=environment
    )
    assert finished.stdout.strip() == "['nerve_kernels._triton', 'nerve_kernels._triton.availability']"
