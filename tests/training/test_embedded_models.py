"""The weights that ship: small, safe to load, in the hub's layout, and of use."""

import itertools
import json
from importlib import resources

import numpy as np
import pytest
import torch
from training.models.train_clip import new_clip
from training.quality.localisation import localisation
from training.world.composition import Scene
from training.world.vocabulary import NOUN_LIST

from nerve_kernels.evaluation import EmbeddedScenes, MeanIoU

EMBEDDED = resources.files("nerve_kernels.segmentation").joinpath("embedded")
pytestmark = pytest.mark.skipif(
    not EMBEDDED.joinpath("clip", "config.json").is_file(), reason="the embedded models were not built"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with resources.as_file(EMBEDDED) as path:
        yield path


@pytest.fixture(scope="module")
def clip(folder):
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32).eval()
    return model, CLIPTokenizer.from_pretrained(folder / "clip")


def test_weights_are_safetensors_below_the_limit(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 4
    assert sum(path.stat().st_size for path in weights) <= 16_000_000
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]


def test_clip_is_small_and_fine_grained(clip):
    model, tokenizer = clip
    assert sum(p.numel() for p in model.parameters()) <= 4_000_000
    assert model.config.vision_config.patch_size == 8
    assert model.config.vision_config.image_size == 128
    assert len(tokenizer) == model.config.text_config.vocab_size
    assert tokenizer.model_max_length == model.config.text_config.max_position_embeddings


def test_clip_is_what_the_training_code_builds(clip):
    model, tokenizer = clip
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert shapes == {name: value.shape for name, value in new_clip(tokenizer).state_dict().items()}


def test_both_forms_of_the_tokenizer_agree(folder, clip):
    from transformers import CLIPTokenizer

    merges = (folder / "clip" / "merges.txt").read_text().splitlines()
    assert merges[0].startswith("#version")
    again = CLIPTokenizer(
        vocab=json.loads((folder / "clip" / "vocab.json").read_text()),
        merges=[tuple(line.split(" ")) for line in merges[1:]],
    )
    for text in ("a picture of a cat and an umbrella.", "Zebra 42", *NOUN_LIST):
        assert again(text).input_ids == clip[1](text).input_ids


def test_image_processor_keeps_a_scene_as_it_is(folder):
    from transformers.image_processing_utils import BaseImageProcessor

    numbers = BaseImageProcessor.get_image_processor_dict(folder / "clip")[0]
    assert numbers["size"] == {"shortest_edge": 128}
    assert numbers["image_mean"] == numbers["image_std"] == [0.5, 0.5, 0.5]


def test_patches_find_named_objects(clip):
    model, tokenizer = clip
    some = itertools.islice(EmbeddedScenes("validation"), 12)
    scenes = [Scene(np.asarray(scene.image), scene.mask, scene.names) for scene in some]
    own, everything = localisation(model, tokenizer, scenes)
    # Guessing gives about 0.1 with a scene's own labels and 0.01 with all fifty.
    assert own > 0.35
    assert everything > 0.12


def test_unet_has_self_attention_at_the_promised_grids(folder):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "diffusion", subfolder="unet", torch_dtype=torch.float32)
    assert 1_500_000 <= sum(p.numel() for p in unet.parameters()) <= 3_000_000
    tokens = {}
    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            module.to_q.register_forward_hook(
                lambda module, inputs, output, name=name: tokens.__setitem__(name, output.shape[1])
            )
    with torch.no_grad():
        unet(torch.zeros(1, 4, 32, 32), 100, torch.zeros(1, 16, unet.config.cross_attention_dim))
    assert set(tokens.values()) == {32 * 32, 16 * 16, 8 * 8}
    assert all(name in tokens for name in ("down_blocks.0.attentions.0.transformer_blocks.0.attn1",))


@pytest.fixture(scope="module")
def stable_diffusion(folder):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder / "diffusion", torch_dtype=torch.float32)


@torch.no_grad()
def test_folder_is_a_whole_stable_diffusion_checkpoint_that_denoises(stable_diffusion):
    pipe = stable_diffusion
    assert pipe.vae_scale_factor == 4
    picture = torch.from_numpy(np.array(EmbeddedScenes("validation")[0].image))
    pixels = picture.permute(2, 0, 1)[None].float() / 127.5 - 1
    mean = pipe.vae.encode(pixels).latent_dist.mean
    rebuilt = pipe.vae.decode(mean).sample.clamp(-1, 1)
    assert -10 * ((rebuilt - pixels).square().mean() / 4).log10() > 20  # dB
    latent = mean * pipe.vae.config.scaling_factor
    length = pipe.tokenizer.model_max_length
    prompt = pipe.text_encoder(
        pipe.tokenizer("", padding="max_length", max_length=length, return_tensors="pt").input_ids
    )
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    for timestep, largest in ((100, 0.4), (500, 0.1)):
        noisy = pipe.scheduler.add_noise(latent, noise, torch.tensor([timestep]))
        predicted = pipe.unet(noisy, timestep, prompt[0]).sample
        # Predicting nothing has an error of 1.
        assert (predicted - noise).square().mean() < largest


def test_demo_pictures_go_with_their_labels(folder):
    from PIL import Image

    document = json.loads((folder / "demo" / "labels.json").read_text())
    assert {entry["file"] for entry in document["images"]} == {path.name for path in folder.glob("demo/*.png")}
    assert [entry["style"] for entry in document["images"]].count("fluent") == 1
    for entry in document["images"]:
        assert set(entry["labels"]) <= {"background", *NOUN_LIST}
        with Image.open(folder / "demo" / entry["file"]) as picture:
            assert picture.size == (192, 128)


def test_metric_is_the_one_of_training():
    from training.quality.localisation import mean_iou

    truth = torch.tensor([0, 0, 1, 1, 2, 2])
    guess = torch.tensor([0, 1, 1, 1, 2, 0])
    metric = MeanIoU(["a", "b", "c"])
    metric.update(guess, truth)
    assert metric.compute().miou == pytest.approx(mean_iou(metric.confusion.compute().numpy()))
