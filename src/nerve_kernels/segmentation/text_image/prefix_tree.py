"""Prompts laid out as trees, in which a beginning that several of them share stands once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class PrefixTree:
    """Some prompts, depth first: node 0 is where all of them start.

    Args:
        tokens: for each node its token.
        depths: for each node how many tokens precede it, which is its position in every prompt it is part of.
        parents: for each node the one before it; -1 for node 0.
        prompts: which prompts these are.
        ends: for each of them the node of its last token.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def visible(self) -> torch.Tensor:
        """What a causal model lets each node see: itself and its ancestors, nothing of other branches.

        Returns:
            (nodes, nodes) bool, true where the row's node sees the column's.

        Example:
            >>> (tree,) = prefix_trees([[7, 1], [7, 2]], max_nodes=8)
            >>> tree.visible().int().tolist()
            [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
        """
        visible = np.eye(len(self.tokens), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                visible[node] |= visible[parent]  # complete already: a parent has the smaller number
        return torch.from_numpy(visible)


def prefix_trees(rows: Sequence[list[int]], *, max_nodes: int) -> Iterator[PrefixTree]:
    """Lay prompts out as trees of bounded size.

    Sorted by their tokens, neighbours share the longest beginnings. Filling one tree after the other in this order
    repeats only what the prompts on both sides of a border share.

    Args:
        rows: the tokens of each prompt, at least one each; all with the same first one.
        max_nodes: in a tree, except where a single prompt has more.

    Yields:
        Trees that hold each prompt once, equal ones at the same end.

    Example:
        >>> (tree,) = prefix_trees([[7, 5, 6], [7, 4, 6], [7, 5, 9]], max_nodes=8)
        >>> tree.tokens, tree.depths, tree.parents
        ([7, 4, 6, 5, 6, 9], [0, 1, 2, 1, 2, 2], [-1, 0, 1, 0, 3, 3])
        >>> tree.prompts, tree.ends
        ([1, 0, 2], [2, 4, 5])
    """
    tree = PrefixTree()
    path: list[int] = []  # the nodes of the prompt before
    before: list[int] = []
    for prompt in sorted(range(len(rows)), key=rows.__getitem__):
        row = rows[prompt]
        shared = _shared_beginning(before, row)
        if tree.tokens and len(tree.tokens) + len(row) - shared > max_nodes:
            yield tree
            tree, shared = PrefixTree(), 0
        del path[shared:]
        for token in row[shared:]:
            tree.parents.append(path[-1] if path else -1)
            tree.depths.append(len(path))
            path.append(len(tree.tokens))
            tree.tokens.append(token)
        tree.prompts.append(prompt)
        tree.ends.append(path[-1])
        before = row
    if tree.tokens:
        yield tree


def _shared_beginning(left: list[int], right: list[int]) -> int:
    shared = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        shared += 1
    return shared
