"""Checkpoints that are incomplete, absurd or hostile: refused by name, before they cost memory or give an answer."""

from __future__ import annotations

import json
import re

import pytest
import torch
from tests.segmentation.tiny_checkpoints import (
    CLIP_WEIGHTS,
    TEXT_WEIGHTS,
    UNET_WEIGHTS,
    VAE_WEIGHTS,
    copy_with_config,
    copy_with_weights,
)

from nerve_kernels.segmentation.attention.diffusion import DiffusionFeatures
from nerve_kernels.segmentation.checkpoints.configs import BOUNDS, MAX_FILE_BYTES, least_parameters
from nerve_kernels.segmentation.checkpoints.weights import check_keys
from nerve_kernels.segmentation.loading import ModelLoadError
from nerve_kernels.segmentation.text_image.clip import DenseClip

FILES = [CLIP_WEIGHTS, TEXT_WEIGHTS, UNET_WEIGHTS, VAE_WEIGHTS]


@pytest.fixture
def load(clip_folder, diffusion_folder, tmp_path):
    """Copy a checkpoint, change one file of it, and load it."""

    def load(copy, file, *arguments, **changes):
        is_clip = "/" not in file
        checkpoint = clip_folder if is_clip else diffusion_folder
        folder = copy(checkpoint, tmp_path / "copy", file, *arguments, **changes)
        return (DenseClip if is_clip else DiffusionFeatures).from_pretrained(folder, device="cpu")

    return load


def assert_same_weights(models, expected):
    for model, other in zip(models, expected, strict=True):
        assert dict(model.named_parameters()).keys() == dict(other.named_parameters()).keys()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, other.get_parameter(name))


def without(*names):
    return lambda weights: {key: value for key, value in weights.items() if not any(name in key for name in names)}


def renamed(weights):
    return {f"other.{key}": value for key, value in weights.items()}


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (CLIP_WEIGHTS, without("visual_projection"), "missing: visual_projection.weight."),
        (
            CLIP_WEIGHTS,
            without("vision_model.encoder.layers.1."),
            r"missing: vision_model.encoder.layers.1\..* and 13 more",
        ),
        (CLIP_WEIGHTS, without("text_projection", "logit_scale"), "missing: logit_scale, text_projection.weight"),
        (CLIP_WEIGHTS, renamed, r"missing: logit_scale, .* and 91 more"),
        (TEXT_WEIGHTS, without("encoder.layers.1.mlp.fc1.bias"), "missing: .*encoder.layers.1.mlp.fc1.bias"),
        (TEXT_WEIGHTS, renamed, r"missing: .*position_embedding.weight, .* and 33 more"),
        (UNET_WEIGHTS, without("mid_block.attentions.0.norm.bias"), "missing: mid_block.attentions.0.norm.bias"),
        (UNET_WEIGHTS, renamed, r"missing: conv_in.bias, conv_in.weight, .* and 283 more"),
        (VAE_WEIGHTS, without("encoder.conv_in"), "missing: encoder.conv_in.bias, encoder.conv_in.weight"),
        (VAE_WEIGHTS, renamed, r"missing: decoder.conv_in.bias, .* and 149 more"),
    ],
)
def test_missing_weights_are_named(load, file, change, said):
    part = re.escape(f" ({file.partition('/')[0]})") if "/" in file else ""
    with pytest.raises(ModelLoadError, match=rf"cannot load \S+{part}: its weights are not those .*{said}"):
        load(copy_with_weights, file, change)


@pytest.mark.parametrize("file", FILES)
def test_weights_of_another_shape_are_named(load, file):
    found = []

    def cut(weights):
        name = min(key for key, value in weights.items() if value.dim() == 2)
        found.append(f"{name.removeprefix('text_model.') if file == TEXT_WEIGHTS else name} ")
        rows, columns = weights[name].shape
        found.append(f"({rows - 1}x{columns}, expected {rows}x{columns})")
        return {**weights, name: weights[name][:-1].clone()}

    with pytest.raises(ModelLoadError, match="of another shape: ") as caught:
        load(copy_with_weights, file, cut)
    assert all(words in str(caught.value) for words in found)


