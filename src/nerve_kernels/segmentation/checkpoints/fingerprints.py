"""Digests by which models are told apart: of the bits of their weights, and of the settings that no weight holds."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

DIGITS = 32
# Where a checkpoint came from and which library read it; not what it computes.
_PROVENANCE = ("architectures", "dtype", "model_type", "torch_dtype", "transformers_version")


class Fingerprint:
    """A digest of settings and of every weight's name, type, shape and bits.

    All bytes are read, at about 1.5 GB/s: a sample would miss what fine-tuning changes. That happens at the first
    call, and again only after weights were written to.

    Args:
        settings: Gives values that JSON can hold; what it cannot is taken as text.
        modules: Models whose parameters and buffers count, in this order.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> one, other = Fingerprint(lambda: {"scale": 1}, layer), Fingerprint(lambda: {"scale": 2}, layer)
        >>> one() == one(), one() == other()
        (True, False)
    """

    def __init__(self, settings: Callable[[], Mapping[str, Any]], *modules: torch.nn.Module) -> None:
        self._settings, self._modules = settings, modules
        self._known: tuple[list[tuple[int, int]], str] | None = None

    def __call__(self) -> str:
        """32 hexadecimal digits, the same in every process and on every device."""
        tensors = [tensor for module in self._modules for tensor in module.state_dict().values()]
        state = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if self._known is None or self._known[0] != state:
            text = json.dumps(self._settings(), sort_keys=True, default=str)
            self._known = state, _digest(text.encode(), self._modules)
        return self._known[1]


def digest_of_weights(*modules: torch.nn.Module) -> str:
    """The digest of weights alone, as the run folders of earlier versions hold it."""
    return _digest(b"", modules)


def digest_of_tensors(*tensors: torch.Tensor) -> str:
    """The digest of a few tensors, too large to be settings."""
    sha = hashlib.sha256()
    for tensor in tensors:
        _add(sha, "", tensor)
    return sha.hexdigest()[:DIGITS]


def own_settings(model: Any) -> dict[str, Any]:
    """What a model of diffusers or transformers was configured with, where that is not the library's default.

    Defaults are left out because a later version of the library may add some.
    """
    config = model.config
    if hasattr(config, "to_diff_dict"):
        given = config.to_diff_dict()
    else:
        parameters = inspect.signature(type(model).__init__).parameters
        given = {
            name: value
            for name, value in config.items()
            if name not in parameters or value != _as_list(parameters[name].default)
        }
    return _without_provenance(given)


def _digest(start: bytes, modules: tuple[torch.nn.Module, ...]) -> str:
    sha = hashlib.sha256(start)
    for module in modules:
        for name, tensor in module.state_dict().items():
            _add(sha, name, tensor)
    return sha.hexdigest()[:DIGITS]


def _add(sha: Any, name: str, tensor: torch.Tensor) -> None:
    sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    sha.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())


def _as_list(value: Any) -> Any:
    """Checkpoints are JSON, which has no tuples."""
    return list(value) if isinstance(value, tuple) else value


def _without_provenance(settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    return {
        name: _without_provenance(value)
        for name, value in settings.items()
        if not name.startswith("_") and name not in _PROVENANCE
    }
