"""On a command line the libraries' own bars and warnings would bury the one line that matters."""

from __future__ import annotations


def quiet_libraries() -> None:
    """Let diffusers, transformers and Pillow report errors only, and draw no progress bars."""
    import logging
    import warnings

    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # an image that cannot be read is reported by name
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
