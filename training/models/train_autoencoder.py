"""The autoencoder: reconstruction (L1 on pixels and on edges) with a small KL term, on crops."""

import math

import numpy as np
import torch
from torch import Tensor
from training.models.checkpoints import AveragedWeights, Clock, load_state, log_line, save_state
from training.models.diffusion_model import new_autoencoder, start_from_averaging
from training.paths import AUTOENCODER_RUN
from training.world.artwork import load_sprites
from training.world.backgrounds import Backgrounds
from training.world.composition import SceneRecipe, compose_scene
from training.world.vocabulary import TRAINING_STYLES

CROP = SceneRecipe(
    height=64, width=64, fewest_objects=1, most_objects=3, smallest_side=24, largest_side=84,
    least_visible_share=0.2, least_visible_pixels=40, overhang=0.4, colour_jitter=0.3,
)  # fmt: skip
KL_WEIGHT = 1e-6
EDGE_WEIGHT = 0.5


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, down and across."""
    return images[:, :, 1:] - images[:, :, :-1], images[:, :, :, 1:] - images[:, :, :, :-1]


def images_to_tensor(images: list[np.ndarray]) -> Tensor:
    """uint8 images in the range [-1, 1] that Stable Diffusion's autoencoder takes."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_autoencoder(minutes: float, seed: int = 1, batch: int = 8) -> None:
    """The step `autoencoder`: resumes where it stopped, saves every five minutes."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = new_autoencoder()
    start_from_averaging(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0)
    average = AveragedWeights(model, decay=0.995)
    state = load_state(AUTOENCODER_RUN / "state.pt")
    step, spent = 0, 0.0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.values = state["average"]
        step, spent = state["step"], state["spent"]
    clock = Clock(minutes, spent)
    sprites, backgrounds = load_sprites(), Backgrounds("training")
    rng = np.random.default_rng([seed, step])
    next_save = clock.spent + 300
    sums = np.zeros(3)
    while clock.progress < 1:
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * clock.progress))
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * cosine)
        scenes = [compose_scene(rng, sprites, TRAINING_STYLES, backgrounds, CROP) for _ in range(batch)]
        images = images_to_tensor([scene.image for scene in scenes])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = model.encode(images).latent_dist
            latents = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
            rebuilt = model.decode(latents).sample
        rebuilt = rebuilt.float()
        pixel_loss = (rebuilt - images).abs().mean()
        edge_loss = sum(
            (mine - theirs).abs().mean() for mine, theirs in zip(edges(rebuilt), edges(images), strict=True)
        )
        divergence = posterior.kl().float().mean()
        loss = pixel_loss + EDGE_WEIGHT * edge_loss + KL_WEIGHT * divergence
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        step += 1
        average.update(model, step)
        sums += (pixel_loss.item(), divergence.item(), 1)
        if step % 50 == 0:
            mean = sums[:2] / sums[2]
            log_line(
                AUTOENCODER_RUN / "log.jsonl",
                step=step, minutes=clock.spent / 60, pixel=mean[0], kl=mean[1],
            )  # fmt: skip
            sums[:] = 0
        if clock.spent >= next_save or clock.progress >= 1:
            next_save = clock.spent + 300
            save_state(
                AUTOENCODER_RUN / "state.pt",
                {
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "average": average.values, "step": step, "spent": clock.spent,
                },
            )  # fmt: skip
    finish_autoencoder()


@torch.no_grad()
def finish_autoencoder(seed: int = 2, scenes: int = 64) -> None:
    """Keep the averaged weights, with the scale that gives latents of unit deviation."""
    state = load_state(AUTOENCODER_RUN / "state.pt")
    if state is None:
        raise FileNotFoundError("no autoencoder was trained yet")
    model = new_autoencoder()
    model.load_state_dict(state["average"])
    model.eval()
    rng = np.random.default_rng(seed)
    sprites, backgrounds = load_sprites(), Backgrounds("training")
    recipe = SceneRecipe(colour_jitter=0.3)
    drawn = [compose_scene(rng, sprites, TRAINING_STYLES, backgrounds, recipe) for _ in range(scenes)]
    images = images_to_tensor([scene.image for scene in drawn])
    latents = model.encode(images).latent_dist.mean
    error = (model.decode(latents).sample.clamp(-1, 1) - images).square().mean() / 4
    model.register_to_config(scaling_factor=float(1 / latents.std()))
    model.save_pretrained(AUTOENCODER_RUN / "best")
    log_line(
        AUTOENCODER_RUN / "log.jsonl",
        scaling_factor=float(1 / latents.std()), psnr=float(-10 * error.log10()),
    )  # fmt: skip
