"""How well patch features find things: mean IoU of text-to-patch similarity on scenes."""

from collections.abc import Sequence

import numpy as np
import torch
from training.models.clip_model import encode_images, encode_texts, to_pixels
from training.world.composition import Scene
from training.world.vocabulary import BACKGROUND, NOUN_LIST
from transformers import CLIPModel, CLIPTokenizer

PROMPTS = ("a picture of a {}", "a photo of a {}.", "an image of the {}", "{}")


@torch.no_grad()
def label_embeddings(model: CLIPModel, tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Text embeddings of the background and every noun, averaged over prompts: (51, D)."""
    rows = []
    for prompt in PROMPTS:
        texts = [prompt.format(word) for word in (BACKGROUND, *NOUN_LIST)]
        rows.append(encode_texts(model, tokenizer, texts))
    return torch.nn.functional.normalize(torch.stack(rows).mean(dim=0), dim=-1)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean IoU over the classes that occur, from counts [truth, prediction]."""
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    present = confusion.sum(axis=1) > 0
    return float((hits[present] / union[present]).mean())


@torch.no_grad()
def localisation(model: CLIPModel, tokenizer: CLIPTokenizer, scenes: Sequence[Scene]) -> tuple[float, float]:
    """Pixel mean IoU with each scene's own labels, and with all labels at once."""
    texts = label_embeddings(model, tokenizer)
    classes = len(texts)
    confusions = np.zeros((2, classes, classes), dtype=np.int64)
    for scene in scenes:
        height, width = scene.mask.shape
        _, patches = encode_images(model, to_pixels([scene.image]))
        similarity = (patches[0] @ texts.T).T.reshape(1, classes, height // 8, width // 8)
        probabilities = torch.softmax(similarity * model.logit_scale.exp(), dim=1)
        fine = torch.nn.functional.interpolate(
            probabilities, size=(height, width), mode="bilinear", align_corners=False
        )[0]
        asked = [0, *(NOUN_LIST.index(noun) + 1 for noun in scene.nouns)]
        own = np.asarray(asked)[fine[asked].argmax(dim=0).numpy()]
        everything = fine.argmax(dim=0).numpy()
        for which, prediction in enumerate((own, everything)):
            pairs = scene.mask.astype(np.int64) * classes + prediction
            counts = np.bincount(pairs.ravel(), minlength=classes**2)
            confusions[which] += counts.reshape(classes, classes)
    return mean_iou(confusions[0]), mean_iou(confusions[1])
