"""The closed world: its nouns, the artwork that draws each, and who may be trained on or shipped."""

from dataclasses import dataclass

#: Noun -> artwork names (iconify spelling). The first name is the one that scenes for evaluation
#: use; the others are further drawings of the same thing, for variety in training.
NOUNS: dict[str, tuple[str, ...]] = {
    "cat": ("cat-face", "grinning-cat", "cat"),
    "dog": ("dog-face", "dog"),
    "tiger": ("tiger-face", "tiger"),
    "pig": ("pig-face", "pig"),
    "panda": ("panda",),
    "frog": ("frog",),
    "lion": ("lion",),
    "horse": ("horse-face", "horse"),
    "penguin": ("penguin",),
    "owl": ("owl",),
    "elephant": ("elephant",),
    "fish": ("tropical-fish", "fish"),
    "octopus": ("octopus",),
    "butterfly": ("butterfly",),
    "ladybug": ("lady-beetle",),
    "snail": ("snail",),
    "turtle": ("turtle",),
    "apple": ("red-apple", "green-apple"),
    "banana": ("banana",),
    "grapes": ("grapes",),
    "watermelon": ("watermelon",),
    "strawberry": ("strawberry",),
    "pineapple": ("pineapple",),
    "lemon": ("lemon",),
    "carrot": ("carrot",),
    "pizza": ("pizza",),
    "hamburger": ("hamburger",),
    "doughnut": ("doughnut",),
    "cake": ("birthday-cake",),
    "car": ("automobile", "oncoming-automobile"),
    "bus": ("bus",),
    "bicycle": ("bicycle",),
    "airplane": ("airplane",),
    "rocket": ("rocket",),
    "boat": ("sailboat",),
    "tree": ("deciduous-tree",),
    "cactus": ("cactus",),
    "sunflower": ("sunflower",),
    "rose": ("rose",),
    "mushroom": ("mushroom",),
    "house": ("house",),
    "umbrella": ("umbrella", "umbrella-with-rain-drops"),
    "guitar": ("guitar",),
    "drum": ("drum",),
    "basketball": ("basketball",),
    "balloon": ("balloon",),
    "key": ("key", "old-key"),
    "clock": ("alarm-clock",),
    "television": ("television",),
    "crown": ("crown",),
}
NOUN_LIST: tuple[str, ...] = tuple(NOUNS)
BACKGROUND = "background"


@dataclass(frozen=True)
class Style:
    """One family of artwork, as an npm package."""

    name: str
    package: str
    licence: str
    author: str
    trains: bool
    ships: bool


STYLES: tuple[Style, ...] = (
    Style("noto", "@iconify-json/noto@1.2.9", "Apache-2.0", "Google Inc", True, True),
    Style("noto-v1", "@iconify-json/noto-v1@1.2.5", "Apache-2.0", "Google Inc", True, False),
    Style("twemoji", "@iconify-json/twemoji@1.2.5", "CC-BY-4.0", "Twitter", True, False),
    Style("openmoji", "@iconify-json/openmoji@1.2.29", "CC-BY-SA-4.0", "OpenMoji", True, False),
    Style("emojione", "@iconify-json/emojione@1.2.3", "CC-BY-4.0", "Emoji One", True, False),
    Style("fxemoji", "@iconify-json/fxemoji@1.2.2", "Apache-2.0", "Mozilla", True, False),
    Style("fluent", "@iconify-json/fluent-emoji-flat@1.2.6", "MIT", "Microsoft", False, True),
)
TRAINING_STYLES: tuple[str, ...] = tuple(style.name for style in STYLES if style.trains)
SHIPPED_STYLES: tuple[str, ...] = tuple(style.name for style in STYLES if style.ships)
SEEN_STYLE = "noto"
UNSEEN_STYLE = "fluent"
