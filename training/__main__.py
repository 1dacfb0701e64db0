"""`python -m training`: rebuild data and weights from nothing; `--only STEP` for one step."""

import argparse
from collections.abc import Callable

STEPS = ("artwork", "scenes", "clip", "autoencoder", "unet", "export")


def main() -> None:
    """Run the chosen steps, in order. A step that was cut short resumes where it stopped."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--only", choices=STEPS, action="append", help="repeatable; default: all")
    parser.add_argument("--clip-minutes", type=float, default=102.0)
    parser.add_argument("--autoencoder-minutes", type=float, default=12.0)
    parser.add_argument("--unet-minutes", type=float, default=125.0)
    arguments = parser.parse_args()
    # Each step imports what it alone needs: the scenes want no torch, the models no cairosvg.
    actions: dict[str, Callable[[], None]] = {
        "artwork": _artwork,
        "scenes": _scenes,
        "clip": lambda: _clip(arguments.clip_minutes),
        "autoencoder": lambda: _autoencoder(arguments.autoencoder_minutes),
        "unet": lambda: _unet(arguments.unet_minutes),
        "export": _export,
    }
    for step in STEPS:
        if not arguments.only or step in arguments.only:
            print(f"== {step}", flush=True)
            actions[step]()


def _artwork() -> None:
    from training.artwork import build_artwork

    build_artwork()


def _scenes() -> None:
    from training.scenes import build_scenes

    build_scenes()


def _clip(minutes: float) -> None:
    from training.train_clip import train_clip

    train_clip(minutes)


def _autoencoder(minutes: float) -> None:
    from training.train_autoencoder import train_autoencoder

    train_autoencoder(minutes)


def _unet(minutes: float) -> None:
    from training.train_unet import train_unet

    train_unet(minutes)


def _export() -> None:
    from training.export import export_models

    export_models()


if __name__ == "__main__":
    main()
