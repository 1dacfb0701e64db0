"""`python -m training`: rebuild data and weights from nothing; `--only STEP` for one step."""

import argparse
import importlib

# Each step imports what it alone needs: the scenes want no torch, the models no cairosvg.
STEPS = {
    "artwork": "world.artwork:build_artwork",
    "scenes": "world.scenes:build_scenes",
    "clip": "models.train_clip:train_clip",
    "autoencoder": "models.train_autoencoder:train_autoencoder",
    "unet": "models.train_unet:train_unet",
    "export": "models.export:export_models",
}
MINUTES = {"clip": 102.0, "autoencoder": 12.0, "unet": 125.0}


def main() -> None:
    """Run the chosen steps, in order. A step that was cut short resumes where it stopped."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--only", choices=STEPS, action="append", help="repeatable; default: all")
    for step, minutes in MINUTES.items():
        parser.add_argument(f"--{step}-minutes", type=float, default=minutes)
    options = parser.parse_args()
    for step, home in STEPS.items():
        if not options.only or step in options.only:
            print(f"== {step}", flush=True)
            module, _, function = home.partition(":")
            budget = [getattr(options, f"{step}_minutes")] if step in MINUTES else []
            getattr(importlib.import_module(f"training.{module}"), function)(*budget)


if __name__ == "__main__":
    main()
