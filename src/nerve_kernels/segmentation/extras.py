"""One plain sentence where an optional library is missing."""

from __future__ import annotations

import importlib.util

WORK_OF_EXTRA = {
    "segmentation": "the segmentation pipeline",
    "evaluation": "evaluation",
    "formats": "writing annotations",
    "bulk": "nerve-bulk",
}


class MissingExtraError(ImportError):
    """A library of one of the extras is not installed."""


def require_extra(*libraries: str, extra: str = "segmentation") -> None:
    """Raise :class:`MissingExtraError` unless every library can be imported.

    Args:
        libraries: import names, for example ``"diffusers"``. They are looked up, not imported.
        extra: the extra of this package that brings them, one of ``WORK_OF_EXTRA``.

    Raises:
        MissingExtraError: names what is missing and the command that installs it.

    Example:
        >>> require_extra("torch")
        >>> require_extra("no_such_library")
        Traceback (most recent call last):
            ...
        nerve_kernels.segmentation.extras.MissingExtraError: no_such_library is not installed: \
the segmentation pipeline needs it. Install it with: pip install "nerve_kernels[segmentation]"
    """
    missing = [library for library in libraries if importlib.util.find_spec(library) is None]
    if missing:
        names = ", ".join(missing)
        verb, pronoun = ("is", "it") if len(missing) == 1 else ("are", "them")
        raise MissingExtraError(
            f"{names} {verb} not installed: {WORK_OF_EXTRA[extra]} needs {pronoun}. "
            f'Install {pronoun} with: pip install "nerve_kernels[{extra}]"'
        )
