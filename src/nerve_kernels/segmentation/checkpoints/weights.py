"""Whether the weights of a checkpoint are safetensors, all of them, and those that its config asks for."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

MAX_NAMED = 3


def check_index(file: Path) -> tuple[str, ...]:
    """Refuse an index of shards that names anything but safetensors files beside it.

    Args:
        file: a ``*.safetensors.index.json``.

    Returns:
        The names of the shards.

    Raises:
        ValueError: names the first file that is none.
    """
    try:
        shards = dict.fromkeys(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file.name}: expected a weight_map from keys to files ({type(error).__name__}).") from error
    for shard in shards:
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise ValueError(
                f"{file.name}: expected names of safetensors files beside it, got {shard!r}; pickles are not read here."
            )
    return tuple(shards)


def check_keys(model: Any, found: Mapping[str, Any]) -> None:
    """Refuse weights that leave a part of the model unset, or that hold a part which the model lacks.

    Args:
        model: what was loaded.
        found: what ``from_pretrained(output_loading_info=True)`` of transformers or diffusers says.

    Raises:
        ValueError: names up to three keys of each kind.
    """
    reshaped = [
        f"{key} ({'x'.join(map(str, stored))}, expected {'x'.join(map(str, wanted))})"
        for key, stored, wanted in sorted(found["mismatched_keys"], key=lambda entry: entry[0])
    ]
    kinds: dict[str, Collection[str]] = {
        "missing": sorted(found["missing_keys"]),
        "of another shape": reshaped,
        "left over": sorted(key for key in found["unexpected_keys"] if _is_of(model, key)),
    }
    said = [f"{kind}: {_some(keys)}" for kind, keys in kinds.items() if keys]
    if said or found.get("error_msgs"):
        said += [str(message).strip() for message in found.get("error_msgs", ())][:MAX_NAMED]
        raise ValueError(f"its weights are not those its config.json describes; {'; '.join(said)}.")


def _is_of(model: Any, key: str) -> bool:
    """Whether a left-over key belongs to a part that the model has, such as a layer too many.

    What belongs to none is of no use here and harmless: averages of a training, a safety checker, the other tower.
    Neither are ``position_ids``, which older versions wrote and which are 0, 1, 2, ...
    """
    return not key.endswith("position_ids") and key.partition(".")[0] in {name for name, _ in model.named_children()}


def _some(keys: Collection[str]) -> str:
    more = len(keys) - MAX_NAMED
    return ", ".join(list(keys)[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
