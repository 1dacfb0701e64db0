"""Docstrings are written for ``help()``; this turns what Markdown would misread into Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|func|meth|mod):`~?([^`]+)`")
TABLE = re.compile(r"^=+ +=+\n.*\n=+ +=+$", flags=re.DOTALL | re.MULTILINE)


class DocstringMarkdown(griffe.Extension):
    """Sections, roles and tables as the Google style and Markdown know them."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is None:
            return
        text = ROLE.sub(r"`\1`", obj.docstring.value)
        text = TABLE.sub(lambda found: f"```text\n{found[0]}\n```", text)
        # "Examples" is a section, whose code is shown as code; "Example" would be a remark.
        obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
