"""Texts that others chose, as a screen or a page may have them."""

import json
import unicodedata
from typing import Final

INVISIBLE: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""Unicode's categories of what is obeyed, or not seen, instead of read; also what turns a line around."""


def visible(text: str) -> str:
    """The text with such characters in JSON's notation, so that it stays JSON where it was."""
    if text.isprintable():
        return text
    return "".join(json.dumps(char)[1:-1] if unicodedata.category(char) in INVISIBLE else char for char in text)


def visible_lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(map(visible, text.split("\n")))
