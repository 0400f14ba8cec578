"""What events are found by that is no column of theirs, as SQL which SQLite and PostgreSQL keep in indexes.

    EventKind         action, outcome, reason and size in one text: `order.canceled ok  085`
    ReasonWord        `details.reason`, where it is a word of Reason
    ValueKrw          `details.value_krw`, what the request's order was worth
    OwnMark           1 for an approval that may be one's own: who asked is the same person, or the event does not tell

Each is total: an event that somebody has tampered with has a kind, too. On PostgreSQL they look
for a name in the canonical text, which has one way to write it and escapes quotes in what people wrote: a cast to JSON
would refuse an event in which the exchange's answer holds a NUL.
"""

from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Integer, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

SEPARATOR: Final = " "
BEHIND_SEPARATOR: Final = "!"
"""The character after the separator: a range up to it holds all that begins with a word and the separator."""

SMALLEST_CLASS_DIGITS: Final = 7
"""Values below a million are in one class."""


class EventKind(FunctionElement[str]):
    """Four words: action, outcome, reason (or nothing), and the class of the value (see `value_class`)."""

    type = Text()
    inherit_cache = True


class ReasonWord(FunctionElement[str]):
    """Empty where there is none; what a person wrote there when they settled a request is none."""

    type = Text()
    inherit_cache = True


class ValueKrw(FunctionElement[str]):
    """The decimal as text, `unknown`, or NULL."""

    type = Text()
    inherit_cache = True


class ValueDigits(FunctionElement[str]):
    """How many digits the value has before its point."""

    type = Text()
    inherit_cache = True


class OwnMark(FunctionElement[int]):
    """1 for an approval by who asked for it, and for one whose event does not say who asked; else NULL."""

    type = Integer()
    inherit_cache = True


def value_class(value: Decimal) -> str:
    """The class of a value in KRW: number of digits before the point, and the first of them. Sorts as values do."""
    digits = format(value, "f").partition(".")[0]
    return LOWEST_CLASS if len(digits) < SMALLEST_CLASS_DIGITS else f"{len(digits):02}{digits[0]}"


LOWEST_CLASS: Final = "0"
UNKNOWN_CLASS: Final = "~"
"""Behind all others: what is not known counts as more than any amount."""

_HAS_NO_WORD: Final = "action = 'outcome.settled' OR substr(action, 1, 6) = 'audit.'"

_SQLITE_VALUE: Final = "CASE WHEN json_valid(details) THEN json_extract(details, '$.value_krw') END"
_SQLITE_DIGITS: Final = f"(instr(({_SQLITE_VALUE}) || '.', '.') - 1)"
_SQLITE_REASON: Final = (
    f"CASE WHEN {_HAS_NO_WORD} OR NOT json_valid(details) THEN ''"
    " ELSE coalesce(json_extract(details, '$.reason'), '') END"
)
_SQLITE_KIND: Final = (
    f"(action || ' ' || outcome || ' ' || {_SQLITE_REASON} || ' ' ||"
    f" CASE WHEN ({_SQLITE_VALUE}) IS NULL THEN ''"
    f" WHEN ({_SQLITE_VALUE}) = 'unknown' THEN '~'"
    f" WHEN {_SQLITE_DIGITS} < 7 THEN '0'"
    f" ELSE substr('0' || {_SQLITE_DIGITS}, -2) || substr(({_SQLITE_VALUE}), 1, 1) END)"
)

_POSTGRESQL_TEXT: Final = "split_part(split_part(details, '\"{name}\":\"', 2), '\"', 1)"
"""The text under a name, empty where it is absent."""

_POSTGRESQL_VALUE: Final = _POSTGRESQL_TEXT.format(name="value_krw")
_POSTGRESQL_DIGITS: Final = f"length(split_part({_POSTGRESQL_VALUE}, '.', 1))"
_POSTGRESQL_REASON: Final = f"CASE WHEN {_HAS_NO_WORD} THEN '' ELSE {_POSTGRESQL_TEXT.format(name='reason')} END"
_POSTGRESQL_KIND: Final = (
    f"((action || ' ' || outcome || ' ' || {_POSTGRESQL_REASON} || ' ' ||"
    f" CASE {_POSTGRESQL_VALUE} WHEN '' THEN '' WHEN 'unknown' THEN '~'"
    f" ELSE CASE WHEN {_POSTGRESQL_DIGITS} < 7 THEN '0'"
    f" ELSE lpad(CAST({_POSTGRESQL_DIGITS} AS text), 2, '0') || left({_POSTGRESQL_VALUE}, 1) END END)"
    ' COLLATE "C")'
)

_IS_APPROVAL: Final = "action IN ('approval.recorded', 'request.approved')"
_SQLITE_OWN: Final = (
    f"(CASE WHEN {_IS_APPROVAL} AND actor = CASE WHEN json_valid(details)"
    " THEN coalesce(json_extract(details, '$.requester'), actor) ELSE actor END THEN 1 END)"
)
_POSTGRESQL_OWN: Final = (
    f"(CASE WHEN {_IS_APPROVAL} AND actor ="
    f" coalesce(nullif({_POSTGRESQL_TEXT.format(name='requester')}, ''), actor) THEN 1 END)"
)

_SQL: Final[dict[type[FunctionElement[Any]], dict[str, str]]] = {
    EventKind: {"sqlite": _SQLITE_KIND, "postgresql": _POSTGRESQL_KIND},
    ReasonWord: {"sqlite": f"({_SQLITE_REASON})", "postgresql": f"({_POSTGRESQL_REASON})"},
    ValueKrw: {"sqlite": f"({_SQLITE_VALUE})", "postgresql": f"(nullif({_POSTGRESQL_VALUE}, '') COLLATE \"C\")"},
    ValueDigits: {"sqlite": _SQLITE_DIGITS, "postgresql": f"({_POSTGRESQL_DIGITS})"},
    OwnMark: {"sqlite": _SQLITE_OWN, "postgresql": _POSTGRESQL_OWN},
}


def _compile(element: FunctionElement[Any], compiler: Any, **_options: object) -> str:
    return _SQL[type(element)][compiler.dialect.name]


for _element in _SQL:
    compiles(_element)(_compile)
