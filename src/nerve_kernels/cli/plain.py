"""Messages that are one line, whatever is in them."""

from __future__ import annotations


def plain_line(text: str) -> str:
    """One line that a terminal shows as it is: nothing in a file's name can move the cursor or change colours.

    Example:
        >>> plain_line("a\\n  b\\x1b[31m.png")
        'a b\\\\x1b[31m.png'
    """
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
