"""Rows of results as CSV files. Imports nothing heavy, so that comparing two files takes no time."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """As CSV, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    temporary.replace(path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows as they were written, every value a text."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
