"""Random calls of stage 1, right and wrong, against the reference."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.judging import FUZZ, backends, dtypes, judge, probabilities, small, spoilt, tensor

import nerve_kernels as nk
from nerve_kernels import reference

scales = st.sampled_from([None, 0.0, 0.25, 1.0, -1.0])


@st.composite
def attention_calls(draw: st.DrawFn, *, weights: bool = False) -> tuple[dict[str, Any], bool, torch.dtype]:
    """q, k, scale, backend and what else a function of stage 1 takes."""
    dtype = draw(dtypes)
    batch, heads, size = draw(small), draw(small), draw(st.sampled_from([1, 2, 3, 8, 12]))
    queries, keys = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    magnitude = draw(st.sampled_from([0.0, 0.1, 1.0]))
    arguments: dict[str, Any] = {
        "q": tensor(draw, (batch, heads, queries, size), dtype, magnitude=magnitude),
        "k": tensor(draw, (batch, heads, keys, size), dtype, magnitude=magnitude),
    }
    if weights:
        arguments["w"] = probabilities(draw, (batch, heads), dtype)
    arguments |= {"scale": draw(scales), "backend": draw(backends)}
    return arguments, spoilt(draw, arguments), dtype


def without(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    """What the reference takes; a whole number is a scale too, even one past 64 bits."""
    kept = {name: value for name, value in arguments.items() if name not in names}
    if kept.get("scale") is not None:
        kept["scale"] = float(kept["scale"])
    return kept


def rounding_of(result_dtype: torch.dtype) -> torch.dtype:
    """What float16 and bfloat16 are computed in."""
    return torch.float64 if result_dtype == torch.float64 else torch.float32


@FUZZ
@given(attention_calls(), st.booleans())
def test_attention_entropy(call, return_lse):
    arguments, wrong, dtype = call
    judge(
        arguments,
        lambda: nk.attention_entropy(**arguments, return_lse=return_lse),
        lambda: reference.attention_entropy(**without(arguments, "backend"), return_lse=return_lse),
        spoilt=wrong,
        dtype=rounding_of(dtype),
    )


@FUZZ
@given(attention_calls(), st.booleans())
def test_attention_marginal(call, with_lse):
    arguments, wrong, dtype = call
    if with_lse and not wrong:
        arguments["lse"] = reference.attention_entropy(**without(arguments, "backend"), return_lse=True)[1]
    judge(
        arguments,
        lambda: nk.attention_marginal(**arguments),
        lambda: reference.attention_marginal(**without(arguments, "backend", "lse")),
        spoilt=wrong,
        dtype=rounding_of(dtype),
    )


@FUZZ
@given(attention_calls(weights=True))
def test_fuse_attention(call):
    arguments, wrong, dtype = call
    judge(
        arguments,
        lambda: nk.fuse_attention(**arguments),
        lambda: reference.fuse_attention(**without(arguments, "backend")),
        spoilt=wrong,
        dtype=dtype,
    )


@st.composite
def map_calls(draw: st.DrawFn, *, weights: bool) -> tuple[dict[str, Any], bool, torch.dtype]:
    dtype = draw(dtypes)
    shape = (draw(small), draw(small), draw(st.integers(1, 30)), draw(st.integers(1, 30)))
    arguments: dict[str, Any] = {"maps": probabilities(draw, shape, dtype)}
    if weights:
        arguments["w"] = probabilities(draw, shape[:2], dtype)
    arguments["backend"] = draw(backends)
    return arguments, spoilt(draw, arguments), dtype


@FUZZ
@given(map_calls(weights=False))
def test_attention_map_entropy(call):
    arguments, wrong, dtype = call
    judge(
        arguments,
        lambda: nk.attention_map_entropy(**arguments),
        lambda: reference.attention_map_entropy(arguments["maps"]),
        spoilt=wrong,
        dtype=rounding_of(dtype),
    )


@FUZZ
@given(map_calls(weights=True))
def test_fuse_attention_maps(call):
    arguments, wrong, dtype = call
    judge(
        arguments,
        lambda: nk.fuse_attention_maps(**arguments),
        lambda: reference.fuse_attention_maps(arguments["maps"], arguments["w"]),
        spoilt=wrong,
        dtype=dtype,
    )


@st.composite
def head_weight_calls(draw: st.DrawFn) -> tuple[dict[str, Any], bool, torch.dtype]:
    dtype, batch = draw(dtypes), draw(small)
    criterion = draw(st.sampled_from(["entropy", "information", "uniform"]))
    entropies, marginals, keys = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        heads, count = draw(small), draw(st.integers(1, 30))
        entropies.append(tensor(draw, (batch, heads, draw(st.integers(1, 9))), dtype).abs())
        marginals.append(probabilities(draw, (batch, heads, count), dtype))
        keys.append(count)
    heads = sum(entropy.shape[1] for entropy in entropies)
    arguments: dict[str, Any] = {
        "entropy": entropies,
        "num_keys": keys,
        "temperature": draw(st.sampled_from([0.1, 1.0, 100.0])),
        "criterion": criterion,
        "marginal": marginals if criterion == "information" else None,
        "keep": draw(st.none() | st.integers(1, heads)),
    }
    if len(entropies) == 1 and draw(st.booleans()):
        for name in ("entropy", "num_keys", "marginal"):
            arguments[name] = arguments[name] and arguments[name][0]
    return arguments, spoilt(draw, arguments), dtype


@FUZZ
@given(head_weight_calls())
def test_head_weights(call):
    arguments, wrong, dtype = call
    judge(
        arguments,
        lambda: nk.head_weights(**arguments),
        lambda: reference.head_weights(**arguments),
        spoilt=wrong,
        dtype=rounding_of(dtype),
    )
