import pytest
import torch
import torch.nn.functional as functional
from PIL import Image

from nerve_kernels.segmentation.loading import ModelLoadError
from nerve_kernels.segmentation.text_image.clip import DenseClip
from nerve_kernels.segmentation.text_image.vision import dense_embeddings
from nerve_kernels.segmentation.text_image.windows import OverlapAverage, window_starts


def pixels(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_clips_own_attention_is_the_unchanged_model(clip):
    """query_key with residual and feed-forward is the last block as it was trained."""
    wanted = clip.model.vision_model(pixel_values=pixels()).last_hidden_state[:, 1:]
    wanted = clip.model.visual_projection(clip.model.vision_model.post_layernorm(wanted))
    seen = dense_embeddings(clip.model, pixels(), features="query_key", residual=True, feed_forward=True)
    torch.testing.assert_close(seen.flatten(1, 2), functional.normalize(wanted, dim=-1))


@torch.no_grad()
def test_value_and_key_key_follow_their_formulas(clip):
    layers = clip.model.vision_model.encoder.layers
    tokens = clip.model.vision_model.pre_layrnorm(clip.model.vision_model.embeddings(pixels()))
    for layer in layers[:-1]:
        tokens = layer(tokens, attention_mask=None)
    last = layers[-1]
    normed = last.layer_norm1(tokens)
    value = last.self_attn.v_proj(normed)

    def finish(mixed):
        projected = clip.model.visual_projection(clip.model.vision_model.post_layernorm(mixed[:, 1:]))
        return functional.normalize(projected, dim=-1).unflatten(1, (4, 4))

    torch.testing.assert_close(
        dense_embeddings(clip.model, pixels(), features="value"), finish(last.self_attn.out_proj(value))
    )
    key = last.self_attn.k_proj(normed).unflatten(-1, (2, 16)).transpose(1, 2)
    weights = (key @ key.transpose(-1, -2) / 4.0).softmax(-1)
    mixed = weights @ value.unflatten(-1, (2, 16)).transpose(1, 2)
    mixed = last.self_attn.out_proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(dense_embeddings(clip.model, pixels(), features="key_key"), finish(mixed))
    torch.testing.assert_close(
        dense_embeddings(clip.model, pixels(), features="key_key", residual=True), finish(tokens + mixed)
    )


@pytest.mark.parametrize("features", ["value", "key_key", "query_query", "query_key"])
def test_any_size_gives_unit_embeddings(clip, features):
    with torch.no_grad():
        seen = dense_embeddings(clip.model, pixels(40, 72), features=features)
    assert seen.shape == (1, 5, 9, 24)
    torch.testing.assert_close(seen.norm(dim=-1), torch.ones(1, 5, 9))
    assert not any(module._forward_pre_hooks for module in clip.model.modules())


def test_bad_arguments_are_refused(clip):
    with pytest.raises(ValueError, match="'value', 'key_key', 'query_query' or 'query_key', got 'x'"):
        dense_embeddings(clip.model, pixels(), features="x")
    with pytest.raises(ValueError, match=r"pixels: expected sides that are multiples of the patch \(8\), got 33x32"):
        dense_embeddings(clip.model, pixels(33))
    image = Image.new("RGB", (64, 64))
    with pytest.raises(ValueError, match=r"clip_window: expected a multiple .* of 8 pixels, got 30; try 32"):
        clip.embed_image(image, window=30, stride=8)
    with pytest.raises(ValueError, match=r"clip_stride: expected a multiple .* of 8 pixels, got 4"):
        clip.embed_image(image, window=32, stride=4)


@pytest.mark.parametrize(
    ("size", "short_side", "grid"),
    [((60, 90), 32, (4, 6)), ((90, 60), 32, (6, 4)), ((7, 7), None, (4, 4)), ((10, 160), 32, (2, 32))],
)
def test_images_are_resized_to_whole_patches(clip, size, short_side, grid):
    height, width = size
    embeddings = clip.embed_image(Image.new("RGB", (width, height)), short_side=short_side)
    assert embeddings.grid == grid
    assert embeddings.values.shape == (grid[0] * grid[1], 24)


def test_one_window_over_everything_is_the_whole_image(clip, wide_image):
    whole = clip.embed_image(wide_image, short_side=48)
    window = clip.embed_image(wide_image, short_side=48, window=96, stride=96)
    torch.testing.assert_close(whole.values, window.values)


def test_overlapping_windows_are_averaged(clip, wide_image):
    seen = clip.embed_image(wide_image, short_side=32, window=32, stride=16)
    assert seen.grid == (4, 6)
    from nerve_kernels.segmentation.images import to_tensor

    whole = (to_tensor(wide_image, (32, 48)) - clip._mean) / clip._std
    with torch.no_grad():
        left = dense_embeddings(clip.model, whole[..., :32])[0]
        right = dense_embeddings(clip.model, whole[..., 16:])[0]
    values = seen.values.reshape(4, 6, -1)
    torch.testing.assert_close(values[:, :2], left[:, :2])
    torch.testing.assert_close(values[:, 4:], right[:, 2:])
    torch.testing.assert_close(values[:, 2:4], (left[:, 2:] + right[:, :2]) / 2)


def test_many_windows_go_in_several_batches(clip, wide_image, monkeypatch):
    wanted = clip.embed_image(wide_image, short_side=64, window=32, stride=8)
    monkeypatch.setattr("nerve_kernels.segmentation.text_image.clip.WINDOWS_AT_ONCE", 3)
    seen = clip.embed_image(wide_image, short_side=64, window=32, stride=8)
    torch.testing.assert_close(seen.values, wanted.values)


@pytest.mark.parametrize("length", range(1, 40))
@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (16, 5)])
def test_windows_cover_everything(length, window, stride):
    starts = window_starts(length, window, stride)
    size = min(window, length)
    assert {place for start in starts for place in range(start, start + size)} == set(range(length))
    assert len(set(starts)) == len(starts)


