"""Files are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path


def write_atomic(path: str | os.PathLike[str], content: bytes | Iterable[bytes]) -> Path:
    """Write `content` to `path` through a temporary file in the same folder.

    A reader never sees half a file, and a crash leaves the old one in place.

    Args:
        path: the file to write; its folder is made where it is missing.
        content: the bytes of the whole file, at once or in parts.

    Returns:
        The path written.

    Raises:
        OSError: where the folder cannot be made or written to; it names `path`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are readable by their owner only, and would stay so once renamed.
    # Nor after the target: its name may be as long as a name can be.
    temporary = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as stream:
            stream.writelines([content] if isinstance(content, bytes) else content)
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(target)  # the file that is missing now, not the one nobody asked for
        raise
    return target
