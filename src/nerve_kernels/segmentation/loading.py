"""Load checkpoints from a folder or the hub: safetensors only, and plain words on failure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nerve_kernels._operators.checks import refusal

from .checkpoints import hub
from .checkpoints.configs import check_config_file, least_parameters
from .checkpoints.weights import check_index, check_keys

NO_PICKLES = "it has no safetensors weights, and pickles are not read here."


class ModelLoadError(OSError):
    """A checkpoint is neither a complete folder here nor reachable on the hub."""


def load_part(
    load: Callable[..., Any],
    source: str | os.PathLike[str],
    *,
    argument: str,
    config: str,
    weights: str | None = None,
    subfolder: str | None = None,
    conversion: Callable[[Path], str] | None = None,
    **options: Any,
) -> Any:
    """Call a library's ``from_pretrained``, judge what it reads and what it loaded, and say failures in one sentence.

    Args:
        load: the ``from_pretrained`` of a diffusers or transformers class.
        source: a folder, or a model id of the hub, with ``@revision`` behind it where one is meant.
        argument: what the caller calls the source, for the message.
        config: the file of sizes and settings; it is checked before anything is built from it.
        weights: the file of a part that has weights; those are read as safetensors, never pickles, and must be all
            that the config asks for.
        subfolder: the part of a Stable Diffusion checkpoint.
        conversion: the command that converts pickles in a folder; None: by the class that `load` is of.
        options: handed on to `load`.

    Returns:
        What `load` returns.

    Raises:
        ModelLoadError: names the argument, the source, the part and the first reason.
    """
    what = f"{source}{f' ({subfolder})' if subfolder else ''}"
    name, revision = hub.split_revision(os.fspath(source))
    local = is_local(source)
    unreachable = None if local else hub.why_unreachable()
    # Without the hub, what is in its cache is as good as any other folder.
    folder = Path(source).expanduser() if local else hub.cached_folder(str(source)) if unreachable else None
    check_folder(source, argument=argument, subfolder=subfolder)
    options["local_files_only"] = folder is not None
    if not local and revision is not None:
        options["revision"] = revision
    if subfolder is not None:
        options["subfolder"] = subfolder

    def find(name: str) -> Path | None:
        if folder is None:
            return hub.find_file(str(source), name, subfolder=subfolder)
        file = folder / (subfolder or "") / name
        return file if file.is_file() else None

    try:
        if unreachable and folder is None:
            raise FileNotFoundError(f"{unreachable}, and the model is not in the cache here.")
        read = _check_files(find, config, weights)
        _note_part(argument, source, read, subfolder)
        if weights is not None and local and not any(file.suffix == ".safetensors" for file in read):
            part = Path(source).expanduser() / (subfolder or "")
            if any(part.glob("*.bin")):
                command = _conversion(load, part) if conversion is None else conversion(part)
                raise ValueError(f"{NO_PICKLES} If you trust them, convert them: {command}")
        if weights is None:
            return load(str(folder or name), **options)
        # Weights of another shape are then told by name, as missing ones are, and refused like them.
        options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, found = load(str(folder or name), **options)
        check_keys(model, found)
        return model
    except Exception as error:  # the libraries raise many kinds, from OSError to httpx errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if "use_safetensors" in reason:  # the library's advice is to read pickles instead
            reason = NO_PICKLES
        if hub.is_gated(error):
            reason = f"it is gated: accept its terms at {hub.address(name)} and log in with `hf auth login`."
        if local:
            raise ModelLoadError(
                f"{argument}: cannot load {what}: {reason} Wanted a complete checkpoint "
                "in the hub's folder format with safetensors weights."
            ) from error
        if unreachable and folder is not None and isinstance(error, OSError):
            reason = f"{unreachable}, and the model is not complete in the cache here."
        raise ModelLoadError(
            f"{argument}: cannot load {what} from the Hugging Face hub: {reason} "
            "Check the name and the connection, give a folder that holds the checkpoint, or use "
            "the preset 'embedded', which needs neither."
        ) from error


def check_folder(source: str | os.PathLike[str], *, argument: str, subfolder: str | None = None) -> None:
    """Refuse a source that is meant as a folder and is none.

    Raises:
        ModelLoadError: names the argument and the folder.
    """
    folder = Path(source).expanduser() / (subfolder or "") if is_local(source) else None
    if folder is not None and not folder.is_dir():
        raise ModelLoadError(
            f"{argument}: the folder {folder} does not exist; wanted a checkpoint in the hub's folder format"
        )


def _check_files(find: Callable[[str], Path | None], config: str, weights: str | None) -> list[Path]:
    """Judge what can be judged before anything is built: sizes, and whether weights are safetensors; what is read."""
    file = find(config)
    read = [] if file is None else [file]
    sizes = {} if file is None else check_config_file(file)
    if weights is None:
        return read
    whole = find(weights)
    index = None if whole is not None else find(f"{weights}.index.json")
    files = [] if whole is None else [whole]
    if index is not None:
        files = [index.with_name(name) for name in check_index(index)]
    if not files or not all(file.is_file() for file in files):
        return read + files  # the library says what it misses, or fetches it
    check_room(config, sizes, files)
    return read + files


def check_room(config: str, sizes: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Refuse a config that describes more numbers than the files of its weights have bytes.

    Raises:
        ValueError: names the config, with both.
    """
    least, stored = least_parameters(sizes), sum(file.stat().st_size for file in files)
    if least > stored:  # every number takes a byte or more
        raise ValueError(f"{config} describes at least {least} numbers, but its weights are {stored} bytes in all.")


