"""Where the training reads and writes: everything disposable lies under `training/runs/`."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RUNS = Path(__file__).resolve().parent / "runs"
ARCHIVES = RUNS / "archives"
SPRITES = RUNS / "sprites.npz"
CONTACT_SHEETS = RUNS / "contact_sheets"
CLIP_RUN = RUNS / "clip"
AUTOENCODER_RUN = RUNS / "autoencoder"
UNET_RUN = RUNS / "unet"

PACKAGE = REPOSITORY / "src" / "nerve_kernels"
EMBEDDED = PACKAGE / "segmentation" / "embedded"
EMBEDDED_SCENES = PACKAGE / "evaluation" / "embedded_scenes"
