"""Stage 2: S as any sparse graph, in compressed rows; its tokens need be no grid."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nerve_kernels._arguments import AffinityArguments
from nerve_kernels._operators.checks import (
    check_batch,
    check_flag,
    check_index_tensor,
    check_same_device,
    check_tensor,
    refusal,
    shape_of,
)
from nerve_kernels._operators.walk.graph import rows_of_entries

from .base import Affinity


@dataclass(frozen=True, eq=False)
class GraphAffinity(Affinity):
    """S as a sparse graph in compressed rows: the entries of each token's row, one row after the other.

    ``(S P)ᵢ = Σ_e values[e] · P[columns[e]],  e = row_pointers[i] … row_pointers[i+1] − 1``; an empty row is of the
    identity, so that a token without neighbours keeps what it has.

    Args:
        row_pointers: (B, N + 1) or (N + 1,), int32 or int64, from 0 on, never falling. What lies beyond an image's last
            is not used, so that the graphs of a batch may differ in size.
        columns: (B, E) or (E,), int32 or int64, each from 0 to N − 1; within a row in any order.
        values: (B, E) or (E,). Batches of 1 serve all.
        symmetric: S = Sᵀ and no eigenvalue is beyond 1 in magnitude, as of D^−½ W D^−½; not looked at.
            :func:`random_walk_limit` then solves by conjugate gradients, and no row needs to sum to 1.

    Raises:
        TypeError, ValueError: for a bad argument, named. What is out of range is refused when it is made on the CPU; on
            a GPU, where looking is waiting, by ``random_walk(check=True)``: else such an entry counts for nothing.

    Example:
        >>> import torch, nerve_kernels as nk
        >>> S = nk.GraphAffinity(torch.tensor([0, 1, 3, 3]), torch.tensor([1, 0, 2]), torch.tensor([1.0, 0.5, 0.5]))
        >>> (S @ torch.tensor([[1.0], [2.0], [3.0]]))[:, 0].tolist()  # the last token has no neighbours
        [2.0, 2.0, 3.0]
    """

    row_pointers: Tensor
    columns: Tensor
    values: Tensor
    symmetric: bool = field(kw_only=True, default=False)

    def __post_init__(self) -> None:
        parts: tuple[Any, ...] = (self.row_pointers, self.columns, self.values)
        stand_in = type(self.symmetric).__module__.startswith("torch.")
        if stand_in or not any(isinstance(part, (Tensor, *_NO_STANDINS)) for part in parts):
            return  # torch (export, pytree) is rebuilding it, not a user making one
        for name in ("row_pointers", "columns", "values"):
            part = getattr(self, name)
            if isinstance(part, Tensor) and part.dim() == 1:
                object.__setattr__(self, name, part.unsqueeze(0))
        check_index_tensor("row_pointers", self.row_pointers, 2, "(B, N + 1) or (N + 1,)")
        check_index_tensor("columns", self.columns, 2, "(B, E) or (E,)")
        check_tensor("values", self.values, 2, "(B, E) or (E,)")
        check_flag("symmetric", self.symmetric)
        if self.row_pointers.shape[1] < 1:
            raise ValueError(refusal("row_pointers", "N + 1 ≥ 1 of them", shape_of(self.row_pointers)))
        if self.values.shape[1] != self.columns.shape[1]:
            raise ValueError(
                refusal("values", f"{self.columns.shape[1]} entries as columns has", shape_of(self.values))
            )
        check_batch("columns", self.columns.shape[0], self.row_pointers.shape[0], " as row_pointers has")
        check_batch("values", self.values.shape[0], max(part.shape[0] for part in parts[:2]), " as the graph has")
        check_same_device(row_pointers=self.row_pointers, columns=self.columns, values=self.values)
        if self.values.device.type == "cpu" and not torch.compiler.is_compiling() and not _is_fake(self.columns):
            self.check_indices()

    def check_indices(self) -> None:
        """Raise where row pointers fall or lead beyond the entries, or a column is none of the N tokens."""
        pointers, entries, tokens = self.row_pointers, self.columns.shape[1], self.row_pointers.shape[1] - 1
        if bool((pointers[:, 0] != 0).any()) or bool((pointers.diff(dim=1) < 0).any()):
            raise ValueError(refusal("row_pointers", "0 first, and none below the one before", "others"))
        last = int(pointers.max())
        if last > entries:
            raise ValueError(refusal("row_pointers", f"at most {entries}, as there are entries", last))
        places = torch.arange(entries, device=pointers.device)
        used = self.columns[places < pointers[:, -1:]] if self.columns.shape[0] == pointers.shape[0] else self.columns
        if used.numel() and (int(used.min()) < 0 or int(used.max()) >= tokens):
            came = f"columns from {int(used.min())} to {int(used.max())}"
            raise ValueError(refusal("columns", f"tokens from 0 to {tokens - 1}", came))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, N, N)."""
        tokens = self.row_pointers.shape[1] - 1
        return max(part.shape[0] for part in (self.row_pointers, self.columns, self.values)), tokens, tokens

    def operator_arguments(self) -> AffinityArguments:
        """Local part only, on tokens in a column."""
        return AffinityArguments(
            self.values,
            row_pointers=self.row_pointers,
            columns=self.columns,
            grid=(self.shape[1], 1),
            symmetric=self.symmetric,
        )

    def to(self, *args: Any, **kwargs: Any) -> GraphAffinity:
        """The same affinity with its values in another dtype, or all of it on another device."""
        values = self.values.to(*args, **kwargs)
        indices = self.row_pointers.to(values.device), self.columns.to(values.device)
        return replace(self, row_pointers=indices[0], columns=indices[1], values=values)

    def to_dense(self) -> Tensor:
        """The (B, N, N) matrix in the dtype of the values."""
        batch, tokens, _ = self.shape
        images = []
        for image in range(batch):
            pointers, columns, values = (
                part[min(image, part.shape[0] - 1)] for part in (self.row_pointers, self.columns, self.values)
            )
            rows = rows_of_entries(pointers, len(columns))
            inside = rows < tokens
            dense = values.new_zeros(tokens * tokens)
            dense = dense.index_add(0, (rows * tokens + columns)[inside], values[inside]).view(tokens, tokens)
            images.append(dense + torch.diag((pointers.diff() == 0).to(dense.dtype)))
        return torch.stack(images)


_NO_STANDINS = (int, float, complex, str, bytes, list, tuple, type(None))


def _is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has no numbers to look at: one of a trace, or under a transform."""
    return type(tensor) is not Tensor or torch._C._are_functorch_transforms_active()


torch.export.register_dataclass(GraphAffinity, serialized_type_name="nerve_kernels.GraphAffinity")