def _conversion(load: Any, folder: Path) -> str:
    """The command that writes safetensors beside the pickles of a part."""
    owner = getattr(load, "func", load).__self__
    library = owner.__module__.partition(".")[0]
    return (
        f'python -c "from {library} import {owner.__name__} as M; '
        f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


@dataclass(frozen=True)
class LoadedPart:
    """What was read of one part of a checkpoint.

    Args:
        argument: what the caller calls the checkpoint.
        source: folder or model id.
        revision: the commit of the hub that it is of; None for a folder.
        files: the config and the weights, as paths within the checkpoint.
    """

    argument: str
    source: str
    revision: str | None
    files: tuple[str, ...]


_parts: ContextVar[list[LoadedPart] | None] = ContextVar("_parts", default=None)


@contextmanager
def recording_parts() -> Iterator[list[LoadedPart]]:
    """Collect what is loaded within the block."""
    parts: list[LoadedPart] = []
    token = _parts.set(parts)
    try:
        yield parts
    finally:
        _parts.reset(token)


def _note_part(argument: str, source: str | os.PathLike[str], files: list[Path], subfolder: str | None) -> None:
    parts = _parts.get()
    if parts is not None:
        names = tuple(f"{subfolder}/{file.name}" if subfolder else file.name for file in files)
        revision = next((hub.revision_of(file) for file in files), None)
        parts.append(LoadedPart(argument, os.fspath(source), revision, names))


def check_vocabulary(tokenizer: Any, text_config: Any, *, argument: str) -> None:
    """Refuse a tokenizer without words, or with more than the text model embeds, and a model without an end mark.

    Raises:
        ModelLoadError: with both sizes, or with what stands for the end mark's number.
    """
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what transformers makes of a folder without its files
        raise ModelLoadError(f"{argument}: expected tokenizer.json, or vocab.json and merges.txt; got no tokenizer")
    if len(tokenizer) > text_config.vocab_size:
        raise ModelLoadError(
            f"{argument}: the tokenizer has {len(tokenizer)} tokens and the text model {text_config.vocab_size}; "
            "expected a tokenizer and a model of one checkpoint"
        )
    end = text_config.eos_token_id
    if not isinstance(end, int) or isinstance(end, bool):
        raise ModelLoadError(f"{argument}: config.json: eos_token_id: expected a token's number, got {end!r:.60}")


def is_local(source: str | os.PathLike[str]) -> bool:
    """Whether a source is meant as a folder: it exists, or cannot be a hub id.

    Example:
        >>> is_local("./models/sd"), is_local("openai/clip-vit-base-patch16")
        (True, False)
    """
    text = os.fspath(source)
    if not isinstance(source, str) or Path(text).expanduser().is_dir():
        return True
    return text.startswith((".", "~", os.sep)) or text.count("/") > 1 or "\\" in text


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        ValueError: not a device of this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except Exception as error:  # torch raises RuntimeError, AssertionError, NotImplementedError
        reason = str(error).strip().splitlines()[0]
        got = f"{str(device)!r}, which cannot be used here ({reason})"
        raise ValueError(refusal("device", "'cpu' or a device of this machine, such as 'cuda'", got)) from error
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """float16 on a GPU and float32 elsewhere, unless told otherwise.

    Raises:
        ValueError: not one of float32, float16, bfloat16.
    """
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    known: Sequence[torch.dtype] = (torch.float32, torch.float16, torch.bfloat16)
    for candidate in known:
        if dtype in (candidate, str(candidate), str(candidate).removeprefix("torch.")):
            return candidate
    raise ValueError(refusal("dtype", "float32, float16 or bfloat16", repr(dtype)))


def preset_dtype(device: str | torch.device | None) -> torch.dtype | None:
    """What large models run in where nobody says: bfloat16 on CPUs that compute in it, else as :func:`choose_dtype`."""
    chosen = choose_device(device)
    return torch.bfloat16 if chosen.type == "cpu" and computes_bfloat16(cpu_capabilities()) else None


def cpu_capabilities() -> Mapping[str, object]:
    """What this processor has, by torch's names."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    has = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}  # torch before 2.12
    return {name: getattr(torch.cpu, function, bool)() for name, function in has.items()}


def computes_bfloat16(capabilities: Mapping[str, object]) -> bool:
    """Whether a processor multiplies in bfloat16 by itself, which halves the time of a large model; others emulate it.

    Example:
        >>> computes_bfloat16({"avx2": True, "avx512_bf16": False}), computes_bfloat16({"amx_bf16": True})
        (False, True)
    """
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def freeze(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Put a model in evaluation mode on its device; nothing here is ever trained."""
    model.eval().requires_grad_(False).to(device)
    if model.dtype != dtype:  # diffusers warns of casts, also of those that change nothing
        model.to(dtype)
