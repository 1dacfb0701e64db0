"""The command ``nerve-bulk query``: new words over the features that ``nerve-bulk --features`` stored."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nerve_kernels._operators.checks import refusal
from nerve_kernels.bulk.destination import Destination
from nerve_kernels.bulk.features import Querier, stored_features
from nerve_kernels.bulk.runner import ROWS_PER_FILE, STALL_TIMEOUT, Resources, Run
from nerve_kernels.evaluation.variants import parse_setting
from nerve_kernels.segmentation.config import (
    AFFINITY_FIELDS,
    CLIP_FIELDS,
    DIFFUSION_FIELDS,
    NerveConfig,
    differing_field,
)

from .bulk_running import (
    DEVICE_HELP,
    Actors,
    Address,
    GpusPerActor,
    Out,
    Quiet,
    RowsPerFile,
    StallTimeout,
    Threads,
    execute,
    given_only,
)
from .options import MODELS, as_usage_error, check_words, option, read_background, read_if_given

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.command()
def query(
    features: Annotated[str, typer.Argument(metavar="FEATURES", help="The destination of nerve-bulk --features.")],
    labels: Annotated[str, typer.Option("--labels", "-l", help='What to look for: "cat, dog|puppy, grass".')],
    out: Out,
    rows_per_file: RowsPerFile = ROWS_PER_FILE,
    quiet: Quiet = False,
    actors: Actors = None,
    threads: Threads = 1,
    gpus_per_actor: GpusPerActor = 0.0,
    address: Address = None,
    stall_timeout: StallTimeout = STALL_TIMEOUT,
    device: Annotated[str | None, option(panel=MODELS, help=DEVICE_HELP)] = None,
    settings: Annotated[
        list[str] | None, option("--set", help="A setting of walk, seeds or words: field=value; may be repeated.")
    ] = None,
    background: Annotated[str | None, option(help='Words that are background: "sky, wall", or "default".')] = None,
) -> None:
    """Segment stored features by new words, into the rows that nerve-bulk writes, for the cost of words and walk.

    Models and settings are those of the features. Killed at any moment, the same command goes on; exit codes are
    those of nerve-bulk.
    """
    given = dict(as_usage_error(parse_setting, text) for text in settings or ())
    if background is not None:
        given["background_words"] = read_if_given(background, read_background)
    stored = as_usage_error(Destination, features)
    made_with = as_usage_error(_description, stored)
    encoded = as_usage_error(NerveConfig.from_dict, made_with["config"])
    in_force = as_usage_error(lambda: encoded.replace(**given))
    fixed = CLIP_FIELDS + (DIFFUSION_FIELDS + AFFINITY_FIELDS if in_force.walk else ())
    name = differing_field(encoded, in_force, fixed)
    if name is not None:
        expected = f"{getattr(encoded, name)!r}, which the features were made with"
        raise typer.BadParameter(refusal(f"--set {name}", expected, repr(getattr(in_force, name))))
    check_words(labels, in_force)
    models: dict[str, Any] = given_only({one: made_with["models"].get(one) for one in ("preset", "clip", "dtype")})
    arguments = {
        "labels": labels,
        "features": stored.place,
        "config": in_force,
        "threads": threads,
        "device": device or ("cuda" if gpus_per_actor else "cpu"),
    }
    wanted = Run(
        stored_features(stored),
        out,
        models | arguments,
        {"labels": labels, "set": {one: str(value) for one, value in given.items()}, "features": made_with},
        Resources(actors, threads, gpus_per_actor, address),
        rows_per_file,
        stall_timeout,
        decode=False,
    )
    execute(wanted, Querier, quiet)


def _description(stored: Destination) -> dict[str, Any]:
    try:
        found = stored.description()
    except OSError:
        found = None
    if not isinstance(found, dict) or not found.get("features") or "labels" in found:
        raise ValueError(refusal("FEATURES", "the destination of nerve-bulk --features", stored.place))
    return found
