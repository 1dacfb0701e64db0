"""What went wrong in a worker, as one line."""

from __future__ import annotations

import re

# The last line of a traceback: the error's class, and what it says.
_LAST = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)(?:\([^)]*\))?: (.+)$", flags=re.MULTILINE)


def reason_of(error: BaseException) -> str:
    """The first cause that a chain of Ray's errors names.

    Ray hands on a worker's error as text, wrapped in others of its own.

    Example:
        >>> reason_of(RuntimeError("task failed\\nray.exceptions.RayTaskError: x\\nValueError: no labels"))
        'no labels'
    """
    text = str(error)
    found = _LAST.findall(text)
    return found[-1].strip() if found else (text.strip().splitlines() or [type(error).__name__])[0]
