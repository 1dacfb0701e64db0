import math

import pytest
import torch
from PIL import Image
from tests.segmentation.tiny_checkpoints import make_stable_diffusion

from nerve_kernels.segmentation import NerveConfig
from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures
from nerve_kernels.segmentation.loading import ModelLoadError

LATENT = (1, 4, 12, 18)


def latent() -> torch.Tensor:
    return torch.randn(LATENT, generator=torch.Generator().manual_seed(0))


def no_hooks_left(unet: torch.nn.Module) -> bool:
    return not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_layers_are_listed_in_the_order_in_which_they_run(diffusion):
    places = [(layer.name.split(".attentions")[0], layer.shrink) for layer in diffusion.layers]
    assert places == [
        ("down_blocks.0", 1),
        ("down_blocks.1", 2),
        ("mid_block", 2),
        ("up_blocks.0", 2),
        ("up_blocks.0", 2),
        ("up_blocks.1", 1),
        ("up_blocks.1", 1),
    ]
    assert no_hooks_left(diffusion.unet)


def test_without_early_stop_the_output_is_bit_identical(diffusion):
    names = [layer.name for layer in diffusion.layers]
    plain = diffusion.denoise(latent(), 100)
    answers = []
    captured = diffusion.capture_run(lambda: answers.append(diffusion.denoise(latent(), 100)), names, stop_early=False)
    assert torch.equal(plain, answers[0])
    assert [layer.name for layer in captured] == names
    assert no_hooks_left(diffusion.unet)


def test_early_stop_ends_the_pass_and_captures_the_same(diffusion, generator):
    names = [layer.name for layer in diffusion.layers if layer.name.startswith("down_blocks")]
    later: list[str] = []
    handle = diffusion.unet.mid_block.register_forward_hook(lambda *_: later.append("mid_block"))
    try:

        def run():
            return diffusion.denoise(latent(), 100)

        early = diffusion.capture_run(run, names)
        assert later == []
        whole = diffusion.capture_run(run, names, stop_early=False)
        assert later == ["mid_block"]
    finally:
        handle.remove()
    for one, other in zip(early, whole, strict=True):
        assert torch.equal(one.q, other.q)
        assert torch.equal(one.k, other.k)
    assert no_hooks_left(diffusion.unet)


def test_hooks_are_removed_when_the_pass_fails(diffusion):
    def fail():
        diffusion.denoise(latent(), 100)
        raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"):
        diffusion.capture_run(fail, [diffusion.layers[0].name], stop_early=False)
    assert no_hooks_left(diffusion.unet)


def test_captured_queries_and_keys_are_those_of_the_attention(diffusion):
    """softmax(q kᵀ / √d) v, put through the output map, is what the layer itself returns."""
    name = diffusion.layers[-1].name
    attention = diffusion.unet.get_submodule(name)
    seen = {}
    handles = [
        attention.register_forward_hook(lambda _, __, output: seen.update(output=output)),
        attention.to_v.register_forward_hook(lambda _, __, output: seen.update(v=output)),
    ]
    try:
        (layer,) = diffusion.capture_run(lambda: diffusion.denoise(latent(), 100), [name], stop_early=False)
    finally:
        for handle in handles:
            handle.remove()
    v = seen["v"].unflatten(-1, (layer.q.shape[1], -1)).transpose(1, 2)
    weights = (layer.q @ layer.k.transpose(-1, -2) / math.sqrt(layer.q.shape[-1])).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.to_out[0](mixed), seen["output"], atol=1e-5, rtol=1e-4)


def test_attention_that_is_not_seen_is_refused_with_what_to_call(diffusion, generator):
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    diffusion.unet.set_attn_processor(AttnProcessor())
    try:
        with pytest.raises(RuntimeError, match=r"set_attn_processor\(AttnProcessor2_0\(\)\)"):
            diffusion.capture(latent(), timesteps=[100], layers=["latent/2"], generator=generator)
    finally:
        diffusion.unet.set_attn_processor(AttnProcessor2_0())


