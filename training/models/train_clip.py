"""CLIP: contrastive training on captions alone.

Two terms, both between images and texts. The first is CLIP's own, on the pooled embedding,
with several positives: with fifty nouns many captions of a batch hold for many of its images,
and calling those negatives would poison it. The second lets the patches answer: each patch must
match one of the words that hold for its image, and each such word must be claimed by some
patches. Which patches is never told; the captions stay the only supervision.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from training.models.checkpoints import AveragedWeights, Clock, load_state, log_line, save_state
from training.models.clip_model import LONGEST_CAPTION, encode_images, encode_texts, new_clip, to_pixels
from training.models.optimizers import new_optimizers
from training.models.tokenizer import kept_tokenizer
from training.paths import CLIP_RUN
from training.quality.localisation import localisation
from training.world.artwork import Sprites, load_sprites
from training.world.backgrounds import Backgrounds
from training.world.captions import caption
from training.world.composition import Scene, SceneRecipe, compose_scene
from training.world.vocabulary import BACKGROUND, NOUN_LIST, SEEN_STYLE, TRAINING_STYLES
from transformers import CLIPModel, CLIPTokenizer

WORDS = (*NOUN_LIST, BACKGROUND)
LEAST_BACKGROUND = 0.15
#: Three sizes of image at about the same cost a batch. Small crops, mostly one object or a part
#: of one, teach what things look like; whole scenes teach what to do among several.
SMALL = SceneRecipe(
    height=32, width=32, fewest_objects=1, most_objects=1, smallest_side=18, largest_side=72,
    least_visible_share=0.2, least_visible_pixels=150, overhang=0.5, colour_jitter=0.3,
)  # fmt: skip
CROP = SceneRecipe(
    height=64, width=64, fewest_objects=1, most_objects=2, smallest_side=22, largest_side=88,
    least_visible_share=0.3, least_visible_pixels=120, overhang=0.35, colour_jitter=0.3,
)  # fmt: skip
SCENE = SceneRecipe(smallest_side=24, largest_side=84, colour_jitter=0.3)
RECIPES: dict[int, SceneRecipe] = {32: SMALL, 64: CROP, 128: SCENE}
BATCHES = {32: 192, 64: 56, 128: 14}
#: How often each size comes, at the start and at the end of training.
SHARES = {32: (0.8, 0.1), 64: (0.15, 0.5), 128: (0.05, 0.4)}
#: The share of crops with nothing in them but background.
EMPTY_SHARE = 0.06
CAPTIONS = 32
#: In logits; about the logarithm of how much commoner background is than one noun.
BACKGROUND_PRIOR = 3.0
#: Peak learning rates of the two optimizers.
RATES = (2e-3, 1e-3)
#: The check while training; the shipped scenes are drawn from other seeds.
CHECK_SEED, CHECK_SCENES = 900_000, 50


def words_of(scene: Scene) -> list[str]:
    """The words that hold for an image: its nouns, and the background where there is some."""
    words = list(scene.nouns)
    if (scene.mask == 0).mean() > LEAST_BACKGROUND:
        words.append(BACKGROUND)
    return words


def multi_positive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross entropy of each row against the uniform distribution over its positives."""
    counts = positive.sum(dim=1)
    rows = counts > 0
    target = positive[rows] / counts[rows, None]
    return -(target * torch.log_softmax(logits[rows], dim=1)).sum(dim=1).mean()


def patch_loss(logits: Tensor, holds: Tensor, claimed: int) -> Tensor:
    """Patches (B, N, W) against words (B, W): stay within the caption, and claim all of it."""
    logs = torch.log_softmax(logits, dim=2)
    within = torch.logsumexp(logs.masked_fill(~holds[:, None, :], -30.0), dim=2)
    best = logs.topk(claimed, dim=1).values.logsumexp(dim=1) - float(np.log(claimed))
    claims = (best * holds).sum(dim=1) / holds.sum(dim=1)
    return -within.mean() - claims.mean()