def test_keys_are_named_in_the_order_of_their_names():
    found = {
        "missing_keys": {"b.weight", "a.weight"},
        "mismatched_keys": {("a.scale", (9,), (4,)), ("b.scale", (2,), (4,))},
        "unexpected_keys": [],
    }
    with pytest.raises(
        ValueError, match=r"missing: a.weight, b.weight; of another shape: a.scale \(9, .*b.scale \(2, "
    ):
        check_keys(torch.nn.Module(), found)


@pytest.mark.parametrize(
    ("file", "extra"),
    [
        (CLIP_WEIGHTS, "vision_model.encoder.layers.3.mlp.fc1.bias"),
        (UNET_WEIGHTS, "up_blocks.2.resnets.0.conv1.bias"),
        (VAE_WEIGHTS, "encoder.down_blocks.3.resnets.0.conv1.bias"),
        (TEXT_WEIGHTS, "encoder.layers.2.mlp.fc1.bias"),
    ],
)
def test_a_layer_more_than_the_config_says_is_refused(load, file, extra):
    """A config that names fewer layers than there are weights describes another model."""

    def longer(weights):
        prefix = "text_model." if any(key.startswith("text_model.") for key in weights) and "/" in file else ""
        return {**weights, prefix + extra: torch.zeros(3)}

    with pytest.raises(ModelLoadError, match=f"left over: .*{re.escape(extra)}"):
        load(copy_with_weights, file, longer)


@pytest.mark.parametrize("file", FILES)
def test_left_over_keys_of_no_part_of_the_model_are_accepted(load, file, clip, diffusion):
    extra = {name: torch.zeros(3) for name in ("model_ema.decay", "safety_checker.concept_embeds", "epoch")}
    extra["text_model.embeddings.position_ids" if "model.safe" in file else "position_ids"] = torch.arange(16)[None]
    loaded = load(copy_with_weights, file, lambda weights: weights | extra)
    models = [loaded.model] if isinstance(loaded, DenseClip) else [loaded.unet, loaded.vae]
    expected = [clip.model] if isinstance(loaded, DenseClip) else [diffusion.unet, diffusion.vae]
    assert_same_weights(models, expected)
    if isinstance(loaded, DiffusionFeatures):
        torch.testing.assert_close(loaded.empty_prompt, diffusion.empty_prompt)


