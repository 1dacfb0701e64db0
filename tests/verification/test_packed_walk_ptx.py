"""The walk on a packed affinity as compiled for sm_80, every launch interpreted on the CPU: races, bounds, results."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter of Triton compiles nothing", allow_module_level=True)

from tests.triton.walk_problems import Problem
from verification import walk_ptx

from nerve_kernels._triton.launch import Launch
from nerve_kernels._triton.walk import random_walk

SMALL = {"grid": (8, 16), "window": (3, 5), "cells": (2, 8), "steps": 3}


@pytest.fixture
def faults(monkeypatch):
    """What the interpreter finds in any launch; every ``Launch`` is interpreted."""
    found: list[str] = []

    def run(launch, mutate=lambda text: text):
        compiled = walk_ptx.compile_ptx(launch)
        report, _ = walk_ptx.interpret(launch, dataclasses.replace(compiled, text=mutate(compiled.text)))
        assert not [opcode for opcode in report.warp_instructions if opcode.startswith(("atom", "red"))]
        found.extend(fault.kind for fault in report.faults)

    def prepared(launch, *names):
        return lambda *tensors: run(
            dataclasses.replace(launch, arguments=launch.arguments | dict(zip(names, tensors, strict=True)))
        )

    monkeypatch.setattr(Launch, "run", run)
    monkeypatch.setattr(Launch, "prepared", prepared)
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-7), ("float16", 3e-7), ("bfloat16", 1e-5)])
def test_the_compiled_walk(dtype, tolerance, faults):
    """Against the stored weights; bfloat16 keeps 16 bits of P."""
    problem = Problem(**SMALL, dtype=getattr(torch, dtype))
    assert walk_ptx.relative_error(random_walk.run(*problem.arguments()), problem.expected()) < tolerance
    assert faults == []


def test_states_that_are_not_exchanged_are_a_race(faults, monkeypatch):
    """The step that writes the state it reads: programs read their neighbours' halos."""
    plan = random_walk.PackedStep.plan
    monkeypatch.setattr(
        random_walk.PackedStep, "plan", lambda self, x, restart, x_out, *a, **k: plan(self, x, restart, x, *a, **k)
    )
    original = Launch.prepared
    monkeypatch.setattr(Launch, "prepared", lambda self, *names: lambda x, x_out: original(self, "x", "x_out")(x, x))
    problem = Problem(**SMALL)
    random_walk.run(*problem.arguments())
    assert "race" in faults
