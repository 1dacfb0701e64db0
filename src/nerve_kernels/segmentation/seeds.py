"""Which patch is which label, as CLIP sees it: the seeds G of the walk, and the walk that they start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

import nerve_kernels as nk
from nerve_kernels._operators.checks import check_choice, check_number, check_tensor, refusal, shape_of
from nerve_kernels.affinity import Affinity

from .config import NerveConfig
from .config_fields import SEED_MODES
from .text_image.prompts import LabelSet


@dataclass(frozen=True, eq=False)
class Seeds:
    """What the words alone say about an image.

    Args:
        labels: what was asked for.
        probabilities: (N, C) float32 of the labels at each place, row-major; rows sum to 1.
        grid: (H, W) of the places.
    """

    labels: LabelSet
    probabilities: torch.Tensor
    grid: tuple[int, int]


def label_similarity(patches: torch.Tensor, texts: torch.Tensor, label_of_name: Sequence[int]) -> torch.Tensor:
    """Cosine similarity of every patch with every label: the best of the label's names.

    sim[i, c] = max over the names n of label c of patches[i] · texts[n]

    Args:
        patches: (N, D) embeddings of unit length (averages of such over windows).
        texts: (names, D) embeddings of unit length.
        label_of_name: for each row of `texts` the index of its label, 0 .. C - 1.

    Returns:
        (N, C) float32.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> patches = torch.eye(2)
        >>> texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        >>> [[round(v, 1) for v in row] for row in label_similarity(patches, texts, [0, 1, 1]).tolist()]
        [[1.0, 0.6], [0.0, 1.0]]
    """
    if patches.ndim != 2 or texts.ndim != 2 or patches.shape[1] != texts.shape[1]:
        raise ValueError(
            refusal("patches, texts", "(N, D) and (names, D)", f"{shape_of(patches)} and {shape_of(texts)}")
        )
    if len(label_of_name) != texts.shape[0]:
        raise ValueError(
            refusal("label_of_name", f"one entry for each of the {texts.shape[0]} rows of texts", len(label_of_name))
        )
    by_name = patches.float() @ texts.float().T
    owners = torch.tensor(label_of_name, device=by_name.device).expand_as(by_name)
    count = max(label_of_name) + 1
    empty = by_name.new_full((by_name.shape[0], count), -torch.inf)
    return empty.scatter_reduce(1, owners, by_name, reduce="amax")


def seeds_from_similarity(similarity: torch.Tensor, *, mode: str, scale: float) -> torch.Tensor:
    """Label probabilities at each patch.

    ``cosine``:          G[i] = softmax_c(scale · sim[i, c])
    ``cross_attention``: a[i, c] = softmax_i(scale · sim[i, c]), G[i, c] = a[i, c] / Σ_c a[i, c]

    Args:
        similarity: (N, C) cosine similarities.
        mode: ``"cosine"`` or ``"cross_attention"`` (each label attends over the patches; the
            paper's wording).
        scale: > 0; CLIP's own is about 100.

    Returns:
        (N, C) float32; rows sum to 1.

    Raises:
        ValueError: an unknown mode, a scale that is not positive, a wrong shape.

    Source:
        NERVE, arXiv 2511.08248.

    Example:
        >>> similarity = torch.tensor([[0.3, 0.1], [0.2, 0.2]])
        >>> seeds = seeds_from_similarity(similarity, mode="cosine", scale=10.0)
        >>> [[round(p, 3) for p in row] for row in seeds.tolist()]
        [[0.881, 0.119], [0.5, 0.5]]
    """
    check_tensor("similarity", similarity, 2, "(N, C)")
    check_number("scale", scale, low=0, low_open=True, wanted="> 0")
    check_choice("mode", mode, SEED_MODES)
    logits = similarity.float() * scale
    if mode == "cross_attention":
        # In logarithms, so that a patch which no label attends to does not become 0 / 0.
        logits = logits.log_softmax(dim=0)
    return logits.softmax(dim=1)


def resize_seeds(seeds: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """Bring seeds from one token grid to another, bilinearly.

    Args:
        seeds: (H*W, C), rows sum to 1.
        grid: (H, W).
        new_grid: (H', W').

    Returns:
        (H'*W', C) float32; rows sum to 1.

    Raises:
        ValueError: the number of rows is not H * W.

    Example:
        >>> resize_seeds(torch.full((6, 2), 0.5), (2, 3), (5, 7)).shape
        torch.Size([35, 2])
    """
    if seeds.ndim != 2 or seeds.shape[0] != grid[0] * grid[1]:
        raise ValueError(
            refusal("seeds", f"({grid[0] * grid[1]}, C) for the grid {grid[0]}x{grid[1]}", shape_of(seeds))
        )
    if grid == new_grid:
        return seeds.float()
    planes = seeds.float().T.reshape(1, -1, *grid)
    resized = functional.interpolate(planes, size=new_grid, mode="bilinear", align_corners=False)
    rows = resized[0].flatten(1).T
    return rows / rows.sum(dim=1, keepdim=True)


def walk_seeds(seeds: torch.Tensor, affinity: Affinity, config: NerveConfig) -> torch.Tensor:
    """The walk over an affinity as a config says: so many steps, to a tolerance, or its limit."""
    if config.limit_walk:
        limit = nk.random_walk_limit(seeds, affinity, alpha=config.alpha, backend=config.backend)
        assert isinstance(limit, torch.Tensor)  # a tuple only where the bound is asked for
        return limit
    return nk.random_walk(
        seeds, affinity, alpha=config.alpha, steps=config.steps, tol=config.tolerance, backend=config.backend
    )
