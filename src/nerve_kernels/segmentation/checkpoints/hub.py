"""The Hugging Face hub: whether it answers at all, and the files of its models."""

from __future__ import annotations

import threading
import time
from pathlib import Path

REACH_SECONDS = 5.0
REMEMBERED_SECONDS = 60.0

_last_answer: tuple[float, str, bool] | None = None


def why_unreachable() -> str | None:
    """Why nothing can be fetched from the hub, or None; it is asked once a minute at most, for ``REACH_SECONDS``.

    The libraries ask for each file anew, wait for each answer and try again: without a network that is minutes, for a
    model that may even be in the cache.
    """
    global _last_answer
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    endpoint, now = str(constants.ENDPOINT), time.monotonic()
    if _last_answer is None or _last_answer[1] != endpoint or now - _last_answer[0] > REMEMBERED_SECONDS:
        _last_answer = now, endpoint, _answers(endpoint)
    return None if _last_answer[2] else f"{endpoint} cannot be reached"


def find_file(model_id: str, name: str, *, subfolder: str | None) -> Path | None:
    """A file of a model on the hub, fetched into the cache; None where the model has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    model_id, revision = split_revision(model_id)
    try:
        return Path(hf_hub_download(model_id, name, subfolder=subfolder, revision=revision))
    except EntryNotFoundError:
        return None


def cached_folder(model_id: str) -> Path | None:
    """Where the files of a model are that were fetched earlier, in the folder format; None where there are none."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    model_id, revision = split_revision(model_id)
    model = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model_id, repo_type="model")
    commit = revision or "main"
    try:
        commit = (model / "refs" / commit).read_text().strip()
    except OSError:  # not the name of a branch or tag: a commit itself, or unknown
        if revision is None:
            return None
    folder = model / "snapshots" / commit
    return folder if folder.is_dir() else None


def split_revision(source: str) -> tuple[str, str | None]:
    """A model id and the revision behind its @, which is a commit, a branch or a tag.

    Example:
        >>> split_revision("facebook/dinov2-base@f9e44c814b77"), split_revision("facebook/dinov2-base")
        (('facebook/dinov2-base', 'f9e44c814b77'), ('facebook/dinov2-base', None))
    """
    model_id, _, revision = source.partition("@")
    return model_id, revision or None


def revision_of(file: Path) -> str | None:
    """The commit that a file in the hub's cache is of; None for any other file.

    Example:
        >>> revision_of(Path("hub/models--a--b/snapshots/c0ffee/unet/config.json")), revision_of(Path("b/config.json"))
        ('c0ffee', None)
    """
    parts = file.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


def address(model_id: str) -> str:
    """Where a model's card is."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{model_id}"


def is_gated(error: BaseException | None) -> bool:
    """Whether an error says that a model's terms have to be accepted first; the libraries wrap it."""
    from huggingface_hub.errors import GatedRepoError

    while error is not None:
        if isinstance(error, GatedRepoError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _answers(endpoint: str) -> bool:
    """One request without a second try, in a thread: no client bounds the time that it takes to look up a name."""
    from huggingface_hub import get_session

    answers: list[int] = []

    def ask() -> None:
        try:
            answers.append(get_session().head(endpoint, timeout=REACH_SECONDS).status_code)
        except Exception:  # of requests or httpx, whichever the hub's library uses: no answer is no answer
            return

    thread = threading.Thread(target=ask, name="ask-the-hub", daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return bool(answers)
