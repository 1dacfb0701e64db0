"""The tower over a tree of prompts against the model's own forward, prompt by prompt."""

import pytest
import torch
import torch.nn.functional as functional
from tests.segmentation.tiny_checkpoints import make_tokenizer, text_settings

from nerve_kernels.segmentation.text_image import text_tower
from nerve_kernels.segmentation.text_image.clip import DenseClip
from nerve_kernels.segmentation.text_image.prefix_tree import PrefixTree, prefix_trees
from nerve_kernels.segmentation.text_image.templates import IMAGENET_80, fill

POSITIONS = 77


@pytest.fixture(scope="module")
def long_clip() -> DenseClip:
    """As many positions as real checkpoints have, and weights large enough that every token matters."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(2)
    tokenizer = make_tokenizer(POSITIONS)
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16, "patch_size": 8}
    text = text_settings(tokenizer, POSITIONS) | {"num_hidden_layers": 3}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    model.eval().requires_grad_(False)
    for parameter in model.text_model.embeddings.parameters():
        parameter.mul_(50)
    for layer in model.text_model.encoder.layers:
        layer.self_attn.q_proj.weight.mul_(5)
    return DenseClip(model=model, tokenizer=tokenizer, mean=(0.5,) * 3, std=(0.5,) * 3)


@torch.no_grad()
def by_the_model(clip: DenseClip, row: list[int]) -> torch.Tensor:
    answer = clip.model.get_text_features(input_ids=torch.tensor([row]))
    return functional.normalize(getattr(answer, "pooler_output", answer)[0], dim=0)


def check(clip: DenseClip, prompts: list[str]) -> None:
    rows = clip.tokenizer(prompts, truncation=True, max_length=POSITIONS).input_ids
    wanted = torch.stack([by_the_model(clip, row) for row in rows])
    with torch.no_grad():
        torch.testing.assert_close(clip._embed_prompts(prompts), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "prompts",
    [
        ["a photo of a cat."],
        ["cat", "cat sky", "cat sky grass", "cat", "dog sky", ""],
        ["sky " * 100, "sky " * 99 + "cat", "sky " * 74 + "cat", "sky " * 75, "cat " * 75 + "dog", "sky"],
        ["cat <|endoftext|> dog", "cat", "<|endoftext|>", "<|startoftext|> cat"],
    ],
    ids=["one", "beginnings of one another", "truncated", "with the marks in them"],
)
def test_prompts_are_embedded_as_the_model_does(long_clip, prompts):
    check(long_clip, prompts)


@pytest.mark.parametrize("max_nodes", [1, 50, 256, 10**6])
def test_eighty_prompts_of_three_names_in_trees_of_any_size(long_clip, monkeypatch, max_nodes):
    monkeypatch.setattr(text_tower, "MAX_NODES", max_nodes)
    check(long_clip, [fill(template, name) for name in ("cat", "dog sky", "fox") for template in IMAGENET_80])


def test_configurations_that_call_the_end_mark_2_pool_the_largest_token(long_clip, monkeypatch):
    monkeypatch.setattr(long_clip.model.text_model, "eos_token_id", 2)
    check(long_clip, ["cat", "a photo of a dog.", "cat <|endoftext|> dog"])


def test_rows_without_the_end_mark_pool_the_start(long_clip, monkeypatch):
    monkeypatch.setattr(long_clip.model.text_model, "eos_token_id", 10**6)
    check(long_clip, ["cat", "dog"])


def test_eager_checkpoints_agree_with_themselves(long_clip, monkeypatch):
    monkeypatch.setattr(long_clip.model.config.text_config, "_attn_implementation", "eager")
    check(long_clip, ["cat sky", "cat grass"])


def test_half_precision_stays_near(long_clip):
    rows = long_clip.tokenizer(["cat sky", "cat grass", "dog"]).input_ids
    with torch.no_grad():
        wanted = text_tower.embed_rows(long_clip.model, rows)
        try:
            seen = text_tower.embed_rows(long_clip.model.to(torch.bfloat16), rows)
        finally:
            long_clip.model.float()
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(seen, wanted, rtol=0, atol=0.1)


def test_the_comparison_sees_a_wrong_mask(long_clip, monkeypatch):
    """Were earlier branches visible, as under a plain causal mask, or no ancestor but the parent."""
    prompts = ["a photo of a cat", "a photo of the dog", "sky"]
    plain = lambda tree: torch.ones(len(tree.tokens), len(tree.tokens), dtype=torch.bool).tril()  # noqa: E731
    monkeypatch.setattr(PrefixTree, "visible", plain)
    with pytest.raises(AssertionError, match="not close"):
        check(long_clip, prompts)

    def parents_only(tree):
        visible = torch.eye(len(tree.tokens), dtype=torch.bool)
        for node, parent in enumerate(tree.parents[1:], start=1):
            visible[node, parent] = True
        return visible

    monkeypatch.setattr(PrefixTree, "visible", parents_only)
    with pytest.raises(AssertionError, match="not close"):
        check(long_clip, prompts)


def rows_of(tree: PrefixTree) -> dict[int, list[int]]:
    """The prompts, read back by climbing from their ends."""
    rows = {}
    for prompt, node in zip(tree.prompts, tree.ends, strict=True):
        climbed = []
        while node >= 0:
            assert tree.depths[node] == (tree.depths[tree.parents[node]] + 1 if tree.parents[node] >= 0 else 0)
            climbed.append(tree.tokens[node])
            node = tree.parents[node]
        rows[prompt] = climbed[::-1]
    return rows


@pytest.mark.parametrize("max_nodes", [1, 4, 9, 30, 10**6])
def test_trees_hold_every_prompt_and_keep_their_bound(max_nodes):
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(0, 7, (60,), generator=generator).tolist()
    rows = [[9, *torch.randint(0, 3, (length,), generator=generator).tolist()] for length in lengths]
    trees = list(prefix_trees(rows, max_nodes=max_nodes))
    found: dict[int, list[int]] = {}
    for tree in trees:
        assert len(tree.tokens) <= max(max_nodes, max(len(rows[prompt]) for prompt in tree.prompts))
        seen = rows_of(tree)
        assert not seen.keys() & found.keys()
        found |= seen
        assert len(tree.tokens) == len({tuple(row[:end]) for row in seen.values() for end in range(1, len(row) + 1)})
    assert [found[prompt] for prompt in range(len(rows))] == rows
    assert (len(trees) == 1) == (max_nodes == 10**6)


def test_no_prompts_need_no_tree():
    assert list(prefix_trees([], max_nodes=4)) == []


def test_shared_beginnings_are_computed_once(long_clip, monkeypatch):
    """80 prompts of three names: less than half of their tokens, even with borders between the trees."""
    rows = long_clip.tokenizer([fill(t, name) for name in ("cat", "dog", "sky") for t in IMAGENET_80]).input_ids
    computed: list[int] = []
    handle = long_clip.model.text_model.embeddings.token_embedding.register_forward_hook(
        lambda _, arguments, __: computed.append(arguments[0].numel())
    )
    try:
        with torch.no_grad():
            text_tower.embed_rows(long_clip.model, rows)
    finally:
        handle.remove()
    assert max(computed) <= text_tower.MAX_NODES
    beginnings = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    assert len(beginnings) <= sum(computed) <= len(beginnings) + (len(computed) - 1) * POSITIONS
    assert sum(computed) < sum(map(len, rows)) / 2
