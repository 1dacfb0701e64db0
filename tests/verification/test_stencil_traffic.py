"""The count of what a step over pixels moves: it follows the compiled kernel, and notices a cache that is too small."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter of Triton compiles nothing", allow_module_level=True)

from verification import stencil_traffic
from verification.sparse_launches import StencilSize
from verification.walk_ptx import compile_ptx, interpret

from nerve_kernels._triton.walk.rows import padded_rows
from nerve_kernels._triton.walk.stencil_step import StencilStep

SMALL = StencilSize(grid=(8, 24), dilations=(1, 5), labels=5)


def test_sectors_of_p_are_those_of_the_compiled_kernel():
    seeds = torch.ones(1, 8 * 24, 5)
    affinity = SMALL.affinity(torch.float32)
    affinity = affinity._replace(values=torch.ones(1, 16, 8 * 24).transpose(1, 2))
    p, out = padded_rows(seeds.shape, seeds.device), padded_rows(seeds.shape, seeds.device)
    for each in (p, out):
        each.untyped_storage().fill_(0)
    ((launch, _),) = StencilStep.of(affinity).plan(p, seeds, out, 0.2, 0.8).parts
    _, memory = interpret(launch, compile_ptx(launch))
    found = next(tensor for tensor in memory.tensors if tensor.name == "p").traffic.program_sectors
    rows = [stencil_traffic.neighbours_of(SMALL, y, x) for y, x in stencil_traffic.tiles_of(launch)]
    assert found == sum(stencil_traffic.sectors(tokens * 32, 32) for tokens in rows)
    assert len(rows) == launch.programs >= 4


def test_p_is_read_once_where_the_cache_holds_it_and_again_where_not(monkeypatch):
    tokens = 8 * 24
    once = stencil_traffic.count(SMALL, torch.float32)
    assert once.least == tokens * (16 * 4 + 3 * 20)
    assert once.moved == tokens * (16 * 4 + 20 + 2 * 32)  # rows of P are filled up from 20 bytes to 32
    monkeypatch.setattr(stencil_traffic, "CACHE_BYTES", 2048)
    assert stencil_traffic.count(SMALL, torch.float32).moved > 1.2 * once.moved
