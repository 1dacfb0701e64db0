"""Diffusion transformers as the source of attention: what they are told, their prompts, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tests.cli.command_line import run_main, written
from tests.segmentation.tiny_checkpoints import (
    DIFFUSION_TRANSFORMERS,
    copy_with_config,
    copy_with_weights,
    make_diffusion_transformer,
    spoilt,
)

from nerve_kernels.segmentation import NerveConfig, NervePipeline
from nerve_kernels.segmentation.attention.diffusion_transformer import DiffusionTransformerFeatures
from nerve_kernels.segmentation.attention.diffusion_transformer_loading import save_empty_prompt
from nerve_kernels.segmentation.images import to_tensor
from nerve_kernels.segmentation.loading import ModelLoadError

SD3, FLUX, FLUX_2, PIXART = DIFFUSION_TRANSFORMERS
CONFIG = NerveConfig(
    diffusion_size=64, layers=("*",), clip_size=32, clip_window=None, window=3, cells=2, templates="name"
)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {kind: tmp_path_factory.mktemp(kind) for kind in DIFFUSION_TRANSFORMERS}
    for kind, folder in found.items():
        make_diffusion_transformer(folder, kind)
    return found


@pytest.fixture(scope="module")
def sources(folders):
    return {
        kind: DiffusionTransformerFeatures.from_pretrained(folder, device="cpu") for kind, folder in folders.items()
    }


@pytest.mark.parametrize("kind", DIFFUSION_TRANSFORMERS)
def test_the_command_segments_an_image_that_is_not_square(folders, clip_folder, wide_image, tmp_path, capsys, kind):
    wide_image.save(tmp_path / "wide.png")
    CONFIG.save(tmp_path / "config.json")
    models = ["--diffusion", folders[kind], "--clip", clip_folder, "--config", tmp_path / "config.json"]
    arguments = [tmp_path / "wide.png", "-q", "-l", "cat, dog, grass", "-o", tmp_path / "out", "--device", "cpu"]
    code, _, err = run_main(capsys, *arguments, *models)
    assert (code, err) == (0, "")
    assert written(tmp_path / "out") == ["wide.json", "wide_labels.png", "wide_overlay.png"]


def test_layers_lie_on_the_grid_of_tokens(sources, clip, wide_image):
    for kind, source in sources.items():
        pipeline = NervePipeline(attention=source, text_image=clip, config=CONFIG)
        features = pipeline.encode(wide_image)
        assert features.grid == (8, 12)
        assert [layer.name for layer in features.layers] == [layer.name for layer in source.layers], kind
        assert {layer.shrink for layer in source.layers} == {1 if kind == FLUX_2 else 2}
        assert pipeline.segment(features, "cat, dog").token_probabilities.isfinite().all()


def told(source, latent, timestep):
    """What the transformer is called with."""
    seen = {}

    def forward(**arguments):
        seen.update(arguments)
        return (arguments["hidden_states"],)

    original, source.transformer.forward = source.transformer.forward, forward
    try:
        source.denoise(latent, timestep)
    finally:
        source.transformer.forward = original
    return seen


def latents(channels: int) -> torch.Tensor:
    return torch.randn(2, channels, 8, 12, generator=torch.Generator().manual_seed(1))


def test_flux_is_told_what_its_pipeline_tells_it(sources):
    from diffusers import FluxPipeline

    latent, source = latents(4), sources[FLUX]
    seen = told(source, latent, 250)
    assert torch.equal(seen["hidden_states"], FluxPipeline._pack_latents(latent, 2, 4, 8, 12))
    ids = FluxPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32)
    assert torch.equal(seen["img_ids"], ids)
    assert torch.equal(seen["txt_ids"], torch.zeros(256, 3))
    assert seen["timestep"].tolist() == [0.25, 0.25]
    assert seen["guidance"] is None
    assert seen["pooled_projections"].shape == (2, 32)
    assert seen["encoder_hidden_states"].shape == (2, 256, 24)


def test_flux_with_guidance_is_told_a_scale_and_reads_longer_prompts(tmp_path, wide_image):
    make_diffusion_transformer(tmp_path / "dev", FLUX, guidance_embeds=True)
    source = DiffusionTransformerFeatures.from_pretrained(tmp_path / "dev", device="cpu")
    assert told(source, latents(4), 0)["guidance"].tolist() == [3.5, 3.5]
    assert source.empty_prompt.shape == (1, 512, 24)
    assert len(source([wide_image], CONFIG)[0]) == 2


def test_flux_2_is_told_what_its_pipeline_tells_it(sources, wide_image):
    from diffusers import Flux2Pipeline

    source = sources[FLUX_2]
    latent = source.encode(wide_image, short_side=64)
    with torch.no_grad():
        mean = source.vae.encode(to_tensor(wide_image, (64, 96)) * 2 - 1).latent_dist.mean
    bn = source.vae.bn
    patches = Flux2Pipeline._patchify_latents(mean)
    scale = torch.sqrt(bn.running_var + source.vae.config.batch_norm_eps)
    expected = (patches - bn.running_mean.view(1, -1, 1, 1)) / scale.view(1, -1, 1, 1)
    torch.testing.assert_close(latent, expected)
    seen = told(source, latent, 500)
    assert torch.equal(seen["hidden_states"], Flux2Pipeline._pack_latents(latent))
    assert torch.equal(seen["img_ids"], Flux2Pipeline._prepare_latent_ids(latent)[0].float())
    assert torch.equal(seen["txt_ids"], Flux2Pipeline._prepare_text_ids(source.empty_prompt)[0].float())
    assert seen["guidance"].tolist() == [4.0]


def test_stable_diffusion_3_and_pixart_are_told_timesteps(sources):
    assert told(sources[SD3], latents(4), 100)["timestep"].tolist() == [100, 100]
    seen = told(sources[PIXART], latents(4), 100)
    assert seen["timestep"].tolist() == [100, 100]
    assert seen["added_cond_kwargs"]["resolution"].tolist() == [[64, 96], [64, 96]]
    assert "pooled_projections" not in seen


def test_latents_are_shifted_scaled_and_mixed_with_noise_along_a_line(sources, wide_image):
    source = sources[SD3]
    latent = source.encode(wide_image, short_side=64)
    with torch.no_grad():
        mean = source.vae.encode(to_tensor(wide_image, (64, 96)) * 2 - 1).latent_dist.mean
    torch.testing.assert_close(latent, (mean - 0.25) * 1.5)
    noisy = source.add_noise(torch.cat([latent, latent]), 300, torch.Generator().manual_seed(3))
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    for one in noisy:  # images of a batch have the same noise
        torch.testing.assert_close(one[None], 0.7 * latent + 0.3 * noise)
    assert sources[PIXART].scheduler.alphas_cumprod.shape == (1000,)
    with pytest.raises(ValueError, match="timesteps: expected an int from 0 to 999 for this schedule, got 1000"):
        source.check(CONFIG.replace(timesteps=(1000,)))


def t5_of(folder, length):
    from transformers import T5EncoderModel

    encoder = T5EncoderModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        return encoder(torch.tensor([[1] + [0] * (length - 1)])).last_hidden_state.float()


def test_prompts_are_what_their_encoders_say(folders, sources):
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def clip(kind, folder, number=""):
        ids = CLIPTokenizer.from_pretrained(folder / f"tokenizer{number}")
        ids = ids("", padding="max_length", max_length=16, return_tensors="pt").input_ids
        with torch.no_grad():
            return kind.from_pretrained(folder / f"text_encoder{number}").eval()(ids, output_hidden_states=True)

    first, second = (clip(CLIPTextModelWithProjection, folders[SD3], number) for number in ("", "_2"))
    states = sources[SD3].empty_prompt
    torch.testing.assert_close(states[:, :16, :32], first.hidden_states[-2])
    torch.testing.assert_close(states[:, :16, 32:64], second.hidden_states[-2])
    assert not states[:, :16, 64:].any()
    torch.testing.assert_close(states[:, 16:], t5_of(folders[SD3] / "text_encoder_3", 256))
    torch.testing.assert_close(sources[SD3].pooled_prompt, torch.cat([first.text_embeds, second.text_embeds], dim=-1))
    torch.testing.assert_close(sources[FLUX].empty_prompt, t5_of(folders[FLUX] / "text_encoder_2", 256))
    torch.testing.assert_close(sources[FLUX].pooled_prompt, clip(CLIPTextModel, folders[FLUX]).pooler_output)
    torch.testing.assert_close(sources[PIXART].empty_prompt, t5_of(folders[PIXART] / "text_encoder", 1))


@pytest.mark.parametrize("kind", [SD3, FLUX, PIXART])
def test_a_saved_prompt_stands_for_the_text_encoders(folders, sources, tmp_path, kind):
    folder = shutil.copytree(folders[kind], tmp_path / "without")
    file = save_empty_prompt(folders[kind], folder, device="cpu")
    assert file == folder / "empty_prompt.safetensors"
    for part in folder.glob("t*e*_*"):
        if part.name != "transformer":
            shutil.rmtree(part)
    shutil.rmtree(folder / "text_encoder", ignore_errors=True)
    source = DiffusionTransformerFeatures.from_pretrained(folder, device="cpu")
    assert torch.equal(source.empty_prompt, sources[kind].empty_prompt)
    assert source.fingerprint() == sources[kind].fingerprint()
    file.unlink()
    with pytest.raises(ModelLoadError, match=r"diffusion: the folder .*text_encoder.* does not exist"):
        DiffusionTransformerFeatures.from_pretrained(folder, device="cpu")


def test_prompts_that_do_not_fit_are_refused(folders, tmp_path):
    from safetensors.torch import save_file

    folder = shutil.copytree(folders[FLUX_2], tmp_path / "flux")
    file = folder / "empty_prompt.safetensors"
    for held, said in [
        ({"prompt_embeds": torch.zeros(1, 6, 23)}, "prompt_embeds: expected 24 wide, as the transformer takes, got 23"),
        ({"states": torch.zeros(1, 6, 24)}, r"expected prompt_embeds \(1, length, D\).*, got {'states': \(1, 6, 24\)}"),
        ({"prompt_embeds": torch.full((1, 6, 24), torch.nan)}, "answers NaN or infinity to the empty prompt"),
    ]:
        save_file(held, file)
        with pytest.raises((ModelLoadError, ValueError), match=said):
            DiffusionTransformerFeatures.from_pretrained(folder, device="cpu")
    file.write_bytes(b"no tensors")
    with pytest.raises(ModelLoadError, match=r"empty_prompt\.safetensors cannot be read"):
        DiffusionTransformerFeatures.from_pretrained(folder, device="cpu")
    file.unlink()
    with pytest.raises(ModelLoadError, match=r"expected empty_prompt\.safetensors in the checkpoint's folder"):
        DiffusionTransformerFeatures.from_pretrained(folder, device="cpu")


def test_incomplete_and_absurd_checkpoints_are_refused_by_name(folders, tmp_path):
    def load(folder):
        return DiffusionTransformerFeatures.from_pretrained(folder, device="cpu")

    def without(weights):
        return {name: part for name, part in weights.items() if name != "transformer_blocks.1.attn.to_q.weight"}

    broken = copy_with_weights(folders[SD3], tmp_path / "missing", WEIGHTS, without)
    with pytest.raises(ModelLoadError, match=r"\(transformer\): .*missing: transformer_blocks\.1\.attn\.to_q\.weight"):
        load(broken)
    for number, (field, value, said) in enumerate(
        [
            ("num_layers", 10**9, r"num_layers: expected 0 to 256, got 1000000000"),
            ("attention_head_dim", 16384, r"describes at least \d+ numbers, but its weights are \d+ bytes in all"),
            ("_class_name", "SanaTransformer2DModel", r"expected _class_name one of SD3.*, got SanaTransformer2DModel"),
        ]
    ):
        changed = copy_with_config(folders[SD3], tmp_path / str(number), "transformer/config.json", **{field: value})
        with pytest.raises(ModelLoadError, match=said):
            load(changed)
    deep = copy_with_config(folders[FLUX], tmp_path / "deep", "text_encoder_2/config.json", d_ff=2**18, num_layers=256)
    with pytest.raises(ModelLoadError, match=r"\(text_encoder_2\): config\.json describes at least"):
        load(deep)
    marks = copy_with_config(folders[FLUX], tmp_path / "marks", "text_encoder_2/config.json", eos_token_id=99)
    with pytest.raises(ModelLoadError, match="eos_token_id, pad_token_id: expected tokens of its vocabulary"):
        load(marks)


def test_parts_of_different_checkpoints_are_refused(sources):
    source = sources[FLUX]
    parts = {name: getattr(source, name) for name in ("transformer", "scheduler", "empty_prompt", "pooled_prompt")}
    with pytest.raises(ValueError, match=r"diffusion: vae: expected 16 channels, as the transformer takes, got 64"):
        DiffusionTransformerFeatures(**parts, vae=sources[FLUX_2].vae)
    parts |= {"vae": source.vae, "pooled_prompt": None}
    with pytest.raises(ValueError, match="pooled_prompt_embeds: expected 32 wide, as the transformer takes, got None"):
        DiffusionTransformerFeatures(**parts)


def test_damaged_text_encoders_are_refused(folders, tmp_path):
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    broken = copy_with_weights(folders[PIXART], tmp_path / "nan", "text_encoder/model.safetensors", spoilt(name))
    with pytest.raises(ModelLoadError, match="answers NaN or infinity to the empty prompt"):
        DiffusionTransformerFeatures.from_pretrained(broken, device="cpu")


def test_sizes_beyond_its_positions_are_refused(sources):
    with pytest.raises(ValueError, match="diffusion_size: expected at most 128, for which this model has positions"):
        sources[SD3].check(CONFIG.replace(diffusion_size=256))


def test_a_fingerprint_follows_the_prompt(sources):
    source = sources[FLUX]
    parts = {name: getattr(source, name) for name in ("transformer", "vae", "scheduler", "pooled_prompt")}
    other = DiffusionTransformerFeatures(**parts, empty_prompt=source.empty_prompt + 1)
    assert other.fingerprint() != source.fingerprint()
    assert json.dumps(other.settings())