def test_the_old_names_of_the_vaes_attention_are_still_read(load, diffusion):
    """As in Stable Diffusion 1.5's own files, which diffusers renames as it reads them."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights):
        renamed = {}
        for key, value in weights.items():
            new = next((new for new in old if f"attentions.0.{new}." in key), None)
            renamed[key if new is None else key.replace(new, old[new])] = value
        assert sum("query" in key for key in renamed) >= 2
        return renamed

    loaded = load(copy_with_weights, VAE_WEIGHTS, rename)
    assert_same_weights([loaded.vae], [diffusion.vae])


@pytest.mark.parametrize(
    ("file", "field", "value", "said"),
    [
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9, "1 to 100000, got 1000000000"),
        ("scheduler/scheduler_config.json", "trained_betas", [0.5] * 100_001, "at most 100000 entries, got 100001"),
        ("scheduler/scheduler_config.json", "beta_end", float("nan"), "0 to 1, got nan"),
        ("text_encoder/config.json", "num_hidden_layers", 10**6, "1 to 128, got 1000000"),
        ("text_encoder/config.json", "vocab_size", 10**40, "1 to 1048576, got about 1e+40"),
        ("text_encoder/config.json", "hidden_size", -1, "1 to 16384, got -1"),
        ("unet/config.json", "block_out_channels", [16, 10**8], "1 to 16384, got 100000000"),
        ("unet/config.json", "layers_per_block", 10**7, "1 to 64, got 10000000"),
        ("unet/config.json", "block_out_channels", [16] * 65, "at most 64 entries, got 65"),
        ("vae/config.json", "latent_channels", 1e12, "1 to 1024, got 1e+12"),
        ("config.json", "vision_config__num_hidden_layers", 0, "1 to 128, got 0"),
        ("config.json", "text_config__max_position_embeddings", 10**9, "1 to 8192, got 1000000000"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(load, monkeypatch, file, field, value, said):
    import diffusers
    import transformers

    part = file.rpartition("/")[0]
    owner = {
        "": transformers.CLIPModel,
        "text_encoder": transformers.CLIPTextModel,
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "scheduler": diffusers.DDPMScheduler,
    }[part]
    monkeypatch.setattr(owner, "__init__", lambda *a, **k: pytest.fail("it was built"))
    with pytest.raises(ModelLoadError) as caught:
        load(copy_with_config, file, **{field: value})
    assert f"{file.rpartition('/')[2]}: {field.replace('__', '.')}: expected {said}." in str(caught.value)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"text_config__hidden_size": 16384, "text_config__intermediate_size": 65536}),
        ("config.json", {"vision_config__image_size": 8192, "vision_config__patch_size": 1}),
        ("config.json", {"text_config_dict": {"hidden_size": 4096}}),
        ("text_encoder/config.json", {"vocab_size": 2**20}),
        ("unet/config.json", {"block_out_channels": [16384, 16384]}),
        ("vae/config.json", {"block_out_channels": [8, 8, 16384]}),
    ],
)
def test_a_config_that_asks_for_more_than_the_weights_hold_is_refused_before_it_is_built(load, file, changes):
    """Each size alone is one that a model could have; together they would be many gigabytes."""
    with pytest.raises(ModelLoadError, match=r"config.json describes at least \d+ numbers, but its weights are \d+ by"):
        load(copy_with_config, file, **changes)


def test_the_least_number_of_parameters_is_not_above_the_true_one(clip_folder, diffusion_folder, clip, diffusion):
    models = {
        clip_folder: clip.model,
        diffusion_folder / "unet": diffusion.unet,
        diffusion_folder / "vae": diffusion.vae,
    }
    for folder, model in models.items():
        least = least_parameters(json.loads((folder / "config.json").read_text()))
        assert 0 < least <= sum(parameter.numel() for parameter in model.parameters())


def test_the_bounds_leave_room_for_every_released_model():
    largest = {  # of Stable Diffusion XL's UNet and CLIP bigG, larger than anything that is taken here
        "hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "vocab_size": 49408,
        "projection_dim": 1280, "block_out_channels": 1280, "transformer_layers_per_block": 10,
        "cross_attention_dim": 2048, "num_train_timesteps": 1000, "sample_size": 1024,
    }  # fmt: skip
    for name, value in largest.items():
        assert BOUNDS[name][0] <= value <= BOUNDS[name][1] / 1.9


@pytest.mark.parametrize(
    ("file", "field"), [("config.json", "text_config__eos_token_id"), ("text_encoder/config.json", "eos_token_id")]
)
@pytest.mark.parametrize("end", [None, [1], True])
def test_a_text_model_without_an_end_mark_is_refused(load, file, field, end):
    """transformers takes it, and fails later on; ours would pool every prompt's first token, which is the same."""
    part = "clip" if file == "config.json" else "diffusion"
    with pytest.raises(ModelLoadError) as caught:
        load(copy_with_config, file, **{field: end})
    assert str(caught.value).startswith(f"{part}: ")
    assert "eos_token_id" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("config.json", "text_config__layer_norm_eps"),
        ("config.json", "vision_config__layer_norm_eps"),
        ("text_encoder/config.json", "layer_norm_eps"),
        ("vae/config.json", "scaling_factor"),
    ],
)
@pytest.mark.parametrize("value", [None, "0.1", True, [0.1]])
def test_a_number_that_is_none_is_refused_when_it_is_read(load, file, field, value):
    with pytest.raises(ModelLoadError, match=f"{field.rpartition('__')[2]}: expected a number, got"):
        load(copy_with_config, file, **{field: value})


