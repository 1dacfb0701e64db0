"""Host time of a step of the walk: ``python -m verification.launch_time``, without a GPU.

Triton's own driver and launcher run, on a libcuda made here whose calls do nothing: what is timed is planning and the
binding of arguments, for a step that is planned and bound anew each time and for one that was prepared.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

# what Triton looks up; calls that ask for a number get one that an H100 would give
STUB = """
#include <string.h>
typedef int R;
#define DOES_NOTHING(name) R name() { return 0; }
R cuDriverGetVersion(int *v) { *v = 13000; return 0; }
R cuDeviceGet(int *d, int i) { *d = i; return 0; }
R cuDeviceGetCount(int *n) { *n = 1; return 0; }
R cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 9 : a == 76 ? 0 : 232448; return 0; }
R cuCtxGetCurrent(void **c) { static int context; *c = &context; return 0; }
R cuDevicePrimaryCtxRetain(void **c, int d) { static int context; *c = &context; return 0; }
R cuModuleLoadData(void **m, const void *i) { static int module; *m = &module; return 0; }
R cuModuleGetFunction(void **f, void *m, const char *n) { static int function; *f = &function; return 0; }
R cuFuncGetAttribute(int *v, int a, void *f) { *v = a == 0 ? 1024 : 0; return 0; }
R cuPointerGetAttribute(void *v, int a, unsigned long long p) { *(unsigned long long *)v = p; return 0; }
R cuGetErrorString(int e, const char **s) { *s = "stub"; return 0; }
DOES_NOTHING(cuInit) DOES_NOTHING(cuCtxSetCurrent) DOES_NOTHING(cuFuncSetAttribute) DOES_NOTHING(cuModuleUnload)
DOES_NOTHING(cuFuncSetCacheConfig) DOES_NOTHING(cuLaunchKernel) DOES_NOTHING(cuLaunchKernelEx)
DOES_NOTHING(cuOccupancyMaxActiveClusters) DOES_NOTHING(cuTensorMapEncodeTiled) DOES_NOTHING(cuTensorMapEncodeIm2col)
DOES_NOTHING(cuCtxGetDevice) DOES_NOTHING(cuGetErrorName) DOES_NOTHING(cuCtxSetLimit) DOES_NOTHING(cuCtxGetLimit)
DOES_NOTHING(cuPointerGetAttributes)
"""
ROUNDS, CALLS = 15, 200


def microseconds(call: Callable[[], object]) -> float:
    """The fastest of some rounds, a call."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - start) / CALLS * 1e6)
    return min(times)


def measure() -> None:
    """Print the table; libcuda is the stub's here."""
    import torch
    import triton
    from triton.backends.nvidia.driver import CudaDriver
    from verification.walk_launches import WalkSize

    from nerve_kernels._triton.walk.random_walk import packed_operator

    with mock.patch.object(torch.cuda, "current_device", return_value=0):
        driver = CudaDriver()
        driver.get_current_device = lambda: 0
        driver.get_current_stream = lambda device: 0
        driver.get_device_capability = lambda device: (9, 0)
        triton.runtime.driver.set_active(driver)
        size = WalkSize()
        seeds = torch.rand(1, 4096, size.labels)
        values, u = torch.rand(1, 4096, 49), torch.rand(1, 4096, 256)
        affinity = size.affinity(torch.float32)._replace(values=values, u=u)
        operator = size.operator(torch.float32)
        p, out = torch.rand_like(seeds), torch.rand_like(seeds)
        pooled, pooled_out = torch.rand(2, 1, 256, size.labels).unbind()
        plan = operator.step.plan(p, pooled, seeds, out, pooled_out)
        step = plan.prepared("p", "pooled", "out", "pooled_out")
        packed = packed_operator(seeds, affinity, 0.8, 20)
        assert packed is not None
        states = torch.zeros(2, *packed.step.state_size()).unbind()
        restart = torch.empty(packed.step.restart_size())
        packed_plan = packed.step.plan(states[0], restart, states[1], out)
        packed_step = packed_plan.prepared("x", "x_out")
        print(f"Triton {triton.__version__}, torch {torch.__version__}, microseconds of host time")
        for name, call in {
            "a step planned": lambda: operator.step.plan(p, pooled, seeds, out, pooled_out),
            "a step bound and launched": plan.run,
            "a prepared step": lambda: step(p, pooled, out, pooled_out),
            "a packed step planned": lambda: packed.step.plan(states[0], restart, states[1], out),
            "a packed step bound and launched": packed_plan.run,
            "a prepared packed step": lambda: packed_step(states[0], states[1]),
        }.items():
            print(f"{name:34} {microseconds(call):6.1f}")


def main() -> int:
    """Build the stub, and measure in a process that finds it in the place of libcuda."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "stub.c", Path(folder) / "libcuda.so.1"
        source.write_text(STUB, encoding="utf-8")
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-w", source, "-o", library], check=True)
        environment = os.environ | {
            "LD_LIBRARY_PATH": folder,
            "TRITON_LIBCUDA_PATH": folder,
            "TRITON_CACHE_DIR": f"{folder}/cache",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", "from verification.launch_time import measure; measure()"]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
