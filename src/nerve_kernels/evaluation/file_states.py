"""Whether a file is still the one that a result was made from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple


class FileState(NamedTuple):
    """What a file was when it was read.

    Args:
        size: Bytes.
        modified: Time of its last change, in nanoseconds since 1970.
        digest: SHA-256 of its bytes, in hexadecimal.
    """

    size: int
    modified: int
    digest: str

    @classmethod
    def of(cls, path: Path) -> FileState:
        """The state of a file now.

        Raises:
            OSError: It is not there or cannot be read.
        """
        status = path.stat()  # before its bytes are read: a change in between then shows the next time
        return cls(status.st_size, status.st_mtime_ns, _digest(path))

    def is_unchanged(self, path: Path, *, verify: bool = False) -> bool:
        """Whether a file is still in this state.

        Size and time are compared; where the time alone differs, as in a copy, the bytes decide.

        Args:
            path: The file.
            verify: Read and compare the bytes in any case: size and time can be forged, or kept by a copy.
        """
        try:
            status = path.stat()
            if status.st_size != self.size:
                return False
            if status.st_mtime_ns == self.modified and not verify:
                return True
            return _digest(path) == self.digest
        except OSError:
            return False


def _digest(path: Path) -> str:
    if not path.is_file():  # reading from a pipe may never end
        raise OSError(f"{path}: not a file")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