def clip_loss(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    scenes: Sequence[Scene],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """The two terms of the loss on one batch of images of one size."""
    held = [words_of(scene) for scene in scenes]
    nouns_only = [[word for word in words if word != BACKGROUND] for words in held]
    full = [nouns_only[i] for i in rng.permutation(len(scenes))[:CAPTIONS]]
    texts = [caption(rng, [word]) for word in WORDS] + [caption(rng, nouns) for nouns in full]
    sets = [{word} for word in WORDS] + [set(nouns) or {BACKGROUND} for nouns in full]
    positive = torch.tensor([[wanted <= set(words) for wanted in sets] for words in held])
    side = scenes[0].image.shape[0]
    slack = (128 - side) // 8
    corner = (int(rng.integers(slack + 1)), int(rng.integers(slack + 1)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, patches = encode_images(model, to_pixels([s.image for s in scenes]), corner)
        text = encode_texts(model, tokenizer, texts)
    scale = model.logit_scale.exp().clamp(max=100.0)
    logits = scale * whole @ text.T
    pooled = multi_positive_loss(logits, positive.float())
    pooled = pooled + multi_positive_loss(logits.T, positive.T.float())
    patch_logits = scale * (patches.flatten(0, 1) @ text[: len(WORDS)].T)
    # Nearly every caption may say background and each noun is rare, so patches would learn to say
    # background first of all. Training under that prior leaves what is shipped free of it.
    patch_logits[:, WORDS.index(BACKGROUND)] += BACKGROUND_PRIOR
    claimed = {32: 3, 64: 4, 128: 6}[side]
    holds = positive[:, : len(WORDS)]
    dense = patch_loss(patch_logits.view(len(scenes), -1, len(WORDS)), holds, claimed)
    return pooled, dense


def draw_scenes(rng: np.random.Generator, sprites: Sprites, backgrounds: Backgrounds, progress: float) -> list[Scene]:
    """A batch of images of one size; small ones early, whole scenes late."""
    shares = [(1 - progress) * start + progress * end for start, end in SHARES.values()]
    side = int(rng.choice(list(SHARES), p=np.asarray(shares) / sum(shares)))
    recipe = RECIPES[side]
    empty = replace(recipe, fewest_objects=0, most_objects=0)
    return [
        compose_scene(
            rng, sprites, TRAINING_STYLES, backgrounds,
            empty if side < 128 and rng.random() < EMPTY_SHARE else recipe,
        )
        for _ in range(BATCHES[side])
    ]  # fmt: skip


def train_clip(minutes: float, seed: int = 0) -> None:
    """The step `clip`: resumes where it stopped; checks and saves every five minutes."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = kept_tokenizer(CLIP_RUN / "tokenizer", merges=600, longest=LONGEST_CAPTION)
    model = new_clip(tokenizer)
    # Twice as fast here as the fused kernel, whose CPU version is slow for narrow heads.
    model.set_attn_implementation("eager")
    optimizers = new_optimizers(model, lambda name: ".layers." in name or "_projection." in name, RATES)
    average = AveragedWeights(model, decay=0.995)
    state = load_state(CLIP_RUN / "state.pt")
    step, spent, best = 0, 0.0, 0.0
    if state is not None:
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        average.values = state["average"]
        step, spent, best = state["step"], state["spent"], state["best"]
    clock = Clock(minutes, spent)
    sprites, backgrounds = load_sprites(), Backgrounds("training")
    rng = np.random.default_rng([seed, step])
    check_rng = np.random.default_rng(CHECK_SEED)
    check_recipe = SceneRecipe(first_drawing_only=True)
    check_backgrounds = Backgrounds("evaluation")
    check = [
        compose_scene(check_rng, sprites, (SEEN_STYLE,), check_backgrounds, check_recipe) for _ in range(CHECK_SCENES)
    ]
    checked_model = new_clip(tokenizer).eval()
    log = CLIP_RUN / "log.jsonl"
    next_check = clock.spent + 60 if step == 0 else clock.spent + 300
    sums = np.zeros(3)
    while clock.progress < 1:
        cosine = 0.5 * (1 + math.cos(math.pi * clock.progress))
        for optimizer, rate in zip(optimizers, RATES, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * cosine)
        scenes = draw_scenes(rng, sprites, backgrounds, clock.progress)
        pooled, dense = clip_loss(model, tokenizer, scenes, rng)
        model.zero_grad(set_to_none=True)
        (pooled + dense).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        step += 1
        average.update(model, step)
        sums += (pooled.item(), dense.item(), 1)
        finished = clock.progress >= 1
        if step % 50 == 0:
            mean = sums[:2] / sums[2]
            log_line(log, step=step, minutes=clock.spent / 60, pooled=mean[0], dense=mean[1])
            sums[:] = 0
        if clock.spent >= next_check or finished:
            next_check = clock.spent + 300
            checked_model.load_state_dict(average.values)
            own, everything = localisation(checked_model, tokenizer, check)
            log_line(log, step=step, minutes=clock.spent / 60, miou_own=own, miou_all=everything)
            if own >= best:
                best = own
                checked_model.save_pretrained(CLIP_RUN / "best")
            save_state(
                CLIP_RUN / "state.pt",
                {
                    "model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "average": average.values, "step": step, "spent": clock.spent, "best": best,
                },
            )  # fmt: skip
