"""What is expected of an H100, to be printed beside what was measured. No figure here was measured."""

from __future__ import annotations

from benchmarks.expectations import Expectation, best, times_faster_than

LAYER = "SD 1.5 at 512², 64², 8 heads, d = 40"
WALK = "64², C = 21, 16² cells, L = 20"
EXPECTATIONS = (
    Expectation(
        "attention_entropy against FlashAttention's forward",
        "attention_entropy",
        LAYER,
        "float16",
        times_faster_than("FlashAttention forward (no entropy)"),
        1.0,
        "× its speed",
    ),
    Expectation(
        "fuse_attention_maps",
        "fuse_attention_maps",
        LAYER,
        "float16",
        best("percent_of_bandwidth"),
        85,
        "% of copy bandwidth",
    ),
    Expectation(
        "random_walk, 20 steps",
        "random_walk",
        WALK,
        "float32",
        best("median_ms", 1e3),
        100,
        "µs",
        at_most=True,
        stretch=60,
    ),
    Expectation(
        "random_walk against dense cuBLAS float32",
        "random_walk",
        WALK,
        "float32",
        times_faster_than("dense S in torch"),
        8.0,
        "× its speed",
    ),
)
