"""The sentences a label is put into before CLIP reads it.

The 80 ImageNet prompts and the short list of 7 are those CLIP's authors published with
their zero-shot evaluation (Radford et al., arXiv 2103.00020); they are data of the protocol.
"""

from __future__ import annotations

from nerve_kernels._operators.checks import refusal

# Shared out by what comes around the name, so that the list can be checked by eye.
_WITH_A_AND_THE = (
    "a bad photo of {article} {}.",
    "a low resolution photo of {article} {}.",
    "a rendering of {article} {}.",
    "graffiti of {article} {}.",
    "a cropped photo of {article} {}.",
    "a tattoo of {article} {}.",
    "a bright photo of {article} {}.",
    "a dark photo of {article} {}.",
    "a drawing of {article} {}.",
    "a close-up photo of {article} {}.",
    "a black and white photo of {article} {}.",
    "a painting of {article} {}.",
    "a pixelated photo of {article} {}.",
    "a sculpture of {article} {}.",
    "a jpeg corrupted photo of {article} {}.",
    "a blurry photo of {article} {}.",
    "a photo of {article} {}.",
    "a good photo of {article} {}.",
    "a doodle of {article} {}.",
    "a sketch of {article} {}.",
    "a rendition of {article} {}.",
    "art of {article} {}.",
    "itap of {article} {}.",
    "a photo of {article} hard to see {}.",
    "a photo of {article} clean {}.",
    "a photo of {article} dirty {}.",
    "a photo of {article} cool {}.",
    "a photo of {article} large {}.",
    "a photo of {article} nice {}.",
    "a photo of {article} weird {}.",
    "a photo of {article} small {}.",
    "{article} plastic {}.",
    "{article} {} in a video game.",
    "{article} origami {}.",
    "{article} toy {}.",
    "{article} embroidered {}.",
    "{article} cartoon {}.",
    "{article} plushie {}.",
)
_ALONE = ("a photo of many {}.", "a photo of my {}.", "a photo of one {}.", "itap of my {}.")

IMAGENET_80: tuple[str, ...] = _ALONE + tuple(
    template.replace("{article}", article) for template in _WITH_A_AND_THE for article in ("a", "the")
)
SHORT: tuple[str, ...] = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
TEMPLATE_LISTS: dict[str, tuple[str, ...]] = {
    "imagenet80": IMAGENET_80,
    "short": SHORT,
    "photo": ("a photo of a {}.",),
    "name": ("{}",),
}
TEMPLATES = f"one of {', '.join(TEMPLATE_LISTS)}, or prompts that each hold {{}} once"


def is_template(text: str) -> bool:
    """Whether a prompt has exactly one place for the label.

    Example:
        >>> is_template("a photo of a {}."), is_template("a photo")
        (True, False)
    """
    return isinstance(text, str) and text.count("{}") == 1


def resolve_templates(templates: str | tuple[str, ...]) -> tuple[str, ...]:
    """A named list's prompts, or the given prompts themselves.

    Args:
        templates: a key of ``TEMPLATE_LISTS``, or prompts that each hold ``{}`` once.

    Returns:
        The prompts.

    Raises:
        ValueError: an unknown name, or a prompt without exactly one ``{}``.

    Example:
        >>> len(resolve_templates("imagenet80")), resolve_templates("photo")
        (80, ('a photo of a {}.',))
    """
    if isinstance(templates, str):
        if templates not in TEMPLATE_LISTS:
            raise ValueError(refusal("templates", TEMPLATES, repr(templates)))
        return TEMPLATE_LISTS[templates]
    for template in templates:
        if not is_template(template):
            raise ValueError(refusal("templates", "a prompt that holds {} once", repr(template)))
    if not templates:
        raise ValueError(refusal("templates", "at least one prompt", "none"))
    return tuple(templates)


def fill(template: str, name: str) -> str:
    """The prompt for one name; not ``str.format``, so that braces in a name do no harm."""
    return template.replace("{}", name)
