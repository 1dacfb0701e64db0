"""Captions and the tokenizer learned from them."""

import numpy as np
import pytest
from training.models.tokenizer import learn_tokenizer
from training.world.captions import caption, tokenizer_corpus
from training.world.vocabulary import BACKGROUND, NOUN_LIST


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer(tokenizer_corpus(sentences=4000), merges=600, longest=32)


def test_caption_names_every_noun_and_no_other():
    rng = np.random.default_rng(0)
    for _ in range(50):
        words = caption(rng, ["cat", "umbrella", "boat"]).replace(",", " ").replace(".", " ").split()
        assert {"cat", "umbrella", "boat"} <= set(words)
        assert not set(NOUN_LIST) - {"cat", "umbrella", "boat"} & set(words)


def test_caption_of_nothing_names_a_background():
    sentences = [caption(np.random.default_rng(seed), []) for seed in range(60)]
    assert any(BACKGROUND in sentence for sentence in sentences)
    assert not any(noun in sentence.split() for sentence in sentences for noun in NOUN_LIST)


def test_every_noun_is_one_token(tokenizer):
    for noun in NOUN_LIST:
        assert len(tokenizer(noun).input_ids) == 3, noun


@pytest.mark.parametrize("text", ["zebra-crossing", "Überraschung!", "日本", "1234", "a  b"])
def test_unknown_words_become_pieces_never_an_early_end(tokenizer, text):
    tokens = tokenizer(text).input_ids
    assert tokens[0] == tokenizer.bos_token_id
    assert tokens.index(tokenizer.eos_token_id) == len(tokens) - 1
    assert len(tokens) > 3 or text == "a  b"


def test_learning_is_repeatable(tokenizer):
    again = learn_tokenizer(tokenizer_corpus(sentences=4000), merges=600, longest=32)
    assert again.get_vocab() == tokenizer.get_vocab()
