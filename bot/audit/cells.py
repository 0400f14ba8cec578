"""Cells of tables that people open in a spreadsheet."""

from typing import Final

_BEGIN_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r")


def guarded(cell: str) -> str:
    """The text as a cell of CSV that no spreadsheet takes for a formula: a leading apostrophe makes it text."""
    return f"'{cell}" if cell.startswith(_BEGIN_FORMULAS) else cell
