"""Digests of what every C++ operator computes, per instruction set and dtype, so that no change to it goes unnoticed.

    python -m tests.ops.output_digests                  # compare with output_digests.json
    python -m tests.ops.output_digests --against SRC    # largest difference, in ulp, from another checkout's build
    python -m tests.ops.output_digests --write          # record anew

The compiler decides where multiplications and additions are fused, so a record holds for one compiler.
Every input is made of random integers: unlike torch.randn, they do not depend on the processor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nerve_kernels
from nerve_kernels import _native

RECORD = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parents[2]
CAPABILITIES = {  # values of ATEN_CPU_CAPABILITY, which chooses the instruction set, and what a processor needs for it
    "default": set[str](),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx2", "fma", "avx512f", "avx512vl", "avx512dq", "avx512bw", "avx512_bf16"},
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
GRIDS = {  # grid, window, cells: uneven cells, whole bands of cells, one row, a window over the whole grid
    "odd": ((7, 11), (3, 5), (3, 4)),
    "bands": ((19, 18), (7, 7), (9, 8)),
    "row": ((1, 70), (1, 9), (1, 8)),
    "all": ((6, 9), (11, 17), (6, 9)),
}
LABELS = (1, 8, 21, 33, 45, 64, 107)  # padded to every width of a register tile

Outputs = dict[str, list[Tensor]]


class Numbers:
    """Seeded numbers between 0 and 1, or around 0, that are the same on every machine."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def positive(self, *shape: int, dtype: torch.dtype = torch.float64, count: int = 1) -> Tensor:
        """``count`` of them add up to 1 at most."""
        return (torch.randint(1, 2**20, shape, generator=self.generator).double() / (count * 2**20)).to(dtype)

    def centred(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return (4 * self.positive(*shape) - 2).to(dtype)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def window_outputs(add: Callable[[str, Tensor], None]) -> None:
    """The product and its gradient: every width, shared values, values and labels of different dtypes."""
    ops = torch.ops.nerve_kernels
    for seed, (grid, window, _) in enumerate(GRIDS.values()):
        tokens, size = grid[0] * grid[1], window[0] * window[1]
        for labels in LABELS:
            numbers = Numbers(seed)
            for dtype in DTYPES:
                values = numbers.positive(2, tokens, size, dtype=dtype, count=size)
                p = numbers.centred(2, tokens, labels, dtype=dtype)
                add(f"window_product {short(dtype)}", ops._window_product_cpp(values, p, grid, window))
                add(f"window_product {short(dtype)}", ops._window_product_cpp(values[:1], p, grid, window))
                mixed = ops._window_product_cpp(values, p.float(), grid, window)
                add(f"window_product {short(dtype)}, labels float32", mixed)
                left = numbers.centred(2, tokens, labels, dtype=dtype)
                add(f"window_gradient {short(dtype)}", ops._window_gradient_cpp(left, p, grid, window))


def attention_outputs(add: Callable[[str, Tensor], None]) -> None:
    """Of q and k, and of maps: remainders of every tile, strides, every dtype of the sums."""
    ops = torch.ops.nerve_kernels
    for seed, (grid, window, cells) in enumerate(GRIDS.values()):
        numbers, tokens = Numbers(seed), grid[0] * grid[1]
        for dtype in DTYPES:
            for channels in (5, 40):
                name, scale = short(dtype), 2 * channels**-0.5
                q = numbers.centred(2, tokens, 3, channels, dtype=dtype).transpose(1, 2)
                k = numbers.centred(2, 3, tokens, channels, dtype=dtype)
                longer = numbers.centred(2, 3, 301, channels, dtype=dtype)
                w = numbers.positive(2, 3, dtype=dtype, count=3)
                for keys in (k, longer):
                    entropy, lse = ops._attention_entropy_cpp(q, keys, scale)
                    add(f"attention_entropy {name}, entropy", entropy)
                    add(f"attention_entropy {name}, lse", lse)
                for sharpness, bfloat16 in ((1.0, False), (2.0, False), (1.0, True)):
                    found = ops._attention_statistics_cpp(q, k, grid, window, cells, scale, sharpness, bfloat16)
                    for part, result in zip(("entropy", "lse", "local", "pooled", "cell_lse"), found, strict=True):
                        add(f"attention_statistics {name}, {part}", result)
                gradient_outputs(add, Numbers(100 + seed), q, k, (grid, window, cells), scale)
                for sums in (torch.float32, torch.float64):
                    known = numbers.positive(2, 3, tokens, dtype=sums) + 8
                    kind = f"{name}, sums {short(sums)}"
                    add(f"attention_marginal {kind}", ops._attention_marginal_cpp(q, longer, known, scale))
                    add(f"fuse_attention {kind}", ops._fuse_attention_cpp(q, longer, w, known, scale))
                    for normalize in (False, True):
                        local = ops._local_affinity_cpp(q, k, w, known, grid, window, scale, normalize)
                        add(f"local_affinity {kind}", local)
                    add(f"global_affinity {kind}", ops._global_affinity_cpp(q, k, w, known, grid, cells, scale))
                maps = numbers.positive(2, 5, tokens, 77, dtype=dtype, count=77)
                maps[:, :, :, ::9] = 0
                weights = numbers.positive(2, 5, dtype=dtype, count=5)
                add(f"attention_map_entropy {name}", ops._attention_map_entropy_cpp(maps))
                add(f"fuse_attention_maps {name}", ops._fuse_attention_maps_cpp(maps, weights, False))
                add(f"fuse_attention_maps {name}", ops._fuse_attention_maps_cpp(maps.transpose(2, 3), weights, False))


def gradient_outputs(
    add: Callable[[str, Tensor], None], numbers: Numbers, q: Tensor, k: Tensor, sizes: tuple[Any, ...], scale: float
) -> None:
    """Of q and k: with and without cells, windows and what is sharpened."""
    ops, name = torch.ops.nerve_kernels, short(q.dtype)
    sums = torch.float64 if q.dtype == torch.float64 else torch.float32
    grid, window, cells = sizes
    rows = q.shape[:3]
    lse, a, b, c = (numbers.positive(*rows, dtype=sums) + shift for shift in (4, 0, -0.5, 0))
    local = numbers.centred(*rows, window[0] * window[1], dtype=q.dtype)
    pooled = numbers.centred(*rows, cells[0] * cells[1], dtype=q.dtype)
    for kind, given in {
        "terms": (lse, a, b, None, None, None, None),
        "cells": (lse, None, None, None, None, None, pooled[:, :1].expand_as(pooled)),
        "all": (lse, a, b, None, None, local, pooled),
        "sharp": (lse, a, b, lse, c, local, pooled),
    }.items():
        sharpness = 2.0 if kind == "sharp" else 1.0
        for result in ops._attention_gradient_cpp(q, k, *given, grid, window, cells, scale, sharpness):
            add(f"attention_gradient {name}, {kind}", result)
    w, grad = numbers.positive(*rows[:2], dtype=q.dtype), local[:, 0].to(sums)
    for normalize in (False, True):
        for result in ops._local_gradient_cpp(grad, q, k, w, lse, grid, window, scale, normalize):
            add(f"local_gradient {name}", result)


def walk_outputs(add: Callable[[str, Tensor], None]) -> None:
    """Every kind of S, in every dtype of the seeds and of the parts that the walk treats differently."""
    run = torch.ops.nerve_kernels._random_walk_cpp
    pairs = [(dtype, dtype) for dtype in DTYPES]
    pairs += [(torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.float64, torch.bfloat16)]
    for seed, (grid, window, cells) in enumerate(GRIDS.values()):
        tokens, size, rank = grid[0] * grid[1], window[0] * window[1], cells[0] * cells[1]
        for labels in LABELS:
            numbers = Numbers(seed)
            for seeds_dtype, dtype in pairs:
                seeds = numbers.positive(2, tokens, labels, dtype=seeds_dtype)
                start = numbers.positive(2, tokens, labels, dtype=seeds_dtype)
                values = numbers.positive(2, tokens, size, dtype=dtype, count=size)
                u = numbers.positive(2, tokens, rank, dtype=dtype, count=rank)
                v = numbers.positive(2, tokens, rank, dtype=dtype, count=tokens)
                dense = numbers.positive(2, tokens, tokens, dtype=dtype, count=tokens)
                kinds: dict[str, tuple[Tensor | None, ...]] = {
                    "local": (values, None, None, None),
                    "global": (None, u, None, None),
                    "mixed": (values, u, None, None),
                    "shared": (values[:1], u[:1], None, None),
                    "factors": (values, u, v, None),
                    "adjoint": (values, None, v, None),
                    "dense": (None, None, None, dense),
                    "dense transposed": (None, None, None, dense.transpose(1, 2)),
                }
                for kind, parts in kinds.items():
                    name = f"random_walk {kind} {short(dtype)}, seeds {short(seeds_dtype)}"
                    add(name, run(seeds, start, *parts, None, None, grid, window, cells, 0.4, 0.85, 2, kind == "mixed"))


@torch.no_grad()
def compute() -> Outputs:
    """Outputs by the name of what was computed, on the instruction set of this process."""
    if not _native.extension_loaded():
        raise RuntimeError(f"no C++ operators: {_native.load_error()}")
    outputs: Outputs = {}

    def add(name: str, output: Tensor) -> None:
        outputs.setdefault(name, []).append(output)

    window_outputs(add)
    attention_outputs(add)
    walk_outputs(add)
    return outputs


def digest(outputs: list[Tensor]) -> str:
    """Of the bytes of all outputs in order."""
    total = hashlib.sha256()
    for output in outputs:
        total.update(output.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def compiler() -> str:
    """What compiled the extension, as it says itself, or nothing where it does not."""
    path = _native.extension_path(Path(nerve_kernels.__file__).parent)
    found = re.search(rb"(GCC: \([^)\0]*\) [\d.]+|clang version [\d.]+)", path.read_bytes() if path else b"")
    return found[0].decode() if found else ""


def supported() -> list[str]:
    """The instruction sets that this processor has."""
    cpuinfo = Path("/proc/cpuinfo")
    features = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return [name for name, needed in CAPABILITIES.items() if needed <= features]


def in_process(capability: str, source: Path = ROOT / "src") -> Outputs:
    """``compute()`` in a process of its own: the instruction set is chosen once for a process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outputs.pt"
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": str(source)}
        command = [sys.executable, "-m", "tests.ops.output_digests", "--dump", str(file)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        loaded: Outputs = torch.load(file)
        return loaded


def ulps(one: Tensor, other: Tensor) -> int:
    """The largest distance in representable numbers; 0 where both are not a number."""
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[one.element_size()]

    def ordered(numbers: Tensor) -> Tensor:
        bits = numbers.contiguous().view(integer).to(torch.int64)
        return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)

    distances = (ordered(one) - ordered(other)).abs()[~(one.isnan() & other.isnan())]
    return int(distances.max()) if distances.numel() else 0


def differences(recorded: dict[str, str], outputs: Outputs) -> Iterator[str]:
    """The names whose digest is not the recorded one, or that only one of the two has."""
    digests = {name: digest(tensors) for name, tensors in outputs.items()}
    return (name for name in sorted(recorded.keys() | digests.keys()) if recorded.get(name) != digests.get(name))


def main() -> int:
    """Compare, or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record the digests of this build")
    parser.add_argument("--against", type=Path, metavar="SRC", help="the src/ of a checkout that is built in place")
    parser.add_argument("--dump", type=Path, help="store the outputs of this process")
    arguments = parser.parse_args()
    if arguments.dump:
        torch.save(compute(), arguments.dump)
        return 0
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    changed = 0
    for capability in supported():
        outputs = in_process(capability)
        if arguments.write:
            record |= {"compiler": compiler(), capability: {name: digest(o) for name, o in outputs.items()}}
            continue
        names = list(differences(record.get(capability, {}), outputs))
        if arguments.against:
            others = in_process(capability, arguments.against.resolve())
            names = [name for name in outputs if digest(outputs[name]) != digest(others[name])]
            for name in names:
                distance = max(ulps(one, other) for one, other in zip(outputs[name], others[name], strict=True))
                print(f"{capability}: {name}: {distance} ulp")
        else:
            for name in names:
                print(f"{capability}: {name}: not as recorded")
        print(f"{capability}: {len(outputs) - len(names)} of {len(outputs)} outputs are the same")
        changed += len(names)
    if arguments.write:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
