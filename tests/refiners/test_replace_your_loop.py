"""The page of diffs: what each puts in is run on made-up inputs and compared with a transcription of the original."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.refiners import originals
from torch import Tensor
from torch.nn import functional

PAGE = Path(__file__).parents[2] / "docs" / "replace_your_loop.md"
DIFFS = dict(re.findall(r"^### (\S+)\n.*?^```diff\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE))
MAX_LINES = 10


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def apply(name: str, **scope: Any) -> dict[str, Any]:
    """Run what the diff of ``name`` puts in, each stretch of it where the lines that it replaces were."""
    scope |= {"torch": torch, "F": functional}
    stretches = re.findall(r"(?:^\+.*\n)+", DIFFS[name], flags=re.MULTILINE)
    for stretch in stretches:
        exec(textwrap.dedent(re.sub(r"^\+", "", stretch, flags=re.MULTILINE)), scope)
    return scope


def test_every_code_base_has_a_diff_of_ten_lines_at_most():
    assert set(DIFFS) == {"NACLIP", "Trident", "CASS", "SC-CLIP", "LPOSS", "CLIPer", "ProxyCLIP"}
    for name, diff in DIFFS.items():
        lines = diff.splitlines()
        assert len(lines) <= MAX_LINES, name
        assert all(line[0] in "+- " for line in lines), name
        assert any(line.startswith("-") for line in lines), name


@pytest.mark.parametrize("name", ["NACLIP", "Trident", "CASS"])
def test_pamr_is_replaced(name):
    img, seg_logits = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0)), draw(1, 1, 5, 40, 56)
    expected = originals.pamr(img, seg_logits, 10, (8, 16))
    imported = re.search(r"^\+(from .*PAMR)$", DIFFS[name], flags=re.MULTILINE)
    assert imported is not None
    scope: dict[str, Any] = {}
    exec(imported[1], scope)
    segmentor = SimpleNamespace(dtype=torch.float32, pamr=scope["PAMR"](10, dilations=(8, 16)).to("cpu"))
    found = apply(name, self=segmentor, img=img, seg_logits=seg_logits)["seg_logits"]
    assert (found - expected).abs().max() < 1e-5


def test_the_attention_of_scclip_is_replaced():
    heads, tokens, size = 3, 60, 8
    feats, (k, v) = draw(2, tokens, 16) + 0.5, draw(3, 2, heads, tokens, size)
    weights = (originals.similarity_weights(feats, 1.0, 3.0) + (k @ k.mT * size**-0.5).softmax(-1)) / 2
    found = apply("SC-CLIP", feats=feats, k=k, v=v)["attn_output"]
    assert (found - weights @ v).abs().max() < 1e-5


def test_both_steps_of_lposs_are_replaced():
    (h, w), labels, patch = (8, 10), 3, 16
    dino_feats, clip_preds = draw(4, h * w, 12) + 0.5, 0.1 * draw(5, h * w, labels) + 0.2
    inputs = functional.interpolate(torch.rand(1, 3, 3, 4, generator=torch.Generator().manual_seed(6)), size=(20, 24))
    preds = 0.1 * draw(7, 1, labels, 20, 24) + 0.2
    config = SimpleNamespace(k=20, tau=0.05, r=5)
    found = apply(
        "LPOSS",
        self=SimpleNamespace(config=config),
        dino_feats=dino_feats,
        clip_preds=clip_preds,
        h=h,
        w=w,
        inputs=inputs,
        preds=preds,
    )
    graph = originals.lposs_graph(dino_feats.double(), (h, w), config.k, 3.0, 0.01, patch)
    expected = originals.conjugate_gradients(graph, clip_preds, 0.95, 10)
    assert (found["lp_preds"] - expected).abs().max() < 1e-5
    graph = originals.lposs_plus_graph(inputs.double(), config.tau, config.r)
    expected = originals.conjugate_gradients(graph, preds[0].flatten(1).T, 0.95, 10)
    assert (found["preds"][0].flatten(1).T - expected).abs().max() < 1e-5


def test_the_chain_of_cliper_is_replaced():
    layers = {-4: draw(8, 2, 1, 2, 4096, 4), -6: draw(9, 2, 1, 1, 4096, 4)}
    pipeline = SimpleNamespace(
        attn_refine=SimpleNamespace(attention_maps={index: tuple(layer) for index, layer in layers.items()}),
        cfg=SimpleNamespace(attention_layers_to_use=[-4, -6]),
    )
    cross_att = draw(10, 4096, 2).softmax(-1)
    found = apply("CLIPer", self=pipeline, cross_att=cross_att)["pred_mask"]
    q, k = (torch.cat([layer[part, 0] for layer in layers.values()]) for part in (0, 1))
    expected = cross_att
    for head in (2, 1, 0):
        expected = originals.cliper_maps(q[head][None], k[head][None], 0.1)[0] @ expected
    # an entry within rounding of a threshold moves its row by little among 4,096 tokens
    assert found.shape == (2, 64, 64)
    assert (found.flatten(1).T - expected).abs().max() < 1e-4


def test_the_attention_of_proxyclip_is_replaced():
    bsz, num_heads, head_dim, H, W = 2, 3, 8, 6, 7
    ex_feats, v = draw(11, bsz, 16, H, W) + 0.5, draw(12, bsz * num_heads, H * W, head_dim)
    weights = torch.stack([originals.similarity_weights(image.flatten(1).T, 1.2, 3.0) for image in ex_feats])
    expected = weights.repeat_interleave(num_heads, 0) @ v
    expected = expected.transpose(0, 1).reshape(-1, bsz, num_heads * head_dim)
    sizes = {"bsz": bsz, "num_heads": num_heads, "head_dim": head_dim, "H": H, "W": W}
    found = apply("ProxyCLIP", ex_feats=ex_feats, v=v, beta=1.2, gamma=3.0, **sizes)["attn_output"]
    assert (found - expected).abs().max() < 1e-5
