"""What a capture sees of any model, what it refuses by name, and that it leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.capturing.families import GRID, heads_of, noise
from tests.ops.problems import relative_error
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import nerve_kernels as nk
from nerve_kernels import reference


class Attention(nn.Module):
    """One layer on tokens (B, N, 16)."""

    def __init__(self, mode: str = "sdpa", heads: int = 2, key_heads: int = 2) -> None:
        super().__init__()
        self.mode, self.heads, self.key_heads = mode, heads, key_heads

    def forward(self, x: Tensor) -> Tensor:
        q, k = heads_of(x, self.heads), heads_of(x[..., : 16 // self.heads * self.key_heads], self.key_heads)
        if self.mode == "eager":
            return (q @ k.transpose(-1, -2)).softmax(-1) @ k
        options: dict[str, Any] = {
            "bias": {"attn_mask": torch.ones(x.shape[1], x.shape[1])},
            "scaled": {"scale": 0.1},
            "grouped": {"enable_gqa": True},
        }.get(self.mode, {})
        if self.mode == "windows":
            q, k = (
                q.unflatten(2, (4, -1)).transpose(1, 2).flatten(0, 1),
                k.unflatten(2, (4, -1)).transpose(1, 2).flatten(0, 1),
            )
        self.finished = False
        result: Tensor = functional.scaled_dot_product_attention(q, k, k, **options)
        self.finished = True
        return result


class Model(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            layer(x)
        return x


X = noise(1, 24, 16)


def test_a_scale_of_its_own_goes_into_the_affinity():
    model = Model(Attention("scaled"))
    with nk.capture(model, grid=GRID) as attention:
        model(X)
    (layer,) = attention.layers
    assert layer.scale == 0.1
    stats = attention.statistics(window=3, cells=2)
    q = heads_of(X)
    assert relative_error(stats.entropy[0], reference.attention_entropy(q, q, scale=0.1)) < 1e-5


def test_heads_that_share_keys_have_copies_of_them():
    model = Model(Attention("grouped", heads=4, key_heads=2))
    with nk.capture(model, grid=GRID) as attention:
        model(X)
    (layer,) = attention.layers
    assert layer.q.shape == layer.k.shape == (1, 4, 24, 4)
    assert torch.equal(layer.k[:, 0], layer.k[:, 1])


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (Attention("eager"), RuntimeError, r"layers.0 \(Attention\) ran without scaled_dot_product_attention"),
        (Attention("bias"), ValueError, "layers.0: expected scores of q and k alone, got a mask or bias added to them"),
        (Attention("windows"), ValueError, "layers.0: expected attention over the whole picture, got windows of it"),
    ],
)
def test_what_cannot_be_captured_is_refused_by_name(layer, error, message):
    model = Model(layer)
    with pytest.raises(error, match=message), nk.capture(model, grid=GRID):
        model(X)
    assert not model._forward_hooks
    assert not layer._forward_pre_hooks


def test_another_thread_is_noticed():
    model = Model(Attention())
    thread = threading.Thread(target=model, args=(X,))

    def run() -> None:
        with nk.capture(model, grid=GRID):
            thread.start()
            thread.join()

    with pytest.raises(RuntimeError, match="ran without scaled_dot_product_attention"):
        run()


def test_chosen_layers_alone_and_an_early_end():
    model, ran = Model(Attention(), Attention("eager"), Attention()), []
    model.layers[2].register_forward_hook(lambda *others: ran.append(1))
    with nk.capture(model, "layers.0", grid=GRID, stop_early=True) as attention:
        model(X)
        ran.append(2)
    assert [layer.name for layer in attention.layers] == ["layers.0"]
    assert ran == []
    model.layers[1].mode = model.layers[2].mode = "sdpa"
    with nk.capture(model, ["layers.0", "layers.2"], grid=GRID, stop_early=True) as attention:
        model(X)
    assert [layer.finished for layer in model.layers] == [True, True, False]  # the last product is not waited for
    assert [layer.name for layer in attention.layers] == ["layers.0", "layers.2"]
    with nk.capture(model, ["layers.0", "layers.2"], grid=GRID) as attention:
        model(X)
        model(X)
    assert [layer.name for layer in attention.layers] == ["layers.0", "layers.2"] * 2


def test_misuse_is_refused_in_a_sentence():
    model = Model(Attention())
    for arguments, message in [
        (
            {"layers": "blocks.*"},
            r"layers: expected names of this model's modules, got 'blocks\.\*'; there is: layers.0",
        ),
        ({"layers": 3}, "layers: expected names or globs of modules, got int"),
        ({"grid": (0, 3)}, "grid: expected H ≥ 1 and W ≥ 1"),
        ({"grid": (5, 5)}, "layers.0: expected tokens that are the picture's grid, got 24"),
        ({"grid": GRID, "tokens": (1, 24)}, "tokens: expected the picture's tokens among the 24 of layers.0"),
        ({}, "layers.0: expected tokens that are the picture's grid, got 24 for a picture of unknown size in a Model"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message), nk.capture(model, **arguments):
            model(X)
    with (
        pytest.raises(RuntimeError, match="model: expected a pass within the block, got none"),
        nk.capture(model),
    ):
        pass
    with (
        pytest.raises(TypeError, match=r"model: expected a model of its own, got DataParallel; give model\.module"),
        nk.capture(nn.DataParallel(model)),
    ):
        pass
    with pytest.raises(RuntimeError, match="layers: expected at least one captured layer, got none"):
        nk.CapturedAttention().affinity()


def test_modes_transforms_and_compilation_go_through():
    model = Model(Attention())
    expected = heads_of(X)
    x = X.clone().requires_grad_()
    both = torch.stack([X, 2 * X])
    runs: dict[str, Callable[[], Any]] = {
        "a graph": lambda: model(x),
        "checkpoint": lambda: checkpoint(model, x, use_reentrant=False),
        "grad": lambda: torch.func.grad(lambda y: model(y).sum())(X),
        "vmap": lambda: torch.vmap(model)(both),
    }
    for name, run in runs.items():
        with nk.capture(model, grid=GRID) as attention:
            run()
        q = attention.layers[0].q
        assert torch.equal(q, torch.cat([expected, 2 * expected]) if name == "vmap" else expected), name
        assert q.requires_grad == (name in ("a graph", "checkpoint")), name
    with torch.inference_mode(), nk.capture(model, grid=GRID) as attention:
        model(X)
    assert torch.equal(attention.layers[0].q, expected)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="eager")
    for _ in range(2):
        with nk.capture(compiled, "layers.0", grid=GRID) as attention:
            compiled(X)
        assert [layer.name for layer in attention.layers] == ["layers.0"]
        assert torch.equal(attention.layers[0].q, expected)


def test_tokens_before_the_batch_are_no_windows():
    encoder = nn.TransformerEncoderLayer(16, 2).eval()
    with torch.no_grad(), nk.capture(encoder, grid=GRID) as attention:
        encoder(noise(24, 3, 16))
    assert attention.layers[0].q.shape == (3, 2, 24, 8)
