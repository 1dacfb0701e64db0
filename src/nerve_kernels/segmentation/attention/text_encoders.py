"""What a checkpoint's text encoders say to the empty prompt; each is loaded, asked once and let go."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nerve_kernels._operators.checks import refusal
from nerve_kernels.segmentation.loading import ModelLoadError, check_vocabulary, freeze, is_local, load_part

SAVED_PROMPT = "empty_prompt.safetensors"
"""In a checkpoint's folder: what its text encoders say, so that they need not be there."""

_FILES = {"config": "config.json", "weights": "model.safetensors"}


class TextEncoders:
    """Those of a checkpoint in the hub's format.

    Args:
        source: a folder, or a model id of the hub.
        device: where they run.
        dtype: what CLIP runs in.
    """

    def __init__(self, source: str | os.PathLike[str], device: torch.device, dtype: torch.dtype) -> None:
        self.source = source
        self.device = device
        self.dtype = dtype

    def _load(self, load: Callable[..., Any], subfolder: str, **options: Any) -> Any:
        return load_part(load, self.source, argument="diffusion", subfolder=subfolder, **options)

    @torch.no_grad()
    def clip(self, number: str = "", *, projected: bool = False) -> Any:
        """All that the CLIP in ``text_encoder{number}`` gives, states of every layer included.

        Args:
            number: after the names of the checkpoint's parts.
            projected: whether it has a projection of the whole.
        """
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        kind = CLIPTextModelWithProjection if projected else CLIPTextModel
        encoder = self._load(kind.from_pretrained, f"text_encoder{number}", **_FILES)
        tokenizer = self._load(CLIPTokenizer.from_pretrained, f"tokenizer{number}", config="tokenizer_config.json")
        check_vocabulary(tokenizer, encoder.config, argument="diffusion")
        freeze(encoder, self.device, self.dtype)
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = tokenizer("", padding="max_length", max_length=length, return_tensors="pt")
        return encoder(tokens.input_ids.to(self.device), output_hidden_states=True)

    @torch.no_grad()
    def t5(self, number: str, *, length: int) -> torch.Tensor:
        """(1, length, D) of the T5 in ``text_encoder{number}``: of the end mark, and of the padding behind it.

        It runs in bfloat16: the largest takes 9 GB then, and float16 overflows.
        """
        from transformers import T5EncoderModel

        load = partial(T5EncoderModel.from_pretrained, torch_dtype=torch.bfloat16)
        encoder = self._load(load, f"text_encoder{number}", **_FILES)
        freeze(encoder, self.device, torch.bfloat16)
        marks = encoder.config.eos_token_id, encoder.config.pad_token_id
        if not all(isinstance(mark, int) and 0 <= mark < encoder.config.vocab_size for mark in marks):
            raise ModelLoadError(
                f"diffusion: text_encoder{number}/config.json: "
                + refusal("eos_token_id, pad_token_id", "tokens of its vocabulary", marks)
            )
        tokens = torch.tensor([[marks[0], *[marks[1]] * (length - 1)]], device=self.device)
        states: torch.Tensor = encoder(tokens).last_hidden_state.to(self.dtype)
        return states


def require_finite_prompt(source: str | os.PathLike[str], *parts: torch.Tensor | None) -> None:
    """Refuse an answer of which a number is none."""
    if not all(part is None or part.isfinite().all() for part in parts):
        raise ModelLoadError(
            f"diffusion: the text encoder of {source} answers NaN or infinity to the empty prompt; its weights "
            "are damaged, or overflow their dtype: try float32"
        )


def load_saved_prompt(source: str | os.PathLike[str]) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """The states and the pooled answer from a folder's ``empty_prompt.safetensors``, or None where it has none.

    Raises:
        ModelLoadError: the file is there and holds something else.
    """
    from safetensors.torch import load_file

    file = Path(source).expanduser() / SAVED_PROMPT
    if not is_local(source) or not file.is_file():
        return None
    try:
        held = load_file(file)
    except Exception as error:  # of the library: a truncated or foreign file
        raise ModelLoadError(f"diffusion: {file} cannot be read: {error}; write it again") from error
    states, pooled = held.get("prompt_embeds"), held.get("pooled_prompt_embeds")
    if states is None or states.dim() != 3 or len(states) != 1 or (pooled is not None and pooled.dim() != 2):
        wanted = "prompt_embeds (1, length, D), and pooled_prompt_embeds (1, D') where the model takes them"
        got = {name: tuple(tensor.shape) for name, tensor in held.items()}
        raise ModelLoadError(f"diffusion: {refusal(str(file), wanted, got)}")
    return states, pooled
