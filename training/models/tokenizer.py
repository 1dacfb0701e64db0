"""A small byte-pair encoding in CLIP's own form, for both text towers."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from training.world.captions import tokenizer_corpus
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
#: How CLIP cuts text before the merges; CLIPTokenizer applies the same rule when it loads.
_WORDS = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def kept_tokenizer(folder: Path, merges: int, longest: int) -> CLIPTokenizer:
    """The tokenizer of a run: learned at its start, read again when it resumes and for export."""
    if not (folder / "tokenizer.json").exists():
        learn_tokenizer(tokenizer_corpus(), merges, longest).save_pretrained(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def learn_tokenizer(corpus: list[str], merges: int, longest: int) -> CLIPTokenizer:
    """Learn `merges` merges; every byte is in the vocabulary, so no text is ever unknown."""
    learner = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ending = [letter + END_OF_WORD for letter in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges,
        initial_alphabet=alphabet,
        # Equally frequent pairs are merged in the order of their numbers, and letters that end a
        # word would be numbered as a hash table yields them: named here, they keep one order.
        special_tokens=ending,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    learned = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:merges]
    tokens = [*alphabet, *ending]
    known = set(tokens)
    for first, second in learned:
        if first + second not in known:
            known.add(first + second)
            tokens.append(first + second)
    tokens += [START, END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=learned,
        model_max_length=longest,
    )
