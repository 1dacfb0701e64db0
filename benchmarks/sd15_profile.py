"""Where the time of one picture goes at the size of Stable Diffusion 1.5 and CLIP ViT-B/16, on the CPU.

``python -m benchmarks.sd15_profile`` builds both models with random weights (times do not depend on their values, and
nothing is fetched), segments a 512 × 512 picture and writes ``benchmarks/results/sd15_profile_cpu.csv``. It needs 6 GB
of memory.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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

import nerve_kernels as nk
from nerve_kernels.evaluation.class_lists import ClassList
from nerve_kernels.segmentation import NervePipeline, pipeline
from nerve_kernels.segmentation.attention.affinity_building import AffinityBuilder
from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures
from nerve_kernels.segmentation.presets import PRESETS
from nerve_kernels.segmentation.text_image.clip import DenseClip

RESULT = Path(__file__).parent / "results" / "sd15_profile_cpu.csv"
CLASSES = ("background", *(names[0] for names in ClassList.read("pascal_voc").names))
# for each round words that were never asked before: those of the first call, and new ones on the same picture
WORDS = (
    (("zebra", "fountain", "lantern"), ("kettle", "ladder", "violin")),
    (("tractor", "pumpkin", "statue"), ("helmet", "canoe", "barn")),
    (("windmill", "goose", "carpet"), ("anchor", "tulip", "tunnel")),
)

OURS = ("entropy", "affinities", "walk, 21 classes")
MODELS = ("UNet", "CLIP, picture")


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


def build() -> NervePipeline:
    """Both models at full size, weights as PyTorch draws them."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
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
    text = {"vocab_size": 49408, "bos_token_id": WordTokenizer.START, "eos_token_id": WordTokenizer.END}
    vision = {"patch_size": 16}  # the other defaults are those of ViT-B
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512))
    for model in (unet, vae, clip):
        model.eval().requires_grad_(False)
    half = (0.5, 0.5, 0.5)
    return NervePipeline(
        attention=DiffusionFeatures(
            unet=unet, vae=vae, scheduler=DDPMScheduler(), empty_prompt=torch.randn(1, 77, 768)
        ),
        text_image=DenseClip(model=clip, tokenizer=cast(Any, WordTokenizer()), mean=half, std=half),
        config=PRESETS["sd15-clip-b16"].config,
    )


@contextmanager
def stage_times(clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Seconds by stage while it is open."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = clock()
            result = function(*arguments, **options)
            seconds[stage] += clock() - start
            return result

        return run

    watched = (
        (DiffusionFeatures, "encode_pixels", "VAE"),
        (DiffusionFeatures, "capture", "UNet"),
        (DenseClip, "embed_images", "CLIP, picture"),
        (DenseClip, "embed_names", "CLIP, text"),
        (AffinityBuilder, "weights", "entropy"),
        (nk, "local_affinity", "affinities"),
        (nk, "global_affinity", "affinities"),
        (nk, "random_walk", "walk"),
        (pipeline, "best_labels", "labels of the pixels"),
    )
    with ExitStack() as stack:
        for owner, name, stage in watched:
            stack.enter_context(mock.patch.object(owner, name, timed(stage, getattr(owner, name))))
        yield seconds


def measure(clock: Callable[[], float], rounds: int) -> dict[str, float]:
    """Median seconds of each stage, of a whole first call, and of new words on the same features."""
    made = build()
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (512, 512, 3), dtype=np.uint8))
    features = made.encode(picture)  # warms up
    with stage_times(clock) as once:
        made.segment(features, CLASSES)  # embeds the names, which later calls know already
    samples: dict[str, list[float]] = defaultdict(list)
    for words, new_words in WORDS[:rounds]:
        start = clock()
        with stage_times(clock) as seconds:
            features = made.encode(picture)
            encoded = clock()
            made.segment(features, words)
        samples["encode"].append(encoded - start)
        samples["first call, 3 names"].append(clock() - start)
        for stage in ("VAE", "UNet", "CLIP, picture", "entropy", "affinities"):
            samples[stage].append(seconds[stage])
        with stage_times(clock) as seconds:
            made.segment(features, CLASSES)
        for stage in ("walk", "labels of the pixels"):
            samples[f"{stage}, 21 classes"].append(seconds[stage])
        for name in ("3 new names, same features", "the same names again"):
            start = clock()
            made.segment(features, new_words)
            samples[name].append(clock() - start)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    medians["CLIP, text of 21 classes, once"] = once["CLIP, text"]
    return medians


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=len(WORDS), choices=range(1, len(WORDS) + 1))
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="what this process spends, not what passes: for a machine that others use too; give it one thread",
    )
    arguments = parser.parse_args()
    medians = measure(time.process_time if arguments.processor_time else time.perf_counter, arguments.rounds)
    made = {"clock": "processor" if arguments.processor_time else "wall", "threads": torch.get_num_threads()}
    made["torch"] = torch.__version__
    write_rows(RESULT, [{"stage": name, "median_seconds": f"{value:.4f}"} | made for name, value in medians.items()])
    table = Table("stage", "median s")
    for name, value in medians.items():
        table.add_row(name, f"{value:.3f}")
    console = Console()
    console.print(table)
    share = sum(medians[stage] for stage in OURS) / sum(medians[stage] for stage in MODELS)
    console.print(f"entropy, affinities and walk: {share:.1%} of UNet and CLIP")
    ratio = medians["3 new names, same features"] / medians["first call, 3 names"]
    console.print(f"3 new names: {ratio:.1%} of the first call")


if __name__ == "__main__":
    main()
