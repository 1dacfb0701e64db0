"""What refiners cannot take is refused before any work: the argument's name, what came, what was wanted, what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import nerve_kernels as nk
from nerve_kernels import refiners
from nerve_kernels.capturing import CapturedAttention

GRID = (6, 8)
Q = torch.zeros(1, 2, 48, 8)
FEATURES = torch.ones(1, 5, *GRID)
IMAGE = torch.zeros(1, 3, 30, 41)
SCORES = torch.zeros(1, 4, *GRID)
NAN_IMAGE = IMAGE.clone()
NAN_IMAGE[0, :, 3, 4] = math.nan


def refine(**changes: Any) -> Tensor:
    return nk.refine(**{"scores": SCORES, "image": IMAGE, "attention": (Q, Q), **changes})


CASES: list[tuple[str, type[Exception], Callable[[], Any], str]] = [
    ("scores", ValueError, lambda: refine(scores=SCORES[0]), "scores: expected shape (B, C, h, w), got (4, 6, 8)"),
    ("method", ValueError, lambda: refine(method="crf"), "method: expected"),
    (
        "attention",
        ValueError,
        lambda: refine(attention=None),
        "attention: expected q and k (B, heads, N, d), a list of such pairs, or what capture has, which 'nerve' looks at, got None",
    ),
    (
        "features",
        ValueError,
        lambda: refine(method="similarity"),
        "features: expected (B, D, h, w) of a vision model, which 'similarity' looks at, got None",
    ),
    ("setting", TypeError, lambda: refine(depth=3), "settings: expected those of 'nerve': grid, grids, scale,"),
    (
        "aspect",
        ValueError,
        lambda: refine(scores=SCORES.transpose(2, 3)),
        "scores: expected the aspect of image, 30 × 41, got 8 × 6; transpose or crop them, or give stretch=True",
    ),
    (
        "pairs",
        ValueError,
        lambda: refine(attention=[Q]),
        "attention: expected a pair (q, k), or a list of such pairs, got 1",
    ),
    (
        "no pair",
        ValueError,
        lambda: refine(attention=[]),
        "attention: expected a pair (q, k), or a list of such pairs, got an empty list",
    ),
    (
        "not a pair",
        TypeError,
        lambda: refine(attention=3),
        "attention: expected a pair (q, k), or a list of such pairs, got int",
    ),
    (
        "grid",
        ValueError,
        lambda: refine(attention=(Q[:, :, :47], Q[:, :, :47])),
        "grid: expected (h, w) of the 47 tokens of attention, got None",
    ),
    (
        "batch",
        ValueError,
        lambda: refine(image=IMAGE.expand(3, -1, -1, -1), scores=SCORES.expand(2, -1, -1, -1)),
        "image: expected a batch of 2 or 1 as scores have, got 3",
    ),
    (
        "device",
        ValueError,
        lambda: refine(image=IMAGE.to("meta")),
        "image: expected to be on cpu as scores is, got meta",
    ),
    (
        "no labels",
        ValueError,
        lambda: refine(scores=SCORES[:, :0]),
        "scores: expected at least one label and one token, got (1, 0, 6, 8)",
    ),
    (
        "threshold",
        ValueError,
        lambda: refine(method="cliper", threshold=math.nan),
        "threshold: expected a number in [0, 1], got nan",
    ),
    (
        "gamma",
        ValueError,
        lambda: refine(method="similarity", features=FEATURES, gamma=0),
        "gamma: expected a number > 0, got 0",
    ),
    (
        "seeds",
        ValueError,
        lambda: refiners.cliper(Q, Q, torch.zeros(47, 2)),
        "seeds: expected 48 tokens as q has, got (47, 2)",
    ),
    (
        "seeds batch",
        ValueError,
        lambda: refiners.cliper(Q, Q, torch.zeros(2, 48, 2)),
        "q: expected a batch of 2 as seeds have, got 1",
    ),
    (
        "layers",
        ValueError,
        lambda: refiners.cliper([Q, Q[:, :, :12]], [Q, Q[:, :, :12]], torch.zeros(48, 2)),
        "layer 1: q: expected 48 tokens in a batch of 1 as the first q has, got 12 in a batch of 1",
    ),
    (
        "nothing captured",
        ValueError,
        lambda: refine(attention=CapturedAttention()),
        "attention: expected at least one captured layer, got none; run the model first",
    ),
    (
        "no layer",
        ValueError,
        lambda: refiners.cliper([], [], torch.zeros(48, 2)),
        "q: expected at least one layer, got an empty list",
    ),
]


@pytest.mark.parametrize(("kind", "call", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_refused_by_name(kind, call, message):
    with pytest.raises(kind, match=re.escape(message)):
        call()
