"""How far a run is, seen from Ray Data's own loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback


class Observer(ExecutionCallback):
    """What Ray Data calls in its loop, made by Ray itself.

    The class is sent to workers by name, and so it is the class that holds what it tells: one run at a time.
    """

    operator = ""
    on_rows: Callable[[int], None] | None = None

    def on_execution_step(self, executor: Any) -> None:
        """Tell how many rows the operator has given, whose name has ``operator`` in it."""
        if Observer.on_rows is not None:
            metrics = [one.metrics for one in executor._topology or () if Observer.operator in one.name]
            Observer.on_rows(sum(one.rows_task_outputs_generated for one in metrics))