def test_captured_tensors_are_views_on_the_right_grids(diffusion, generator):
    captured = diffusion.capture(latent(), timesteps=[10, 300], layers=["latent/1", "mid_block"], generator=generator)
    assert [layer.timestep for layer in captured] == [10] * 4 + [300] * 4
    for layer in captured:
        grid = (6, 9) if layer.name.startswith("mid_block") else (12, 18)
        assert layer.grid == grid
        assert layer.q.shape == layer.k.shape == (1, 2, grid[0] * grid[1], layer.q.shape[-1])
        assert layer.q.stride(1) == layer.q.shape[-1]  # heads side by side: a view, not a copy
        assert not layer.q.requires_grad


def test_odd_latents_keep_their_true_grids(diffusion, generator):
    """The UNet rounds halves up; the grid is what the block saw, not a guess from the size."""
    odd = torch.randn(1, 4, 11, 7, generator=generator)
    for layer in diffusion.capture(odd, timesteps=[0], layers=["*"], generator=generator):
        assert layer.grid in ((11, 7), (6, 4))


def test_batches(diffusion, generator):
    captured = diffusion.capture(
        torch.cat([latent(), latent()]), timesteps=[0], layers=["mid_block"], generator=generator
    )
    assert captured[0].q.shape[0] == 2


def test_the_same_seed_means_the_same_noise(diffusion):
    def capture(seed: int):
        made = torch.Generator().manual_seed(seed)
        return diffusion.capture(latent(), timesteps=[100, 100], layers=["mid_block"], generator=made)

    one, other, different = capture(1), capture(1), capture(2)
    assert torch.equal(one[0].q, other[0].q)
    assert torch.equal(one[1].q, other[1].q)
    assert not torch.equal(one[0].q, one[1].q)  # fresh noise for each timestep
    assert not torch.equal(one[0].q, different[0].q)


