"""A run on Ray Data: list, read, segment, write, and go on where an earlier run was killed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig
from ray.data.exceptions import ExecutionTimeoutError

from .destination import Destination
from .packed import Entry
from .progress import Observer
from .reading import BATCH, ImageList, read_images
from .segmenter import Segmenter

STALL_TIMEOUT = 900.0
ROWS_PER_FILE = 500
# A block of decoded images that goes from task to task; larger ones would keep actors waiting at the end.
BLOCK_BYTES = 16 * 2**20
# Logical CPUs are what Ray Data shares out, and it waits for ever where an operator's smallest share is not left: that
# of a task that lists, reads or writes, which mostly wait, and that of the filter of finished ids, which Ray sets.
TASK_CPUS = 0.25
FILTER_CPUS = 1.0
MIN_CPUS = 2
CHECKPOINT_MEMORY = 64 * 2**20


class StalledError(RuntimeError):
    """Nothing has moved for longer than was allowed."""


@dataclass(frozen=True)
class Resources:
    """What a run computes on.

    Args:
        actors: how many pipelines; None: one for each GPU of the cluster, or for each `threads` CPUs.
        threads: of torch for each actor.
        gpus_per_actor: 0: on the CPU. Fractions share a GPU.
        address: of a Ray cluster, such as ``"auto"``; None: this machine, on which Ray is started.
    """

    actors: int | None = None
    threads: int = 1
    gpus_per_actor: float = 0.0
    address: str | None = None


@dataclass(frozen=True)
class Run:
    """What is asked for.

    Args:
        entries: the images, such as :func:`~.sources.find_sources` gives them.
        out: the destination.
        segmenter: keyword arguments of the segmenter.
        description: what rows depend on; a destination that was made with another is refused.
        rows_per_file: of the Parquet files; what is lost by a kill is less than so many rows a task.
        stall_timeout: seconds without any movement after which the run is given up.
        decode: whether the segmenter wants images; else it gets the entries.
    """

    entries: Iterable[Entry]
    out: str
    segmenter: Mapping[str, Any]
    description: Mapping[str, Any]
    resources: Resources = field(default_factory=Resources)
    rows_per_file: int = ROWS_PER_FILE
    stall_timeout: float = STALL_TIMEOUT
    decode: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a run has done.

    Args:
        wanted: images in the sources.
        resumed: how many of them earlier runs had finished.
        seconds: of this run from the first task on, models' loading included.
    """

    wanted: int
    resumed: int
    seconds: float


def run(
    wanted: Run,
    *,
    kind: type = Segmenter,
    on_start: Callable[[int, int], None] | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Outcome:
    """Segment every image that the destination does not hold yet.

    Args:
        wanted: what is asked for.
        kind: the class of the actors.
        on_start: called with the number of images and of those that are finished already.
        on_rows: called again and again, from another thread, with the number of rows that this run has made.

    Returns:
        What was done.

    Raises:
        ValueError: sources or a destination that cannot be used.
        StalledError: nothing moves any more.
        ray.exceptions.RayError: an actor cannot start, or a file cannot be written.
    """
    destination = Destination(wanted.out)
    destination.open(dict(wanted.description))
    # As many as a file holds, so that a few images are shared out too and millions do not make millions of tasks.
    count = destination.write_inputs(wanted.entries, rows_per_group=min(wanted.rows_per_file, 64))
    resumed = destination.finished()
    if on_start is not None:
        on_start(count, resumed)
    start_ray(wanted.resources)
    started = time.monotonic()
    try:
        _execute(wanted, destination, kind, on_rows)
    except ExecutionTimeoutError:
        raise StalledError(
            f"nothing has moved for {wanted.stall_timeout:g} s; see whether the machines have the CPUs and GPUs "
            "that are asked for, or allow more with --stall-timeout; the same command goes on where this one was"
        ) from None
    finally:
        ray.shutdown()
    return Outcome(count, resumed, time.monotonic() - started)


def start_ray(resources: Resources) -> None:
    """Connect to the cluster, or start Ray on this machine, quietly."""
    # Workers are started when there is something for them to do, not as many as there are CPUs.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_enable_worker_prestart", "0")
    # By default workers yield to every other program; on a machine that has others they would hardly run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it tells of its own workings as errors
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if resources.address is not None:
        ray.init(address=resources.address, **quiet)
    else:
        cpus = max(MIN_CPUS, os.cpu_count() or 1)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what ends a run is said once, by whoever catches it


def count_actors(resources: Resources, cluster: Mapping[str, float]) -> tuple[int, float]:
    """How many actors, and the logical CPUs that each takes: together half of what one task of each kind leaves.

    Example:
        >>> count_actors(Resources(), {"CPU": 2.0}), count_actors(Resources(gpus_per_actor=0.5), {"CPU": 16, "GPU": 2})
        ((2, 0.0625), (4, 1.7812))
    """
    cpus = cluster.get("CPU", 1.0)
    if resources.actors is not None:
        actors = resources.actors
    elif resources.gpus_per_actor:
        actors = int(cluster.get("GPU", 0.0) / resources.gpus_per_actor)
    else:
        actors = int(cpus // resources.threads)
    actors = max(1, actors)
    left = cpus - 3 * TASK_CPUS - FILTER_CPUS
    return actors, max(0.01, round(left / 2 / actors, 4))


def _execute(wanted: Run, destination: Destination, kind: type, on_rows: Callable[[int], None] | None) -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = wanted.stall_timeout
    Observer.operator, Observer.on_rows = kind.__name__, on_rows
    context.custom_execution_callback_classes = [Observer]
    checkpoint = CheckpointConfig(
        "id",
        destination.checkpoint,
        override_filesystem=destination.filesystem,
        delete_checkpoint_on_success=False,
    )
    # By default a filter of finished ids reserves 1 GiB, and more of them follow: a small machine would wait for ever.
    checkpoint.checkpoint_actor_memory_bytes = CHECKPOINT_MEMORY
    checkpoint.checkpoint_actor_pool_max_size = 1
    context.checkpoint_config = checkpoint
    cluster = ray.cluster_resources()
    actors, cpus = count_actors(wanted.resources, cluster)
    # Each task that runs at the same time is a process of its own, which takes seconds to start.
    readers = max(1, int(cluster.get("CPU", 1.0)) // 2)
    images = ImageList(destination.filesystem, destination.inputs)
    arguments = {**wanted.segmenter, "weights": destination.weights()}
    data = ray.data.read_datasource(images, override_num_blocks=len(images), num_cpus=TASK_CPUS, concurrency=1)
    if wanted.decode:
        data = data.map_batches(
            read_images, batch_size=None, batch_format="pyarrow", num_cpus=TASK_CPUS, concurrency=readers
        )
    data.map_batches(
        kind,
        fn_constructor_kwargs=arguments,
        batch_size=max(BATCH, 2 * wanted.segmenter.get("batch", 1)),  # of which some are of one size
        compute=ActorPoolStrategy(size=actors),
        num_cpus=cpus,
        num_gpus=wanted.resources.gpus_per_actor,
    ).write_parquet(
        destination.rows,
        filesystem=destination.filesystem,
        filename_provider=destination.take_over(),
        min_rows_per_file=wanted.rows_per_file,
        ray_remote_args={"num_cpus": TASK_CPUS},
        concurrency=max(1, readers // 4),
    )
