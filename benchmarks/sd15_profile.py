"""Where the time of one image goes at the size of Stable Diffusion 1.5 and CLIP ViT-B/16, on the CPU.

``python -m benchmarks.sd15_profile`` builds both models with random weights (times do not depend on their values, and
nothing is fetched), segments a 512 × 512 image and writes ``benchmarks/results/sd15_profile_cpu.csv``. It needs 6 GB
of memory.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from benchmarks.tables import write_rows
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import BatchEncoding

from nerve_kernels.evaluation.class_lists import ClassList
from nerve_kernels.segmentation import NervePipeline
from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures
from nerve_kernels.segmentation.phases import DIFFUSION, recording_phases
from nerve_kernels.segmentation.presets import PRESETS
from nerve_kernels.segmentation.text_image.clip import DenseClip

RESULT = Path(__file__).parent / "results" / "sd15_profile_cpu.csv"
FULL_AND_FAST = ("sd15-clip-b16", "sd15-clip-b16-fast")
CLASSES = ("background", *(names[0] for names in ClassList.read("pascal_voc").names))
# for each round words that were never asked before: those of the first call, and new ones on the same image
WORDS = (
    (("zebra", "fountain", "lantern"), ("kettle", "ladder", "violin")),
    (("tractor", "pumpkin", "statue"), ("helmet", "canoe", "barn")),
    (("windmill", "goose", "carpet"), ("anchor", "tulip", "tunnel")),
)

OURS = ("affinity", "random walk of 21 classes")
MODELS = ("UNet", "CLIP, image")


class WordTokenizer:
    """A token for each word and mark, as CLIP's vocabulary has for nearly all words of the prompts."""

    START, END = 49406, 49407
    model_max_length = 77

    def __call__(self, prompts: list[str], **_: Any) -> BatchEncoding:
        rows = [
            [self.START, *(hash(word) % 49000 for word in re.findall(r"\w+|[^\w\s]", text)), self.END]
            for text in prompts
        ]
        return BatchEncoding({"input_ids": rows})


def build() -> dict[str, NervePipeline]:
    """Two presets at full size, weights as PyTorch draws them; UNet and CLIP are the same."""
    from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # the other defaults are those of SD 1.x
    sides = (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=sides,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    tiny = AutoencoderTiny()  # the defaults are taesd's
    text = {"vocab_size": 49408, "bos_token_id": WordTokenizer.START, "eos_token_id": WordTokenizer.END}
    vision = {"patch_size": 16}  # the other defaults are those of ViT-B
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512))
    for model in (unet, vae, tiny, clip):
        model.eval().requires_grad_(False)
    half, prompt = (0.5, 0.5, 0.5), torch.randn(1, 77, 768)

    def pipeline(preset: str, autoencoder: AutoencoderKL | AutoencoderTiny) -> NervePipeline:
        return NervePipeline(
            attention=DiffusionFeatures(
                unet=unet,
                vae=autoencoder.to(memory_format=torch.channels_last),  # as checkpoints are loaded
                scheduler=DDPMScheduler(),
                empty_prompt=prompt,
            ),
            text_image=DenseClip(model=clip, tokenizer=cast(Any, WordTokenizer()), mean=half, std=half),
            config=PRESETS[preset].config,
        )

    return {
        preset: pipeline(preset, autoencoder) for preset, autoencoder in zip(FULL_AND_FAST, (vae, tiny), strict=True)
    }


@contextmanager
def stage_times() -> Iterator[dict[str, float]]:
    """Seconds by stage while it is open: the pipeline's phases, and its model of diffusion in two."""
    seconds: dict[str, float] = defaultdict(float)
    encode = DiffusionFeatures.encode_pixels

    def timed(*arguments: Any) -> torch.Tensor:
        start = time.perf_counter()
        latents = encode(*arguments)
        seconds["VAE"] += time.perf_counter() - start
        return latents

    with mock.patch.object(DiffusionFeatures, "encode_pixels", timed), recording_phases() as phases:
        yield seconds
    for one in phases:
        seconds[one.name] += one.seconds
    if DIFFUSION in seconds:
        seconds["UNet"] = seconds.pop(DIFFUSION) - seconds["VAE"]


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """For each preset, in turns, median seconds of each stage, of a whole first call, and of new words."""
    made = build()
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (512, 512, 3), dtype=np.uint8))
    samples: dict[str, dict[str, list[float]]] = {preset: defaultdict(list) for preset in made}
    peers = {preset: cast(DiffusionFeatures, copy.copy(one.attention)) for preset, one in made.items()}
    for peer in peers.values():  # the UNet is the same
        peer.vae = copy.deepcopy(peer.vae).to(memory_format=torch.contiguous_format)
    for preset, pipeline in made.items():
        features = pipeline.encode(image)  # warms up
        with stage_times() as once:
            pipeline.segment(features, CLASSES)  # embeds the names, which later calls know already
        samples[preset]["CLIP, words of 21 classes, once"].append(once["CLIP, words"])
    for words, new_words in WORDS[:rounds]:
        for preset, pipeline in made.items():
            said = samples[preset]
            with stage_times() as seconds, clock(said["first call, 3 names"]):
                features = pipeline.encode(image)
                pipeline.segment(features, words)
            for stage in ("VAE", "UNet", "CLIP, image", "affinity"):
                said[stage].append(seconds[stage])
            with stage_times() as seconds:
                pipeline.segment(features, CLASSES)
            for stage in ("random walk", "labels of pixels"):
                said[f"{stage} of 21 classes"].append(seconds[stage])
            for name in ("3 new names, same features", "the same names again"):
                with clock(said[name]):
                    pipeline.segment(features, new_words)
            with clock(said["VAE, contiguous weights"]):
                peers[preset].encode(image, short_side=512)
    return {
        preset: {name: statistics.median(values) for name, values in said.items()} for preset, said in samples.items()
    }


@contextmanager
def clock(samples: list[float]) -> Iterator[None]:
    """Adds how long its block took."""
    start = time.perf_counter()
    yield
    samples.append(time.perf_counter() - start)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=len(WORDS), choices=range(1, len(WORDS) + 1))
    medians = measure(parser.parse_args().rounds)
    made = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    rows = [
        {"preset": preset, "stage": stage, "median_seconds": f"{value:.4f}"} | made
        for preset, stages in medians.items()
        for stage, value in stages.items()
    ]
    write_rows(RESULT, rows)
    full, fast = (medians[preset] for preset in FULL_AND_FAST)
    table = Table("stage", *FULL_AND_FAST, title="median seconds")
    for stage, value in full.items():
        table.add_row(stage, f"{value:.3f}", f"{fast[stage]:.3f}")
    console = Console()
    console.print(table)
    share = sum(full[stage] for stage in OURS) / sum(full[stage] for stage in MODELS)
    console.print(f"affinity and walk: {share:.1%} of UNet and CLIP")
    ratio = full["3 new names, same features"] / full["first call, 3 names"]
    console.print(f"3 new names: {ratio:.1%} of the first call")
    console.print(f"fast: {fast['first call, 3 names'] / full['first call, 3 names']:.1%} of the first call")


if __name__ == "__main__":
    main()