def test_noise_follows_the_schedule(diffusion):
    alphas = diffusion.scheduler.alphas_cumprod
    noisy = diffusion.add_noise(latent(), 400, torch.Generator().manual_seed(4))
    noise = torch.randn(LATENT, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(noisy, alphas[400].sqrt() * latent() + (1 - alphas[400]).sqrt() * noise)
    # The checkpoint's own betas, read from its PNDM config.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(alphas, (1 - betas).cumprod(0))


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_a_timestep_outside_the_schedule_is_refused(diffusion, generator, timestep):
    with pytest.raises(
        ValueError, match=rf"timesteps: expected an int from 0 to 999 for this schedule, got {timestep}"
    ):
        diffusion.add_noise(latent(), timestep, generator)


def test_latent_is_the_scaled_mean(diffusion, wide_image):
    encoded = diffusion.encode(wide_image, short_side=48)
    assert encoded.shape == (1, 4, 12, 18)
    assert torch.equal(encoded, diffusion.encode(wide_image, short_side=48))  # nothing is drawn
    from nerve_kernels.segmentation.images import to_tensor

    with torch.no_grad():
        wanted = diffusion.vae.encode(to_tensor(wide_image, (48, 72)) * 2 - 1).latent_dist.mean
    torch.testing.assert_close(encoded, wanted * diffusion.vae.config.scaling_factor)


@pytest.mark.parametrize(
    ("size", "short_side", "wanted"),
    [
        ((60, 90), 48, (48, 72)),
        ((90, 60), 48, (72, 48)),
        ((500, 375), 50, (64, 48)),
        ((1, 1), 48, (48, 48)),
        ((64, 64), 1, (8, 8)),
        ((10, 160), 64, (32, 512)),  # 16 : 1 gets the area of 4 : 1
    ],
)
def test_image_sizes_are_multiples_of_what_the_unet_needs(diffusion, size, short_side, wanted):
    assert (diffusion.latent_factor, diffusion.latent_multiple) == (4, 2)
    assert diffusion.image_size(size, short_side) == wanted


def test_other_schedulers_give_the_same_noise(diffusion_folder, diffusion, tmp_path):
    """SD-turbo's folder names an Euler scheduler, whose own noise is scaled otherwise."""
    import json
    import shutil

    folder = shutil.copytree(diffusion_folder, tmp_path / "euler")
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    config["_class_name"] = "EulerDiscreteScheduler"
    path.write_text(json.dumps(config))
    euler = DiffusionFeatures.from_pretrained(folder, device="cpu")
    torch.testing.assert_close(euler.scheduler.alphas_cumprod, diffusion.scheduler.alphas_cumprod)


def test_low_precision(diffusion_folder, wide_image):
    low = DiffusionFeatures.from_pretrained(diffusion_folder, device="cpu", dtype="bfloat16")
    (captured,) = low([wide_image], NerveConfig(diffusion_size=48, timesteps=(100,), layers=("mid_block",)))
    assert captured[0].q.dtype == torch.bfloat16
    half = DiffusionFeatures.from_pretrained(diffusion_folder, device="cpu", dtype=torch.float16)
    assert half.unet.dtype == torch.float16
    assert half.vae.dtype == torch.float32  # the first VAEs overflow float16


def test_checkpoints_of_another_kind_are_refused(diffusion):
    from diffusers import UNet2DConditionModel

    parts = {"vae": diffusion.vae, "scheduler": diffusion.scheduler, "empty_prompt": diffusion.empty_prompt}
    inpainting = UNet2DConditionModel.from_config({**diffusion.unet.config, "in_channels": 9})
    with pytest.raises(ValueError, match=r"takes 9 channels .* latent has 4"):
        DiffusionFeatures(unet=inpainting, **parts)
    larger = UNet2DConditionModel.from_config(
        {
            **diffusion.unet.config,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        }
    )
    with pytest.raises(ValueError, match=r"wanted a Stable Diffusion 1\.x, 2\.x or XL"):
        DiffusionFeatures(unet=larger, **parts)


def test_fused_projections_give_the_same(tmp_path):
    make_stable_diffusion(tmp_path)
    features = DiffusionFeatures.from_pretrained(tmp_path, device="cpu")
    names = [features.layers[0].name]

    def run():
        return features.denoise(latent(), 0)

    (apart,) = features.capture_run(run, names)
    features.unet.fuse_qkv_projections()
    (fused,) = features.capture_run(run, names)
    torch.testing.assert_close(fused.q, apart.q)
    torch.testing.assert_close(fused.k, apart.k)


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(ModelLoadError, match=r"diffusion: the folder .*nowhere"):
        DiffusionFeatures.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "unet").mkdir()
    with pytest.raises(ModelLoadError, match=r"diffusion: cannot load .*\(unet\): .*complete checkpoint"):
        DiffusionFeatures.from_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"diffusion: cannot load a/b \(unet\) from the Hugging Face hub"):
        DiffusionFeatures.from_pretrained("a/b")


def test_calling_it_is_encoding_and_capturing_with_the_same_noise_for_each_image(diffusion, wide_image, generator):
    images = [wide_image, Image.new("RGB", (40, 30)), wide_image]
    found = diffusion(images, NerveConfig(diffusion_size=32, timesteps=(5,), layers=(8,), noise_seed=7))
    assert [{layer.grid for layer in captured} for captured in found] == [{(8, 12)}, {(8, 10)}, {(8, 12)}]
    latent = diffusion.encode(wide_image, short_side=32)
    wanted = diffusion.capture(latent, timesteps=(5,), layers=(8,), generator=generator)  # whose seed is 7
    for captured in (found[0], found[2]):
        for layer, other in zip(captured, wanted, strict=True):
            torch.testing.assert_close(layer.q, other.q, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(layer.k, other.k, atol=1e-5, rtol=1e-4)
