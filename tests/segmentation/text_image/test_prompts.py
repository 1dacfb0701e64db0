import pytest

from nerve_kernels.segmentation.text_image.prompts import DEFAULT_BACKGROUND_WORDS, parse_labels, split_words
from nerve_kernels.segmentation.text_image.templates import IMAGENET_80, SHORT, fill, is_template, resolve_templates


def test_labels_and_synonyms_from_text():
    labels = parse_labels("cat, dog|puppy,\n red  grass ")
    assert labels.asked == (("cat",), ("dog", "puppy"), ("red grass",))
    assert labels.shown == ("cat", "dog", "red grass")
    assert labels.flat_names == ("cat", "dog", "puppy", "red grass")
    assert labels.label_of_name == (0, 1, 1, 2)
    assert labels.background is None


def test_labels_from_lists():
    assert parse_labels(["cat", "dog|puppy", ["bird", "gull"]]).asked == (
        ("cat",),
        ("dog", "puppy"),
        ("bird", "gull"),
    )
    # A comma within a list's entry belongs to the name.
    assert parse_labels(["bow, tie", "cat"]).shown == ("bow, tie", "cat")


def test_background_words_are_one_label_and_are_asked_by_themselves():
    labels = parse_labels("cat", ("sky", "wall"))
    assert labels.shown == ("background", "cat")
    assert labels.flat_names == ("sky", "wall", "cat")
    assert labels.label_of_name == (0, 0, 1)
    assert labels.background == 0


def test_a_label_called_background_is_the_background():
    labels = parse_labels("cat, Background|sky")
    assert labels.background == 1
    assert labels.flat_names == ("cat", "sky")
    assert labels.shown == ("cat", "Background")
    alone = parse_labels("background, cat")
    assert alone.background == 0
    assert alone.flat_names == ("background", "cat")
    # Words given beside it are for a background that brings none of its own.
    assert parse_labels("cat, background", ("wall", "background")).flat_names == ("cat", "wall", "background")
    assert parse_labels("cat, background|sky", ("wall",)).flat_names == ("cat", "sky")


def test_default_background_leaves_out_what_is_asked_for():
    labels = parse_labels("grass, cat", "default")
    assert set(labels.asked[0]) == set(DEFAULT_BACKGROUND_WORDS) - {"grass"}


@pytest.mark.parametrize("labels", ["", "  \n", []])
def test_no_labels_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels: expected at least one, as in .*, got none"):
        parse_labels(labels)


@pytest.mark.parametrize("labels", ["cat,,dog", "cat, ", ["cat", " "], [["cat"], []]])
def test_an_empty_label_is_refused_by_its_number(labels):
    with pytest.raises(ValueError, match="labels: label 2 is empty"):
        parse_labels(labels)


def test_an_empty_synonym_is_refused():
    with pytest.raises(ValueError, match=r"labels: label 1 \('dog\|'\) has an empty synonym"):
        parse_labels("dog|, cat")


@pytest.mark.parametrize(
    ("labels", "background"),
    [
        ("cat, dog, Cat", ()),
        ("dog|puppy, cat|puppy", ()),
        ("dog|dog", ()),
        ("cat, sky", ("sky",)),
        ("cat", ("a", "A")),
        ("background, cat, background", ()),
    ],
)
def test_a_name_given_twice_is_refused(labels, background):
    with pytest.raises(ValueError, match="is given twice"):
        parse_labels(labels, background)


@pytest.mark.parametrize("labels", [3, {"cat"}, ["cat", 3], [["cat", 3]], None])
def test_what_is_not_text_is_refused(labels):
    with pytest.raises(TypeError, match="labels: "):
        parse_labels(labels)


def test_an_empty_background_word_is_refused():
    with pytest.raises(ValueError, match="background_words: expected words such as 'sky', got an empty one"):
        parse_labels("cat", ("sky", " "))


def test_words_from_the_command_line():
    assert split_words(" sky,wall ,, ") == ("sky", "wall")


def test_the_80_templates():
    assert len(set(IMAGENET_80)) == 80
    assert all(is_template(template) for template in IMAGENET_80)
    # Spot checks against the published list.
    for known in ("itap of my {}.", "a origami {}.", "the {} in a video game.", "a photo of many {}."):
        assert known in IMAGENET_80
    assert "a photo of the many {}." not in IMAGENET_80
    assert set(SHORT) <= set(IMAGENET_80)
    assert len(SHORT) == 7


def test_templates_are_resolved_or_refused():
    assert resolve_templates("name") == ("{}",)
    assert resolve_templates(("my {}",)) == ("my {}",)
    for bad in ("imagenet", ("no place",), ()):
        with pytest.raises(ValueError, match=r"templates: expected .*, got "):
            resolve_templates(bad)


def test_braces_in_a_name_do_no_harm():
    assert fill("a photo of a {}.", "{x}") == "a photo of a {x}."


def test_text_that_is_not_unicode_is_refused():
    for labels in ("cat, d\udcffg", ["cat", ["dog", "\ud800"]]):
        with pytest.raises(ValueError, match=r"labels: label 2 .* holds bytes that are not UTF-8"):
            parse_labels(labels)
    with pytest.raises(ValueError, match=r"background words .* not UTF-8"):
        parse_labels("cat", ["sky\udcff"])


def test_one_name_in_two_encodings_is_given_twice():
    with pytest.raises(ValueError, match="given twice"):
        parse_labels(["caf\u00e9", "cafe\u0301"])


@pytest.mark.parametrize("labels", ["cat, {}", "cat|{}, dog", ["cat", "{}"], [["cat", "{}"], "dog"]])
def test_a_name_of_more_than_300_characters_is_refused_with_their_count(labels):
    def filled(name):
        if isinstance(labels, str):
            return labels.replace("{}", name)
        return [[inner.replace("{}", name) for inner in one] if isinstance(one, list) else one.replace("{}", name)
                for one in labels]  # fmt: skip

    assert "a" * 300 in parse_labels(filled("a" * 300)).flat_names
    with pytest.raises(ValueError, match=r"labels: label [12]: expected at most 300 characters a name, got 301"):
        parse_labels(filled("a" * 301))
    with pytest.raises(ValueError, match="labels: background words: expected at most 300 characters a name, got 301"):
        parse_labels("cat", ["b" * 301])