@pytest.mark.parametrize("betas", [0, 0.5, [], [0.1], [[0.1]]])
def test_betas_that_are_no_schedule_are_refused(load, betas):
    with pytest.raises(ModelLoadError, match=r"diffusion: .*(levels of shape|trained_betas)"):
        load(copy_with_config, "scheduler/scheduler_config.json", trained_betas=betas)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"a": ' + " " * MAX_FILE_BYTES + "1}"])
def test_a_config_that_is_no_object_of_a_sensible_size_is_refused(clip_folder, load, content):
    def copy(checkpoint, target, file):
        copy_with_config(checkpoint, target, file)
        (target / file).write_text(content)
        return target

    with pytest.raises(ModelLoadError, match=r"clip: cannot load \S+: config.json: expected "):
        load(copy, "config.json")


@pytest.mark.parametrize(
    ("shard", "refused"),
    [
        ("pytorch_model.bin", True),
        ("../part/model.safetensors", True),
        ("/etc/model.safetensors", True),
        (7, True),
        ("whole.safetensors", False),
    ],
)
def test_an_index_may_name_safetensors_beside_it_only(clip_folder, load, clip, shard, refused):
    def copy(checkpoint, target, file):
        from safetensors.torch import load_file

        copy_with_config(checkpoint, target, "config.json")
        weights = load_file(target / file)
        torch.save(weights, target / "pytorch_model.bin")
        (target / file).rename(target / "whole.safetensors")
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, shard)}
        (target / f"{file}.index.json").write_text(json.dumps(index))
        return target

    if refused:
        said = (
            rf"expected names of safetensors files beside it, got {re.escape(repr(shard))}; pickles are not read here"
        )
        with pytest.raises(ModelLoadError, match=rf"{CLIP_WEIGHTS}.index.json: {said}"):
            load(copy, CLIP_WEIGHTS)
    else:
        loaded = load(copy, CLIP_WEIGHTS)
        assert_same_weights([loaded.model], [clip.model])


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": 3}', "{"])
def test_a_damaged_index_is_refused(load, content):
    def copy(checkpoint, target, file):
        copy_with_config(checkpoint, target, "unet/config.json")
        (target / file).unlink()
        (target / f"{file}.index.json").write_text(content)
        return target

    with pytest.raises(ModelLoadError, match=r"index.json: expected a weight_map from keys to files"):
        load(copy, UNET_WEIGHTS)


@pytest.mark.parametrize("file", [CLIP_WEIGHTS, UNET_WEIGHTS])
def test_pickles_are_refused_with_the_command_that_converts_them(clip_folder, diffusion_folder, tmp_path, file):
    from safetensors.torch import load_file

    checkpoint, family = (clip_folder, DenseClip) if file == CLIP_WEIGHTS else (diffusion_folder, DiffusionFeatures)
    folder = copy_with_config(checkpoint, tmp_path / "pickled", "unet/config.json" if "unet" in file else "config.json")
    name = "pytorch_model.bin" if file == CLIP_WEIGHTS else "diffusion_pytorch_model.bin"
    torch.save(load_file(folder / file), (folder / file).with_name(name))
    (folder / file).unlink()
    with pytest.raises(ModelLoadError, match="it has no safetensors weights, and pickles are not read here") as refused:
        family.from_pretrained(folder, device="cpu")
    found = re.search(r'If you trust them, convert them: python -c "(.*?)" Wanted', str(refused.value))
    assert found is not None
    exec(found[1], {})
    loaded = family.from_pretrained(folder, device="cpu")
    assert_same_weights(loaded.modules, family.from_pretrained(checkpoint, device="cpu").modules)
