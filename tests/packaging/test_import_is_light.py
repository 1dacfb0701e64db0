"""``import nerve_kernels`` needs torch and numpy, and pulls in nothing that an op can do without."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"diffusers", "transformers", "triton", "matplotlib", "PIL", "gradio", "torchmetrics", "scipy", "typer"}

# torch itself may import some of these, so the question is what nerve_kernels adds to it
IMPORT = """
import sys
import torch
before = set(sys.modules)
import nerve_kernels
print(" ".join(sorted(set(sys.modules) - before)))
"""

IMPORT_WITHOUT = """
import sys
for name in {heavy!r}:
    sys.modules[name] = None  # importing it raises ImportError, as if it were not installed
import torch
import nerve_kernels as nk
seeds = torch.rand(6, 3).softmax(-1)
affinity = nk.LocalAffinity(torch.full((1, 6, 9), 0.1), grid=(2, 3), window=3)
nk.random_walk(seeds, affinity, alpha=0.5, steps=2)
nk.show_config()
"""


def run(code: str) -> str:
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_import_leaves_out_what_the_ops_can_do_without() -> None:
    imported = {name.partition(".")[0] for name in run(IMPORT).split()}
    assert "nerve_kernels" in imported
    assert imported & HEAVY == set()


def test_the_ops_run_where_nothing_else_is_installed() -> None:
    assert "eager" in run(IMPORT_WITHOUT.format(heavy=HEAVY))
