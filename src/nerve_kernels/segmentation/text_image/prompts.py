"""Labels as people write them: synonyms, background words, and what is refused."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from nerve_kernels._operators.checks import kind_of, refusal

BACKGROUND = "background"
MAX_NAME_LENGTH = 300

# Stuff that photographs commonly show around the things asked for.
DEFAULT_BACKGROUND_WORDS: tuple[str, ...] = (
    "sky",
    "wall",
    "tree",
    "wood",
    "grass",
    "road",
    "sea",
    "river",
    "mountain",
    "sand",
    "building",
    "cloud",
    "floor",
    "ceiling",
    "door",
    "window",
    "curtain",
    "shelf",
    "fence",
    "hill",
)

LabelsLike = str | Sequence[str | Sequence[str]]


@dataclass(frozen=True)
class LabelSet:
    """Labels, and the names by which CLIP is asked for them.

    Args:
        shown: one name a label.
        asked: for each label the names of which the best match counts. The background is asked
            for by its words, not by the word "background", where it has any.
        background: index of the label that stands for "nothing of this", or None.
    """

    shown: tuple[str, ...]
    asked: tuple[tuple[str, ...], ...]
    background: int | None = None

    @property
    def flat_names(self) -> tuple[str, ...]:
        """All asked names, label after label."""
        return tuple(name for names in self.asked for name in names)

    @property
    def label_of_name(self) -> tuple[int, ...]:
        """For each of `flat_names`, the index of its label."""
        return tuple(index for index, names in enumerate(self.asked) for _ in names)


def parse_labels(labels: LabelsLike, background_words: str | Sequence[str] = ()) -> LabelSet:
    """Read labels and their synonyms.

    A text is cut at commas and line ends, each label at ``|``; of several names the best
    match at a place counts. A label whose first name is ``background`` is the background, and
    its further names are its words. Where there is no such label, background words become one,
    put first.

    Args:
        labels: ``"cat, dog|puppy"``, or a sequence of such labels or of sequences of names.
        background_words: words of the background, where the labels give none; ``"default"`` is
            a usual list, without those that are labels themselves.

    Returns:
        The labels.

    Raises:
        ValueError: no labels, an empty label, or a name given twice.
        TypeError: something that is not text.

    Example:
        >>> parse_labels("cat, dog|puppy").asked
        (('cat',), ('dog', 'puppy'))
        >>> parse_labels(["cat"], ["sky", "wall"]).shown
        ('background', 'cat')
        >>> parse_labels("cat,, dog")
        Traceback (most recent call last):
            ...
        ValueError: labels: label 2 is empty; write names between the commas, as in 'cat, dog|puppy'
    """
    split = [_names_of(label, number) for number, label in enumerate(_pieces(labels), start=1)]
    if not split:
        raise ValueError(refusal("labels", "at least one, as in 'cat, dog|puppy'", "none"))
    shown = [names[0] for names in split]
    words = _background_names(background_words, split)
    background = next((index for index, name in enumerate(shown) if name.casefold() == BACKGROUND), None)
    if background is not None:
        split[background] = split[background][1:] or words or split[background]
    elif words:
        background = 0
        shown.insert(0, BACKGROUND)
        split.insert(0, words)
    _refuse_duplicates(shown, split)
    return LabelSet(shown=tuple(shown), asked=tuple(split), background=background)


def refuse_a_single_label(labels: LabelSet) -> None:
    """Probabilities compare labels; with one alone, every pixel would have it.

    Raises:
        ValueError: fewer than two labels, the background included.
    """
    if len(labels.shown) < 2:
        raise ValueError(
            f"labels: got only {labels.shown[0]!r}, so every pixel would be that; give a second label, or "
            "background words ('default' is a usual list; on the command line, --background default)"
        )


def split_words(text: str) -> tuple[str, ...]:
    """Words between commas, as the command line gives them.

    Example:
        >>> split_words("sky, wall")
        ('sky', 'wall')
    """
    return tuple(piece.strip() for piece in re.split(r"[,\n]", text) if piece.strip())


def _pieces(labels: LabelsLike) -> list[str | Sequence[str]]:
    if isinstance(labels, str):
        text = labels.strip()
        # A line end separates as a comma does; both together, or blank lines, separate once.
        return list(re.split(r",?[ \t]*\n\s*|,", text)) if text else []
    if not isinstance(labels, Sequence):
        raise TypeError(refusal("labels", "a text or a list of labels", kind_of(labels)))
    return list(labels)


def _names_of(label: str | Sequence[str], number: int) -> tuple[str, ...]:
    names = label.split("|") if isinstance(label, str) else label
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(refusal("labels", "text or a list of names", f"{label!r} as label {number}"))
    cleaned = tuple(" ".join(name.split()) for name in names)
    _refuse_unusable_text(cleaned, f"label {number}")
    if not cleaned or not any(cleaned):
        raise ValueError(f"labels: label {number} is empty; write names between the commas, as in 'cat, dog|puppy'")
    if not all(cleaned):
        raise ValueError(f"labels: label {number} ({label!r}) has an empty synonym; write names around each '|'")
    return cleaned


def _background_names(words: str | Sequence[str], labels: list[tuple[str, ...]]) -> tuple[str, ...]:
    if words == "default":
        taken = {name.casefold() for names in labels for name in names}
        return tuple(word for word in DEFAULT_BACKGROUND_WORDS if word not in taken)
    if isinstance(words, str):
        words = split_words(words)
    cleaned = tuple(" ".join(word.split()) for word in words)
    _refuse_unusable_text(cleaned, "background words")
    if not all(cleaned):
        raise ValueError(refusal("background_words", "words such as 'sky'", "an empty one"))
    return cleaned


def _refuse_unusable_text(names: Sequence[str], where: str) -> None:
    """Names that no tokenizer takes, or that keep it busy for minutes: its time grows as the square of a word."""
    for name in names:
        if len(name) > MAX_NAME_LENGTH:
            raise ValueError(
                f"labels: {where}: expected at most {MAX_NAME_LENGTH} characters a name, got {len(name)} "
                f"({name[:20]!r}...); shorten it"
            )
        # bytes that are not UTF-8 reach Python as lone surrogates
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f"labels: {where} ({name!r}) holds bytes that are not UTF-8; write it as UTF-8 text")


def _refuse_duplicates(shown: list[str], asked: list[tuple[str, ...]]) -> None:
    owner: dict[str, str] = {}
    for label, names in zip(shown, asked, strict=True):
        for name in names:
            key = unicodedata.normalize("NFKC", name).casefold()  # one name in two encodings looks the same
            if key in owner:
                raise ValueError(
                    f"labels: {name!r} is given twice (in {owner[key]!r} and {label!r}); each name may stand for "
                    "one label only, so remove one"
                )
            owner[key] = label
