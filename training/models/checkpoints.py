"""Resumable training state: written beside the old file, then put in its place in one move."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` so that a crash at any moment leaves the old or the new file, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(dict(state), partial)
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The state that `save_state` wrote, or None before the first."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


class Clock:
    """Training time against a budget, over as many runs as it takes."""

    def __init__(self, budget_minutes: float, spent_seconds: float = 0.0) -> None:
        self.budget = budget_minutes * 60
        self._before = spent_seconds
        self._start = time.monotonic()

    @property
    def spent(self) -> float:
        return self._before + time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """0 at the start, 1 when the budget is spent."""
        return min(1.0, self.spent / self.budget)


class AveragedWeights:
    """An exponential moving average of a model's weights: what is evaluated and shipped."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        # Early on the average must forget the random start quickly.
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                self.values[name].lerp_(value.detach(), 1 - decay)
            else:
                self.values[name].copy_(value)


def log_line(path: Path, **values: float | int | str) -> None:
    """Append one JSON line to a log, and show it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
    line = json.dumps(rounded)
    with path.open("a") as log:
        log.write(line + "\n")
    print(line, flush=True)
