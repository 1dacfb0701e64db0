"""Captions: all the supervision that CLIP gets. They say what is in a picture, never where."""

from collections.abc import Sequence

import numpy as np
from training.world.vocabulary import BACKGROUND, NOUN_LIST

_ADJECTIVES = (
    "", "", "", "", "good ", "bad ", "bright ", "dark ", "clean ", "dirty ", "small ", "large ",
    "big ", "nice ", "cool ", "weird ", "black and white ", "low resolution ", "blurry ",
    "jpeg corrupted ", "pixelated ", "cropped ", "close-up ", "colourful ", "tiny ", "hard to see ",
)  # fmt: skip
_PICTURES = (
    "photo", "photo", "picture", "picture", "image", "drawing", "painting", "rendition", "sketch",
    "cartoon", "rendering", "emoji", "sticker", "icon", "illustration", "doodle", "sculpture",
    "tattoo", "toy", "graffiti", "plushie", "origami", "embroidery", "itap", "video game scene",
)  # fmt: skip
_SCENES = ("there is {} in the scene", "{} in the scene", "{} in a picture", "this is {}", "{}")
_BACKDROPS = (
    "background", "background", "background", "backdrop", "texture", "wall", "pattern", "surface",
    "nothing", "empty space", "blank area", "scenery",
)  # fmt: skip


def _with_article(rng: np.random.Generator, noun: str) -> str:
    choice = rng.integers(10)
    if choice < 5:
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    return ("the {}", "{}", "{}", "one {}", "my {}")[choice - 5].format(noun)


def _list_in_words(rng: np.random.Generator, words: Sequence[str]) -> str:
    if len(words) == 1:
        return words[0]
    if rng.random() < 0.3:
        return ", ".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]


def caption(rng: np.random.Generator, nouns: Sequence[str]) -> str:
    """A sentence that names `nouns` in a random order; no noun at all names the background."""
    words = list(nouns)
    if not words or words == [BACKGROUND]:
        words = [_BACKDROPS[rng.integers(len(_BACKDROPS))]]
    rng.shuffle(words)
    objects = _list_in_words(rng, [_with_article(rng, word) for word in words])
    style = rng.random()
    if style < 0.2:
        sentence = _list_in_words(rng, words)
    elif style < 0.35:
        sentence = _SCENES[rng.integers(len(_SCENES))].format(objects)
    else:
        adjective = _ADJECTIVES[rng.integers(len(_ADJECTIVES))]
        kind = _PICTURES[rng.integers(len(_PICTURES))]
        article = ("a ", "a ", "a ", "the ", "")[rng.integers(5)]
        sentence = f"{article}{adjective}{kind} of {objects}"
    return sentence + ("." if rng.random() < 0.5 else "")


def tokenizer_corpus(seed: int = 0, sentences: int = 20_000) -> list[str]:
    """The sentences from which the byte-pair encoding is learned."""
    rng = np.random.default_rng(seed)
    words = (*NOUN_LIST, BACKGROUND)
    return [
        caption(rng, [words[i] for i in rng.choice(len(words), rng.integers(1, 4), replace=False)])
        for _ in range(sentences)
    ]
