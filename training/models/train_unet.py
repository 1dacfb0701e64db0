"""The UNet: plain denoising of cached latents, with the empty prompt only.

Most steps see 16x16 windows of the 32x32 latents: attention costs the square of the tokens, the
network is convolutional besides, and on two cores that is four times as many images. A last
share of the steps sees whole latents, so that attention ends at the length it is used at.
"""

import itertools
import math

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from training.models.checkpoints import AveragedWeights, Clock, load_state, log_line, save_state
from training.models.diffusion_model import (
    LATENT_SIDE,
    LONGEST_PROMPT,
    new_scheduler,
    new_text_encoder,
    new_unet,
)
from training.models.optimizers import new_optimizers
from training.models.tokenizer import kept_tokenizer
from training.models.train_autoencoder import images_to_tensor
from training.paths import AUTOENCODER_RUN, UNET_RUN
from training.world.artwork import load_sprites
from training.world.backgrounds import Backgrounds
from training.world.composition import SceneRecipe, compose_scene
from training.world.vocabulary import TRAINING_STYLES

WINDOW = 16
WINDOW_BATCH, WHOLE_BATCH = 48, 8
#: The share of the training time, at its end, that sees whole latents.
WHOLE_SHARE = 0.3
#: Peak learning rate.
RATE = 1e-3
SCENE = SceneRecipe(smallest_side=24, largest_side=84, colour_jitter=0.2)


@torch.no_grad()
def cache_latents(scenes: int, seed: int = 3) -> Tensor:
    """Scaled mean latents of freshly composed training scenes: (scenes, 4, 32, 32) float16."""
    path = UNET_RUN / "latents.pt"
    if path.exists():
        kept: Tensor = torch.load(path, weights_only=True)
        return kept
    autoencoder = AutoencoderKL.from_pretrained(AUTOENCODER_RUN / "best").eval()
    sprites, backgrounds = load_sprites(), Backgrounds("training")
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(0, scenes, 16):
        drawn = [compose_scene(rng, sprites, TRAINING_STYLES, backgrounds, SCENE) for _ in range(16)]
        images = images_to_tensor([scene.image for scene in drawn])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mean = autoencoder.encode(images).latent_dist.mean
        parts.append((mean.float() * autoencoder.config.scaling_factor).half())
    latents = torch.cat(parts)
    UNET_RUN.mkdir(parents=True, exist_ok=True)
    torch.save(latents, path)
    return latents


def draw_batch(latents: Tensor, whole: bool, generator: torch.Generator) -> Tensor:
    """Random latents, or windows of them, half of them mirrored."""
    size = WHOLE_BATCH if whole else WINDOW_BATCH
    chosen = latents[torch.randint(len(latents), (size,), generator=generator)].float()
    if not whole:
        slack = LATENT_SIDE - WINDOW + 1
        corners = torch.randint(slack, (size, 2), generator=generator).tolist()
        windows = [
            image[:, top : top + WINDOW, left : left + WINDOW]
            for image, (top, left) in zip(chosen, corners, strict=True)
        ]
        chosen = torch.stack(windows)
    mirrored = torch.rand(size, generator=generator) < 0.5
    chosen[mirrored] = chosen[mirrored].flip(-1)
    return chosen


def train_unet(minutes: float, seed: int = 4, scenes: int = 8_000) -> None:
    """The step `unet`: resumes where it stopped, saves every five minutes."""
    torch.set_num_threads(1)
    latents = cache_latents(scenes)
    torch.manual_seed(seed)
    tokenizer = kept_tokenizer(UNET_RUN / "tokenizer", merges=600, longest=LONGEST_PROMPT)
    text_encoder = new_text_encoder(tokenizer).eval()
    model = new_unet()
    # Faster here than the fused kernel, whose CPU version is slow for narrow heads.
    model.set_attn_processor(AttnProcessor())
    scheduler = new_scheduler()
    optimizers = new_optimizers(model, lambda name: ".transformer_blocks." in name, (RATE, RATE))
    average = AveragedWeights(model, decay=0.995)
    state = load_state(UNET_RUN / "state.pt")
    step, spent = 0, 0.0
    if state is None:
        # The same random text encoder must serve every resumed run, and ship.
        text_encoder.save_pretrained(UNET_RUN / "text_encoder")
    else:
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        average.values = state["average"]
        step, spent = state["step"], state["spent"]
        text_encoder = type(text_encoder).from_pretrained(UNET_RUN / "text_encoder").eval()
    # Without a mask over the padding, as Stable Diffusion's own pipeline calls its text encoder.
    empty = tokenizer("", padding="max_length", max_length=LONGEST_PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        prompt = text_encoder(empty).last_hidden_state
    clock = Clock(minutes, spent)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    next_save = clock.spent + 300
    sums = np.zeros(2)
    while clock.progress < 1:
        cosine = 0.5 * (1 + math.cos(math.pi * clock.progress))
        for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
            group["lr"] = RATE * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * cosine)
        clean = draw_batch(latents, clock.progress > 1 - WHOLE_SHARE, generator)
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(0, 1000, (len(clean),), generator=generator)
        noisy = scheduler.add_noise(clean, noise, times)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = model(noisy, times, prompt.expand(len(clean), -1, -1)).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        average.update(model, step)
        sums += (loss.item(), 1)
        if step % 50 == 0:
            log_line(
                UNET_RUN / "log.jsonl",
                step=step, minutes=clock.spent / 60, noise_mse=sums[0] / sums[1],
            )  # fmt: skip
            sums[:] = 0
        if clock.spent >= next_save or clock.progress >= 1:
            next_save = clock.spent + 300
            save_state(
                UNET_RUN / "state.pt",
                {
                    "model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "average": average.values, "step": step, "spent": clock.spent,
                },
            )  # fmt: skip
