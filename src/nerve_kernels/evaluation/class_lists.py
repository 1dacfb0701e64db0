"""The classes of each data set: the labels in its files, and the names by which CLIP is asked for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

IGNORED = 255
"""In a mask: a pixel that is not scored."""

UNKNOWN = -1
"""In a table of labels: a label the data set does not have, so the file is not what it should be."""

BACKGROUND_CLASS = ("background",)


@dataclass(frozen=True)
class ClassList:
    """Classes in the order in which masks and confusion matrices number them.

    Args:
        labels: of each class, what the annotation files write for it.
        names: of each class, its names; the first is shown, of all the best match counts.
    """

    labels: tuple[int, ...]
    names: tuple[tuple[str, ...], ...]

    @classmethod
    def read(cls, name: str) -> ClassList:
        """The list that ships with the package as ``class_names/<name>.txt``.

        Example:
            >>> classes = ClassList.read("cityscapes")
            >>> len(classes.names), classes.labels[0], classes.names[0]
            (19, 7, ('road', 'street'))
        """
        text = resources.files(__package__).joinpath("class_names", f"{name}.txt").read_text(encoding="utf-8-sig")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        split = [line.split(": ", 1) for line in lines]
        return cls(
            tuple(int(label) for label, _ in split),
            tuple(tuple(word.strip() for word in words.split("|")) for _, words in split),
        )

    def first(self, count: int) -> ClassList:
        """The first so many classes."""
        return ClassList(self.labels[:count], self.names[:count])

    def table(self, known: Iterable[int], *, background: bool) -> npt.NDArray[np.int16]:
        """Class of each label: the index to look masks up in.

        Args:
            known: labels the annotation files may hold. Those that are no class are background where there is one,
                else not scored. 255 is not scored unless it is one of them.
            background: whether class 0 is the background, which moves the others up by one.

        Returns:
            For each label its class, ``IGNORED`` or ``UNKNOWN``.

        Example:
            >>> ClassList((3, 1), (("a",), ("b",))).table(range(5), background=True)[:6].tolist()
            [0, 2, 0, 1, 0, -1]
        """
        legal = sorted(known)
        table = np.full(max(IGNORED, *legal) + 1, UNKNOWN, dtype=np.int16)
        table[IGNORED] = IGNORED
        table[legal] = 0 if background else IGNORED
        for index, label in enumerate(self.labels):
            table[label] = index + int(background)
        return table

    def all_names(self, *, background: bool) -> tuple[tuple[str, ...], ...]:
        """Names of every class, the background first where there is one."""
        return (BACKGROUND_CLASS, *self.names) if background else self.names
