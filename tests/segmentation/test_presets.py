import dataclasses
import importlib.util

import pytest
import torch
from tests.segmentation.tiny_checkpoints import copy_with_config, make_vision_transformer

from nerve_kernels.segmentation import NervePipeline, extras, loading, presets
from nerve_kernels.segmentation.checkpoints.hub import split_revision
from nerve_kernels.segmentation.extras import MissingExtraError, require_extra
from nerve_kernels.segmentation.images import to_tensor
from nerve_kernels.segmentation.loading import ModelLoadError, choose_device, choose_dtype, is_local, preset_dtype
from nerve_kernels.segmentation.presets import LICENCES, PRESETS, find_preset


def test_every_presets_settings_make_a_config():
    assert {"embedded", "sd15-clip-b16", "sd15-clip-l14", "sdxl-clip-l14", "dinov2-clip-b16"} < set(PRESETS)
    for preset in PRESETS.values():
        assert preset.config.replace() == preset.config
        assert preset.description


def test_hub_presets_name_models_and_no_folders():
    for name in set(PRESETS) - {"embedded"}:
        preset = find_preset(name)
        for source in (preset.diffusion, preset.clip, preset.autoencoder):
            assert source is None or (not is_local(source) and split_revision(source)[0] in LICENCES)
    used = {source for preset in PRESETS.values() for source in (preset.diffusion, preset.clip, preset.autoencoder)}
    assert set(LICENCES) <= used


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
    ("has", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True, "avx2": True}, None),
        ({}, None),
    ],
)
def test_large_models_run_in_bfloat16_where_the_processor_does(monkeypatch, has, expected):
    monkeypatch.setattr(loading, "cpu_capabilities", lambda: has)
    assert preset_dtype("cpu") == expected
    if torch.cuda.is_available():
        assert preset_dtype("cuda") is None  # float16, as ever


def test_only_presets_with_large_models_do_so(monkeypatch, diffusion_folder, clip_folder):
    monkeypatch.setattr(loading, "cpu_capabilities", lambda: {"avx512_bf16": True})
    small = {"diffusion_size": 32, "clip_size": 32, "clip_window": None}
    large = presets.Preset(str(diffusion_folder), str(clip_folder), "", small)
    monkeypatch.setattr(presets, "PRESETS", {"large": large, "measured": dataclasses.replace(large, bfloat16=False)})
    dtypes = {name: NervePipeline.from_preset(name, device="cpu").text_image.dtype for name in presets.PRESETS}
    assert dtypes == {"large": torch.bfloat16, "measured": torch.float32}
    assert NervePipeline.from_preset("large", device="cpu", dtype="float32").text_image.dtype == torch.float32
    assert not PRESETS["embedded"].bfloat16


def test_this_processor_says_what_it_has():
    assert isinstance(loading.computes_bfloat16(loading.cpu_capabilities()), bool)


@pytest.fixture(scope="module")
def tiny_autoencoder(tmp_path_factory):
    from diffusers import AutoencoderTiny

    torch.manual_seed(6)
    folder = tmp_path_factory.mktemp("tiny")
    blocks = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1)).save_pretrained(folder)
    return folder


def test_a_tiny_autoencoder_stands_for_the_checkpoints_own(
    monkeypatch, diffusion_folder, clip_folder, tiny_autoencoder, wide_image
):
    settings = {"diffusion_size": 32, "clip_size": 32, "clip_window": None, "window": 3}
    fast = presets.Preset(
        str(diffusion_folder), str(clip_folder), "", {**settings, "layers": ("down_blocks.0.*",)}, str(tiny_autoencoder)
    )
    monkeypatch.setattr(presets, "PRESETS", {"fast": fast})
    pipeline = NervePipeline.from_preset("fast", device="cpu")
    assert type(pipeline.attention.vae).__name__ == "AutoencoderTiny"
    assert pipeline(wide_image, "cat, dog").label_map.shape == (60, 90)
    latent = pipeline.attention.encode(wide_image, short_side=32)
    with torch.no_grad():
        expected = pipeline.attention.vae.encoder(to_tensor(wide_image, (32, 48)) * 2 - 1)
    torch.testing.assert_close(latent, expected)
    assert ("autoencoder", ("config.json", "diffusion_pytorch_model.safetensors")) in [
        (part.argument, part.files) for part in pipeline.loaded
    ]
    # with another checkpoint of diffusion its own autoencoder comes
    own = NervePipeline.from_preset("fast", device="cpu", diffusion=diffusion_folder)
    assert type(own.attention.vae).__name__ == "AutoencoderKL"


def test_autoencoders_that_do_not_fit_are_refused(diffusion_folder, clip_folder, tiny_autoencoder, tmp_path):
    def load(autoencoder, diffusion=diffusion_folder):
        return NervePipeline.from_pretrained(
            diffusion=diffusion, clip=clip_folder, autoencoder=autoencoder, device="cpu"
        )

    wide = copy_with_config(tiny_autoencoder, tmp_path / "absurd", "config.json", num_encoder_blocks=[10**9] * 3)
    with pytest.raises(ModelLoadError, match=r"autoencoder: .*num_encoder_blocks: expected 1 to 64, got 1000000000"):
        load(wide)
    with pytest.raises(ModelLoadError, match=r"autoencoder: config\.json of .*: expected _class_name one of Auto"):
        load(diffusion_folder / "unet")
    with pytest.raises(ModelLoadError, match=r"autoencoder: the folder .* does not exist"):
        load(tmp_path / "nowhere")
    make_vision_transformer(tmp_path / "vit")
    with pytest.raises(ValueError, match="autoencoder: expected none, for this source of attention has no latent"):
        load(tiny_autoencoder, tmp_path / "vit")


@pytest.mark.parametrize(
    ("source", "local"),
    [("openai/clip", False), ("name", False), ("./x", True), ("/a/b", True), ("~/x", True), ("a/b/c", True)],
)
def test_folders_and_hub_ids_are_told_apart(source, local):
    assert is_local(source) is local
