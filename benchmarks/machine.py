"""What a figure was made on: processor or GPU, threads, versions, date, load."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

import nerve_kernels as nk

DEFAULT_CACHE_BYTES = 32 * 2**20


def processor_name() -> str:
    """The processor as Linux names it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{names[0] if names else platform.processor()}{', AVX-512' if 'avx512f' in flags else ''}"


def device_name(device: str) -> str:
    """The processor, or the GPU."""
    return torch.cuda.get_device_name() if device == "cuda" else processor_name()


def version(package: str) -> str:
    """Of an installed package, or nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def cache_bytes(device: str) -> int:
    """The last cache before memory."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    found = [DEFAULT_CACHE_BYTES // 1024]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text.endswith("K"):
            found.append(int(text[:-1]))
    return 1024 * max(found)


STATE_SECONDS = 2.0
GPU_STATE = ("sm_mhz", "memory_mhz", "watts", "celsius")


def gpu_state(call: Callable[[], object]) -> dict[str, str]:
    """Clocks, power and temperature of the GPU while it does one call after the other; empty where nothing says so."""
    command = [
        "nvidia-smi",
        "--format=csv,noheader,nounits",
        "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu",
    ]
    command.append(f"--id=GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}")
    try:
        asked = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return dict.fromkeys(GPU_STATE, "")
    limit = time.monotonic() + STATE_SECONDS
    while asked.poll() is None and time.monotonic() < limit:
        call()
        torch.cuda.synchronize()
    asked.kill()
    found = [value.strip() for value in asked.communicate()[0].split(",")]
    return dict(zip(GPU_STATE, found, strict=True)) if len(found) == len(GPU_STATE) else dict.fromkeys(GPU_STATE, "")


def description(device: str) -> dict[str, str | int]:
    """The columns that say where a row comes from."""
    return {
        "device": device,
        "machine": device_name(device),
        "threads": torch.get_num_threads(),
        "load_5_minutes": f"{os.getloadavg()[1]:.1f}" if hasattr(os, "getloadavg") else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "nerve_kernels": nk.__version__,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }
