"""PAMR and LPOSS+ at the size of an image: the operations of their public modules, and what one writes instead."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from benchmarks.operations.problems import Problem
from benchmarks.operations.registry import Call, Size
from benchmarks.peers.published import PAMR_DILATIONS
from torch import Tensor
from torch.nn import functional

ALPHA, TAU = 0.95, 0.01


def smooth_image(problem: Problem) -> Tensor:
    """Colours in [0, 1] that change from pixel to pixel by about as much as a photograph's do."""
    return functional.avg_pool2d(functional.pad(problem.image, (4,) * 4, mode="replicate"), 9, stride=1)


def masks(problem: Problem) -> Tensor:
    """The seeds as planes, (B, C, H, W)."""
    return problem.seeds.transpose(1, 2).unflatten(2, problem.size.grid).contiguous()


def as_tokens(planes: Tensor) -> Tensor:
    """(B, C, H, W) as (B, N, C)."""
    return planes.flatten(2).transpose(1, 2)


def _convolved(planes: Tensor, kernel: Tensor) -> Tensor:
    """Every plane under each of some 3 × 3 kernels at every dilation, (B, C, kernels · dilations, H, W)."""
    batch, count, height, width = planes.shape
    flat, found = planes.reshape(batch * count, 1, height, width), []
    for dilation in PAMR_DILATIONS:
        padded = functional.pad(flat, (dilation,) * 4, mode="replicate")
        found.append(functional.conv2d(padded, kernel, dilation=dilation))
    return torch.cat(found, 1).view(batch, count, -1, height, width)


def _pamr_weights(image: Tensor) -> Tensor:
    """(B, 1, 48, H, W)."""
    every = torch.eye(9).view(9, 1, 3, 3)
    around = torch.cat([every[:4], every[5:]])
    spread = _convolved(image, every).std(2, keepdim=True)
    difference = _convolved(image, every[4] - around).abs()
    return (-difference / (1e-8 + 0.1 * spread)).mean(1, keepdim=True).softmax(2)


def pamr_module(problem: Problem) -> Call:
    """PAMR (Araslanov & Roth, CVPR 2020), written by us: a convolution with a kernel for each neighbour."""
    image, start, steps = smooth_image(problem), masks(problem), problem.size.steps
    every = torch.eye(9).view(9, 1, 3, 3)
    around = torch.cat([every[:4], every[5:]])

    def call() -> Tensor:
        weights, p = _pamr_weights(image), start
        for _ in range(steps):
            p = (_convolved(p, around) * weights).sum(2)
        return as_tokens(p)

    return call


def pamr_module_bytes(size: Size) -> int:
    """Every neighbour of every mask, three times over."""
    return 3 * 4 * 8 * len(PAMR_DILATIONS) * size.batch * size.labels * size.tokens


def _shifts(padded: Tensor, reach: int, grid: tuple[int, int]) -> Iterator[Tensor]:
    for dilation in PAMR_DILATIONS:
        for dy in (-dilation, 0, dilation):
            for dx in (-dilation, 0, dilation):
                if dy or dx:
                    yield padded[..., reach + dy : reach + dy + grid[0], reach + dx : reach + dx + grid[1]]


def pamr_shifts(problem: Problem) -> Call:
    """The same by adding one shifted and weighted copy of the masks after the other."""
    image, start, size = smooth_image(problem), masks(problem), problem.size
    reach = max(PAMR_DILATIONS)

    def call() -> Tensor:
        weights, p = _pamr_weights(image).unbind(2), start
        for _ in range(size.steps):
            padded, total = functional.pad(p, (reach,) * 4, mode="replicate"), torch.zeros_like(p)
            for weight, shifted in zip(weights, _shifts(padded, reach, size.grid), strict=True):
                total.addcmul_(weight, shifted)
            p = total
        return as_tokens(p)

    return call


def lposs_plus_scipy(problem: Problem) -> Call:
    """LPOSS+ (Stojnić et al., CVPR 2025), written by us: the pixels' graph as CSR, then scipy's solver a label."""
    from scipy.sparse import csr_matrix, diags, identity
    from scipy.sparse.linalg import cg

    from nerve_kernels.colours import rgb_to_lab

    image, size = smooth_image(problem), problem.size
    (height, width), reach = size.grid, size.window // 2

    def graph(lab: np.ndarray) -> csr_matrix:
        y, x = np.divmod(np.arange(height * width), width)
        rows, columns = [], []
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
                if dy or dx:
                    rows.append(np.flatnonzero(inside).astype(np.int32))
                    columns.append(rows[-1] + dy * width + dx)
        row, column = np.concatenate(rows), np.concatenate(columns).astype(np.int32)
        weight = np.exp(-np.sqrt(np.square(lab[row] - lab[column]).sum(1)) / TAU)
        w = csr_matrix((weight, (row, column)), shape=(height * width, height * width))
        degree = np.asarray(w.sum(1)).ravel()
        root = diags(np.where(degree == 0, 1, degree) ** -0.5)
        return (root @ w @ root).tocsr()

    def call() -> Tensor:
        solved = []
        scales = torch.tensor([100.0, 128.0, 128.0]).view(3, 1, 1)
        for one, seeds in zip(rgb_to_lab(image) / scales, problem.seeds, strict=True):
            matrix = identity(height * width, dtype=np.float32, format="csr") - ALPHA * graph(
                one.flatten(1).transpose(0, 1).contiguous().numpy()
            ).astype(np.float32)
            labels = [
                cg(matrix, y, rtol=0.0, maxiter=size.steps)[0] for y in seeds.transpose(0, 1).contiguous().numpy()
            ]
            solved.append(torch.from_numpy(np.stack(labels, 1)))
        return torch.stack(solved).float()

    return call
