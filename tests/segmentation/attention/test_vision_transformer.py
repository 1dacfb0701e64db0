"""Vision transformers as the source of attention: loaded, captured, segmented with, and refused."""

from __future__ import annotations

import json

import pytest
import torch
from tests.segmentation.tiny_checkpoints import make_vision_transformer

import nerve_kernels as nk
from nerve_kernels.segmentation import NerveConfig, NervePipeline
from nerve_kernels.segmentation.attention.vision_transformer import FAMILIES, VisionTransformerFeatures
from nerve_kernels.segmentation.checkpoints.families import attention_family
from nerve_kernels.segmentation.loading import ModelLoadError
from nerve_kernels.segmentation.presets import PRESETS, STABLE_DIFFUSION, VISION_TRANSFORMER

CONFIG = NerveConfig(
    diffusion_size=64, clip_size=32, clip_window=None, window=3, cells=2, criterion="cell_information", templates="name"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for family in FAMILIES:
        found[family] = tmp_path_factory.mktemp(family)
        make_vision_transformer(found[family], family)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_segments_a_picture_that_is_not_square(folders, clip_folder, wide_image, family):
    pipeline = NervePipeline.from_pretrained(diffusion=folders[family], clip=clip_folder, device="cpu", config=CONFIG)
    assert isinstance(pipeline.attention, VisionTransformerFeatures)
    features = pipeline.encode(wide_image)
    height, width = features.grid
    assert height == 8 < width
    assert len(features.builder.layers) == 3
    result = pipeline.segment(features, "cat, dog, grass")
    assert result.label_map.shape == (wide_image.height, wide_image.width)
    assert torch.isfinite(result.token_probabilities).all()


def test_q_and_k_are_those_that_the_model_multiplies(folders, wide_image):
    source = VisionTransformerFeatures.from_pretrained(folders["dinov2"], device="cpu")
    ((layer,),) = source([wide_image], CONFIG.replace(layers=("encoder.layer.1.*",)))
    size = source.image_size((wide_image.height, wide_image.width), 64)
    assert layer.grid == (size[0] // 8, size[1] // 8)
    hidden = []
    block = source.model.get_submodule("encoder.layer.1.attention")
    handle = block.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    source([wide_image], CONFIG)
    handle.remove()
    linear = {name: module for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
    for found, letter in ((layer.q, "q"), (layer.k, "k")):
        project = next(module for name, module in linear.items() if name.rpartition(".")[2].startswith(letter))
        expected = project(hidden[0]).unflatten(-1, (2, -1)).transpose(1, 2)[:, :, 1:]
        assert torch.allclose(found, expected, atol=1e-6)
    entropy = nk.attention_entropy(layer.q, layer.k)
    assert entropy.shape == (1, 2, layer.grid[0] * layer.grid[1])


def test_layers_sizes_and_weights_make_the_difference(folders, wide_image, tmp_path):
    source = VisionTransformerFeatures.from_pretrained(folders["vit"], device="cpu")
    assert [layer.shrink for layer in source.layers] == [1, 1, 1]
    with pytest.raises(ValueError, match="window: expected at most 15 on a grid of 8 tokens a side, got 17"):
        source.check(CONFIG.replace(window=17))
    with pytest.raises(ValueError, match=r"layers: 'up_blocks\.\*' fits none of this model's self-attention layers"):
        source.check(CONFIG.replace(layers=("up_blocks.*",)))
    with pytest.raises(ValueError, match="keep: expected at most the 2 attention maps"):
        source.check(CONFIG.replace(layers=("layers.0.*",), keep=3))
    before = source.fingerprint()
    with torch.no_grad():
        next(source.model.parameters()).add_(1)
    assert source.fingerprint() != before


def test_a_checkpoint_says_of_which_family_it_is(folders, diffusion_folder, tmp_path):
    assert attention_family(folders["dinov3_vit"]) == VISION_TRANSFORMER
    assert attention_family(diffusion_folder) == STABLE_DIFFUSION
    assert attention_family(tmp_path) == STABLE_DIFFUSION
    assert PRESETS["dinov2-clip-b16"].attention_family == VISION_TRANSFORMER


def test_other_models_and_incomplete_ones_are_refused(folders, clip_folder, tmp_path):
    with pytest.raises(
        ModelLoadError, match=r"diffusion: config\.json: expected model_type one of dinov2, .*, got clip"
    ):
        VisionTransformerFeatures.from_pretrained(clip_folder, device="cpu")
    make_vision_transformer(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 4}))
    with pytest.raises(ModelLoadError, match=r"diffusion: cannot load .*encoder\.layer\.3"):
        VisionTransformerFeatures.from_pretrained(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0, 1, 1]}))
    with pytest.raises(ModelLoadError, match=r"diffusion: preprocessor_config\.json: image_std: expected numbers > 0"):
        VisionTransformerFeatures.from_pretrained(tmp_path, device="cpu")