def test_overlap_average_counts():
    average = OverlapAverage(2, 2, 1, torch.device("cpu"))
    average.add(torch.ones(2, 2, 1), 0, 0)
    average.add(torch.full((1, 1, 1), 4.0), 1, 1)
    assert average.mean()[..., 0].tolist() == [[1.0, 1.0], [1.0, 2.5]]


def test_names_are_normalised_before_and_after_averaging(clip):
    templates = ("a photo of a {}.", "art of the {}.", "{}")
    embedded = clip.embed_names(["cat", "dog"], templates)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(2))
    by_hand = []
    for name in ("cat", "dog"):
        tokens = clip.tokenizer([t.replace("{}", name) for t in templates], padding=True, return_tensors="pt")
        with torch.no_grad():
            answer = clip.model.get_text_features(**tokens)
        one = functional.normalize(getattr(answer, "pooler_output", answer), dim=1)
        by_hand.append(functional.normalize(one.mean(0), dim=0))
    torch.testing.assert_close(embedded, torch.stack(by_hand))


def test_names_are_embedded_once(clip, monkeypatch):
    asked: list[int] = []
    real = clip._embed_prompts
    monkeypatch.setattr(clip, "_embed_prompts", lambda prompts: asked.append(len(prompts)) or real(prompts))
    first = clip.embed_names(["zebra", "gnu", "zebra"], ("the {}", "a {}"))
    assert asked == [4]
    again = clip.embed_names(["gnu"], ("the {}", "a {}"))
    assert asked == [4]
    assert torch.equal(again[0], first[1])
    clip.embed_names(["gnu"], ("the {}",))
    assert asked == [4, 1]


def test_names_longer_than_the_model_reads_are_cut(clip):
    assert clip.embed_names(["very " * 60 + "long"], ("{}",)).isfinite().all()


def test_logit_scale_is_the_models(clip):
    assert clip.logit_scale == pytest.approx(float(clip.model.logit_scale.exp()))


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match=r"clip: the folder .*nowhere does not exist"):
        DenseClip.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ModelLoadError, match=r"clip: cannot load .*complete checkpoint"):
        DenseClip.from_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"clip: cannot load a/b from the Hugging Face hub: .*'embedded'"):
        DenseClip.from_pretrained("a/b")


def test_pickles_are_not_read(clip_folder, tmp_path):
    import shutil

    folder = shutil.copytree(clip_folder, tmp_path / "pickled")
    torch.save(DenseClip.from_pretrained(folder).model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ModelLoadError, match=r"clip: cannot load .* it has no safetensors weights, and pickles are not read"
    ):
        DenseClip.from_pretrained(folder)
