"""The Hugging Face hub: whether it answers at all, and single files of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

REACH_SECONDS = 5.0
REMEMBERED_SECONDS = 60.0

_last_answer: tuple[float, str, bool] | None = None


def is_reachable() -> bool:
    """Whether the hub answers anything within ``REACH_SECONDS``; asked once a minute at most.

    The libraries ask for each file anew, wait for each answer and try again: without a network that is minutes, for a
    model that may even be in the cache.
    """
    global _last_answer
    endpoint = address()
    now = time.monotonic()
    if _last_answer is None or _last_answer[1] != endpoint or now - _last_answer[0] > REMEMBERED_SECONDS:
        _last_answer = now, endpoint, _answers(endpoint)
    return _last_answer[2]


def address() -> str:
    """Where the hub is: ``HF_ENDPOINT``, or huggingface.co."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def is_switched_off() -> bool:
    """Whether the user has said that the hub is not to be asked (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def find_file(model_id: str, name: str, *, subfolder: str | None, local_files_only: bool) -> Path | None:
    """A file of a model on the hub, in the cache; None where the model has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(model_id, name, subfolder=subfolder, local_files_only=local_files_only))
    except EntryNotFoundError:
        return None


def _answers(endpoint: str) -> bool:
    """One request without a second try, in a thread: no client bounds the time that it takes to look up a name."""
    from huggingface_hub import get_session

    answers: list[int] = []

    def ask() -> None:
        try:
            answers.append(get_session().head(endpoint, timeout=REACH_SECONDS).status_code)
        except Exception:  # requests' or httpx's, whichever the hub's library uses: no answer is no answer
            return

    thread = threading.Thread(target=ask, name="ask-the-hub", daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return bool(answers)
