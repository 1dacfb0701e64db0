"""Rows of results, as CSV files and as aligned text. Imports nothing heavy: comparing two files takes no time."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """As CSV, whole or not at all; the last row has every column."""
    from nerve_kernels.segmentation.output.files import write_atomic

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows as they were written, every value a text."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first row is their names."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
