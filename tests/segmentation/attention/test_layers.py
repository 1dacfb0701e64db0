import pytest

from nerve_kernels.segmentation.attention.layers import SelfAttentionLayer, select_layers

LAYERS = [
    SelfAttentionLayer("down_blocks.0.attentions.0.transformer_blocks.0.attn1", 1),
    SelfAttentionLayer("down_blocks.1.attentions.0.transformer_blocks.0.attn1", 2),
    SelfAttentionLayer("mid_block.attentions.0.transformer_blocks.0.attn1", 4),
    SelfAttentionLayer("up_blocks.1.attentions.0.transformer_blocks.0.attn1", 2),
    SelfAttentionLayer("up_blocks.1.attentions.1.transformer_blocks.0.attn1", 2),
    SelfAttentionLayer("up_blocks.2.attentions.0.transformer_blocks.0.attn1", 1),
]


@pytest.mark.parametrize(
    ("selectors", "indices"),
    [
        ([64], [0, 5]),
        (["grid:64"], [0, 5]),
        ([32], [1, 3, 4]),
        (["latent/4"], [2]),
        (["up_blocks.1"], [3, 4]),
        (["up_blocks.1."], [3, 4]),
        (["up_blocks.1.attentions.1"], [4]),
        (["up_blocks.*.attentions.0*"], [3, 5]),
        (["*"], [0, 1, 2, 3, 4, 5]),
        ([LAYERS[2].name], [2]),
        (["up_blocks.2", "latent/1", 16], [0, 2, 5]),
    ],
)
def test_selectors(selectors, indices):
    found = select_layers(LAYERS, selectors, latent_size=(88, 64))
    assert [LAYERS.index(layer) for layer in found] == indices


@pytest.mark.parametrize("selector", [63, "latent/3", "up_blocks.9", "up_blocks.1.attentions.", "up_block"])
def test_a_selector_that_fits_nothing_lists_what_there_is(selector):
    if selector == "up_blocks.1.attentions.":
        assert len(select_layers(LAYERS, [selector], latent_size=(88, 64))) == 2
        return
    with pytest.raises(ValueError, match=r"fits none of .* latent of 88x64; there are: .*grid 44x32, latent/2"):
        select_layers(LAYERS, [selector], latent_size=(88, 64))


@pytest.mark.parametrize("selector", [0, -3, "latent/", "latent/0", "grid:", "grid:-1", " "])
def test_a_malformed_selector_is_refused(selector):
    with pytest.raises(ValueError, match=r"layers: expected a grid side .*, got "):
        select_layers(LAYERS, [selector], latent_size=(64, 64))


def test_no_selector_is_refused():
    with pytest.raises(ValueError, match="layers: expected at least one selector, such as 'latent/1', got none"):
        select_layers(LAYERS, [], latent_size=(64, 64))
