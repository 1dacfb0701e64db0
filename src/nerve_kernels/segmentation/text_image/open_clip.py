"""CLIP as open_clip publishes it (LAION, DataComp, MetaCLIP, OpenAI's own weights), without its library."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nerve_kernels.segmentation.checkpoints.open_clip import CONFIG, PICKLE, WEIGHTS, clip_config, clip_weights
from nerve_kernels.segmentation.checkpoints.preprocessor import statistics_of
from nerve_kernels.segmentation.extras import require_extra
from nerve_kernels.segmentation.loading import check_room, choose_device, load_part

from .clip import DenseClip
from .source import TextImageSource

OPENAI_STATISTICS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}


class DenseOpenClip(DenseClip):
    """An open_clip checkpoint that embeds patches and names in one space: its weights in ``transformers.CLIPModel``.

    The two are one model, of which open_clip names parts otherwise and keeps the projections to queries, keys and
    values in one matrix. Position embeddings are brought to other grids as transformers does it.

    Args:
        model: ``transformers.CLIPModel``.
        tokenizer: its tokenizer.
        mean, std: per channel, for pixels in [0, 1].

    Source:
        OpenCLIP, https://github.com/mlfoundations/open_clip; the dense readings as for CLIP.
    """

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> DenseOpenClip:
        """Load ``open_clip_config.json``, ``open_clip_model.safetensors`` and CLIP's tokenizer.

        As :meth:`DenseClip.from_pretrained`; towers that are not CLIP's are a ModelLoadError too.
        """
        require_extra("transformers")
        from transformers import CLIPTokenizer

        device = choose_device(device)
        model = load_part(_model, source, argument="clip", config=CONFIG, weights=WEIGHTS, conversion=_conversion)
        tokenizer = load_part(CLIPTokenizer.from_pretrained, source, argument="clip", config="tokenizer_config.json")
        statistics = load_part(_statistics, source, argument="clip", config=CONFIG)
        return cls._assembled(source, model, tokenizer, statistics, device, dtype)


def _model(source: str, **options: Any) -> Any:
    """The model and what ``from_pretrained`` of transformers says of its weights."""
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel

    where = {name: options.pop(name) for name in ("local_files_only", "revision") if name in options}
    sizes, weights = clip_config(_config(source, **where)), _file(source, WEIGHTS, **where)
    check_room(CONFIG, sizes, [weights])
    return CLIPModel.from_pretrained(
        None, config=CLIPConfig(**sizes), state_dict=clip_weights(load_file(weights)), **options
    )


def _statistics(source: str, **where: Any) -> tuple[list[float], list[float]]:
    said = _config(source, **where).get("preprocess_cfg") or {}
    return statistics_of({**OPENAI_STATISTICS, **said}, ("mean", "std"), file=CONFIG)


def _config(source: str, **where: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_file(source, CONFIG, **where).read_text(encoding="utf-8"))
    return found


def _file(source: str, name: str, **where: Any) -> Path:
    from transformers.utils import cached_file

    return Path(cached_file(source, name, **where))


def _conversion(folder: Path) -> str:
    """The command that writes safetensors from open_clip's pickle, of which only tensors are read."""
    return (
        'python -c "import torch; from safetensors.torch import save_file; '
        f"weights = torch.load('{folder / PICKLE}', map_location='cpu', weights_only=True); "
        f"save_file({{name: one.contiguous() for name, one in weights.items()}}, '{folder / WEIGHTS}')\""
    )


if TYPE_CHECKING:
    _: type[TextImageSource] = DenseOpenClip
