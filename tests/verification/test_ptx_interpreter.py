"""The PTX interpreter: its instructions, and that it sees what is wrong with a kernel."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter of Triton compiles nothing", allow_module_level=True)

from verification import walk_ptx
from verification.ptx.arithmetic import from_bfloat16, to_bfloat16
from verification.ptx.machine import launch
from verification.ptx.memory import GlobalMemory
from verification.ptx.parser import PtxError, parse
from verification.walk_launches import WalkSize, step_launch

SMALL = walk_ptx.StepCase("fp32", grid=(4, 16), window=(3, 3), cells=(1, 4), labels=21)

HEADER = """
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0,
    .param .f32 kernel_param_1
)
{
    .reg .b32 %r<20>;
    .shared .align 16 .b8 tile[256];
    ld.param.b64 %rd1, [kernel_param_0];
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 2;
    cvt.u64.u32 %rd2, %r2;
    add.s64 %rd3, %rd1, %rd2;
"""


def run(body: str, scale: float = 0.0, threads: int = 64) -> tuple[np.ndarray, list[str]]:
    """The output of one program, (threads,) float32, and the kinds of its faults."""
    out = np.full(threads, np.nan, np.float32)
    memory = GlobalMemory()
    kernel = parse(HEADER + body + "    ret;\n}\n", "kernel")
    report = launch(kernel, [memory.add("out", out), scale], memory, programs=1, threads=threads, shared_bytes=0)
    return out, [fault.kind for fault in report.faults]


EXCHANGE = """
    cvt.rn.f32.u32 %r3, %r1;
    mov.b32 %r4, tile;
    add.s32 %r5, %r4, %r2;
    st.shared.b32 [%r5], %r3;
    BARRIER
    xor.b32 %r6, %r2, 252;
    add.s32 %r7, %r4, %r6;
    ld.shared.b32 %r8, [%r7];
    st.global.b32 [%rd3], %r8;
"""


def test_shared_memory_carries_values_between_warps():
    out, faults = run(EXCHANGE.replace("BARRIER", "bar.sync 0;"))
    assert out.tolist() == list(range(63, -1, -1))
    assert faults == []


def test_a_missing_barrier_is_a_race():
    _, faults = run(EXCHANGE.replace("BARRIER", ""))
    assert "race" in faults


def test_bounds_and_alignment():
    assert run("    st.global.b32 [%rd3+4], %r1;\n")[1] == ["out of bounds"]
    assert run("    st.global.b16 [%rd3+1], %r1;\n")[1][0] == "misaligned"
    assert run("    mov.b32 %r4, tile;\n    st.shared.b32 [%r4+256], %r1;\n")[1][-1] == "out of bounds"


def test_a_loop_and_lanes_that_diverge():
    """Thread t adds its number to 0 as often as its number says."""
    out, _ = run(
        """
    mov.b32 %r3, 0;
    mov.b32 %r4, 0;
$again:
    setp.ge.u32 %p1, %r4, %r1;
    @%p1 bra $done;
    add.s32 %r3, %r3, %r1;
    add.s32 %r4, %r4, 1;
    bra.uni $again;
$done:
    cvt.rn.f32.s32 %r5, %r3;
    st.global.b32 [%rd3], %r5;
"""
    )
    assert out.tolist() == [t * t for t in range(64)]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("bfe.s32 %r3, %r1, 1, 2", lambda t: [(0, 1, -2, -1)[t >> 1 & 3]][0]),
        ("bfe.u32 %r3, %r1, 1, 2", lambda t: t >> 1 & 3),
        ("prmt.b32 %r3, %r1, 0, 0x7701U", lambda t: t << 8),
        ("prmt.b32 %r3, 128, %r1, 0x8888", lambda t: -1),
        ("mul.hi.u32 %r3, %r1, 0x80000000", lambda t: t >> 1),
        ("div.s32 %r3, -7, 2", lambda t: -3),
        ("rem.s32 %r3, -7, 2", lambda t: -1),
        ("shr.s32 %r3, -8, 40", lambda t: -1),
        ("shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1", lambda t: t ^ 1),
        ("shfl.sync.idx.b32 %r3, %r1, 5, 31, -1", lambda t: t // 32 * 32 + 5),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_integers(operation, expected):
    out, _ = run(f"    {operation};\n    cvt.rn.f32.s32 %r4, %r3;\n    st.global.b32 [%rd3], %r4;\n")
    assert out.tolist() == [expected(t) for t in range(64)]


def test_bfloat16_rounds_as_torch_does():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.from_numpy(from_bfloat16(to_bfloat16(values.numpy()))), values.bfloat16().float())


def test_what_is_not_known_is_not_guessed():
    with pytest.raises(PtxError, match="unknown instruction vote"):
        run("    vote.sync.any.pred %p1, %p2, -1;\n")
    with pytest.raises(PtxError, match="read before it is written"):
        run("    add.s32 %r3, %r9, 1;\n")


def interpreted(case: walk_ptx.StepCase, mutate=lambda text: text, **changes):
    """Relative error of P, and the kinds of faults, with the PTX or the launch changed."""
    planned, expected, _ = case.planned()
    planned = dataclasses.replace(planned, arguments={**planned.arguments, **changes})
    compiled = walk_ptx.compile_ptx(planned)
    changed = dataclasses.replace(compiled, text=mutate(compiled.text))
    report, _ = walk_ptx.interpret(planned, changed)
    return walk_ptx.relative_error(planned.arguments["out"], expected), {fault.kind for fault in report.faults}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_compiled_step(precision):
    """bfloat16 on the CPU: Triton's own interpreter multiplies it wrongly."""
    error, faults = interpreted(dataclasses.replace(SMALL, precision=precision))
    assert error < walk_ptx.TOLERANCE[precision]
    assert faults == set()


def test_removed_barriers_are_found():
    _, faults = interpreted(SMALL, lambda text: text.replace("bar.sync \t0;", ""))
    assert "race" in faults


def test_a_copy_that_is_not_waited_for_is_found():
    error, _ = interpreted(SMALL, lambda text: text.replace("cp.async.wait_group", "cp.async.commit_group; //"))
    assert not error < 1


def test_buffers_that_are_not_swapped_are_a_race_between_programs():
    planned, _, _ = SMALL.planned()
    _, faults = interpreted(SMALL, p=planned.arguments["p"], out=planned.arguments["p"])
    assert faults == {"race"}


@pytest.mark.parametrize("kind", ["mixed", "dense"])
def test_a_grid_of_one_row_compiles(kind):
    """A size of 1 is a constant to Triton, not a number of the kernel's."""
    size = WalkSize(kind=kind, grid=(1, 16), window=(1, 3), cells=(1, 4), labels=1)
    assert walk_ptx.compile_ptx(step_launch(size, size.operator(torch.float32))).threads
