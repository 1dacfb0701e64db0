import importlib.util

import pytest
import torch

from nerve_kernels.segmentation import NervePipeline, extras, presets
from nerve_kernels.segmentation.extras import MissingExtraError, require_extra
from nerve_kernels.segmentation.loading import ModelLoadError, choose_device, choose_dtype, is_local
from nerve_kernels.segmentation.presets import PRESETS, find_preset


def test_every_presets_settings_make_a_config():
    assert set(PRESETS) == {"embedded", "sd15-clip-b16", "sd15-clip-l14", "sdxl-clip-l14", "dinov2-clip-b16"}
    for preset in PRESETS.values():
        assert preset.config.replace() == preset.config
        assert preset.description


def test_hub_presets_name_models_and_no_folders():
    for name in set(PRESETS) - {"embedded"}:
        preset = find_preset(name)
        assert not is_local(preset.diffusion)
        assert not is_local(preset.clip)


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"preset: expected one of .*, got 'embeded'; did you mean 'embedded'"):
        NervePipeline.from_preset("embeded")


def test_a_hub_preset_without_a_connection_says_what_to_do():
    with pytest.raises(ModelLoadError, match=r"diffusion: cannot load stable-diffusion-v1-5/.* 'embedded'"):
        NervePipeline.from_preset("sd15-clip-b16", device="cpu")


def test_missing_embedded_models_are_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(presets, "EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(ModelLoadError, match="preset: the embedded models are not in"):
        find_preset("embedded")


def test_a_preset_is_loaded_with_its_config(monkeypatch, diffusion_folder, clip_folder, wide_image):
    tiny = presets.Preset(
        str(diffusion_folder), str(clip_folder), "tiny", {"diffusion_size": 32, "clip_size": 32, "clip_window": None}
    )
    monkeypatch.setattr(presets, "PRESETS", {"tiny": tiny})
    pipeline = NervePipeline.from_preset("tiny", device="cpu")
    assert pipeline.config == tiny.config
    assert pipeline(wide_image, "cat, dog", window=3).label_map.shape == (60, 90)


def test_missing_libraries_name_the_extra(monkeypatch, clip_folder):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else real(name, *rest)
    )
    with pytest.raises(MissingExtraError, match=r'transformers is not .* pip install "nerve_kernels\[segmentation\]"'):
        NervePipeline.from_pretrained(diffusion="a/b", clip=clip_folder)
    with pytest.raises(MissingExtraError, match="nothing_a, nothing_b are not installed"):
        require_extra("nothing_a", "nothing_b")


def test_devices_and_dtypes():
    assert choose_device("cpu").type == "cpu"
    assert choose_device(None).type in ("cpu", "cuda")
    for bad in ("gpu", "cuda:99", "cpu:x"):
        with pytest.raises(ValueError, match=f"device: expected 'cpu' or .*, got '{bad}', which cannot be used here"):
            choose_device(bad)
    assert choose_dtype(None, torch.device("cpu")) == torch.float32
    assert choose_dtype(None, torch.device("cuda")) == torch.float16
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert choose_dtype("torch.float16", torch.device("cpu")) == torch.float16
    for bad_dtype in ("int8", torch.float64, "half"):
        with pytest.raises(ValueError, match=r"dtype: expected float32, float16 or bfloat16, got "):
            choose_dtype(bad_dtype, torch.device("cpu"))


@pytest.mark.parametrize(
    ("source", "local"),
    [("openai/clip", False), ("name", False), ("./x", True), ("/a/b", True), ("~/x", True), ("a/b/c", True)],
)
def test_folders_and_hub_ids_are_told_apart(source, local):
    assert is_local(source) is local
