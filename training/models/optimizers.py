"""Two optimizers for one model: Muon for the matrices of its attention blocks, Adam for the rest."""

from collections.abc import Callable

import torch
from torch import nn


def new_optimizers(
    model: nn.Module, is_matrix: Callable[[str], bool], rates: tuple[float, float]
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the 2-D weights that `is_matrix` admits by name: it needs fewer steps than Adam.

    `rates` are the two learning rates. Embeddings, norms, biases and convolutions stay with Adam.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and is_matrix(name) else rest).append(parameter)
    return (
        torch.optim.Muon(matrices, lr=rates[0], weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rates[1], betas=(0.9, 0.98), weight_decay=0.0),
    )
