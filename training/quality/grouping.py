"""A look at the UNet's self-attention: which layers, at which timesteps, keep to one object.

Not a step of the build; `python -m training.quality.grouping` prints a table for the exported models.
For each layer and timestep: the share of attention that a token of an object gives to tokens of
the same object, and that share over the object's share of the image (1 means no preference).
"""

import itertools
import sys

import numpy as np
import torch
from training.paths import EMBEDDED

from nerve_kernels.evaluation import EmbeddedScenes
from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures

TIMESTEPS = (1, 50, 100, 200, 300, 500)


def token_labels(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The label at the middle of each token."""
    rows = (np.arange(grid[0]) * 2 + 1) * mask.shape[0] // (2 * grid[0])
    columns = (np.arange(grid[1]) * 2 + 1) * mask.shape[1] // (2 * grid[1])
    return mask[np.ix_(rows, columns)].ravel()


@torch.no_grad()
def grouping(scenes: int) -> dict[tuple[str, int], tuple[float, float]]:
    """(layer, timestep) -> (share, preference), heads averaged, over validation scenes."""
    features = DiffusionFeatures.from_pretrained(EMBEDDED / "diffusion", device="cpu")
    sums: dict[tuple[str, int], np.ndarray] = {}
    names = tuple(layer.name for layer in features.layers)
    for scene in itertools.islice(EmbeddedScenes("validation"), scenes):
        latent = features.encode(scene.image, short_side=128)
        generator = torch.Generator().manual_seed(0)
        for layer in features.capture(latent, timesteps=TIMESTEPS, layers=names, generator=generator):
            attention = torch.softmax(layer.q @ layer.k.transpose(-1, -2) * layer.q.shape[-1] ** -0.5, dim=-1)
            labels = torch.from_numpy(token_labels(scene.mask, layer.grid))
            same = labels[:, None] == labels[None, :]
            of_object = labels > 0
            share = (attention[0].mean(dim=0) * same).sum(dim=1)[of_object]
            area = same.float().mean(dim=1)[of_object]
            entry = sums.setdefault((layer.name, layer.timestep), np.zeros(3))
            entry += (share.sum().item(), (share / area).sum().item(), len(share))
    return {key: (entry[0] / entry[2], entry[1] / entry[2]) for key, entry in sums.items()}


def main() -> None:
    """Print the table; an optional argument is the number of scenes."""
    table = grouping(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    for name in dict.fromkeys(name for name, _ in table):
        cells = (f"{table[name, t][0]:.2f} ({table[name, t][1]:4.1f})" for t in TIMESTEPS)
        print(f"{name:55s}", *cells)


if __name__ == "__main__":
    main()
