"""The operator of docs/adding_a_kernel.md does what an operator has to, though the page is all there is of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_kernel.md"
MAX_LINES = 40

# In a process of its own: an operator is declared once in a process, and test_docs.py runs the page as well.
CHECKS = """
import re
import nerve_kernels as nk

generator = torch.Generator().manual_seed(0)
exact = torch.rand(3, 4, 5, generator=generator, dtype=torch.float64) + 0.1
permuted = exact.transpose(1, 2)
for sample in (exact, permuted):
    for requires_grad in (False, True):
        torch.library.opcheck(sharpen.overload, (sample.detach().requires_grad_(requires_grad), 1.5))
    assert torch.autograd.gradcheck(lambda p: sharpen(p, 1.5), sample.detach().requires_grad_())

looped = torch.stack([sharpen(one, 1.5) for one in exact.unsqueeze(1)])
assert torch.equal(torch.vmap(lambda one: sharpen(one, 1.5))(exact.unsqueeze(1)), looped)
assert torch.equal(torch.vmap(lambda one: sharpen(one, 1.5), in_dims=2)(exact.unsqueeze(1).movedim(0, 2)), looped)

single = exact.float()
assert torch.equal(sharpen(single, 2.0), in_the_log_domain(single, 2.0)), "the second backend is the better one"
assert torch.equal(sharpen(single, 2.0, "cpp"), in_the_log_domain(single, 2.0))
assert torch.equal(sharpen(single, 2.0, "eager"), eager(single, 2.0))
assert torch.equal(sharpen(exact, 2.0), eager(exact, 2.0)), "and gives way where it cannot run"
for backend, reason in (
    ("cpp", r"sharpen: backend='cpp' cannot run: it takes float32, got torch.float64\\. .* one of: eager$"),
    ("triton", "there is no triton implementation of sharpen"),
):
    try:
        sharpen(exact, 2.0, backend)
    except nk.BackendUnavailableError as error:
        assert re.search(reason, str(error)), error
    else:
        raise AssertionError(f"{backend} ran")

compiled = torch.compile(lambda p: sharpen(p, 1.5).square().sum(), fullgraph=True, backend="aot_eager")
gradients = []
for function in (compiled, lambda p: sharpen(p, 1.5).square().sum()):
    leaf = exact.clone().requires_grad_()
    function(leaf).backward()
    gradients.append(leaf.grad)
assert torch.equal(*gradients)
print("all checked")
"""


def test_the_operator_of_the_page():
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len([line for line in code.splitlines() if line.strip()]) <= MAX_LINES
    finished = subprocess.run([sys.executable, "-c", code + CHECKS], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.endswith("all checked\n")
