"""What was typed after `/cancel` to ask about requests or the audit. Pure, and total: Slack lets any text through.

status <uuid|#n>
open    [uuid|#n|@user|me|market|since YYYY-MM-DD] [before #n]
history [uuid|#n|@user|me|market|since YYYY-MM-DD] [before #n]
help
export  [csv|jsonl] [uuid|#n|@U…|me|market|since YYYY-MM-DD|until YYYY-MM-DD|action A|outcome O|reason R|over KRW|own]
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final

from bot.domain.audit import Action, Outcome, Reason
from bot.domain.event_filter import Filter, read_amount
from bot.domain.order import UUID_PATTERN
from bot.exporting import WantedExport
from bot.inquiry import Wanted

QUOTES: Final = "`'\"‘’“”*_~<>"  # noqa: RUF001 - Slack and phones put these around what people paste

MAX_REQUEST_ID_DIGITS: Final = 15
MAX_WORDS: Final = 20
"""No question has more."""


class Topic(StrEnum):
    STATUS = "status"
    OPEN = "open"
    HISTORY = "history"
    HELP = "help"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What somebody asks. `wanted` is None where the rest of it was not understood."""

    topic: Topic
    wanted: Wanted | None


def parse_question(text: str, *, person_id: str) -> Question | None:
    """The question, None where the text does not begin like one. `me` is who types."""
    words = _MENTION.sub(r" @\1 ", text).split(maxsplit=MAX_WORDS)
    topic = _TOPICS.get(words[0].strip(QUOTES).lower()) if words else None
    if topic is None:
        return None
    if topic is Topic.HELP:
        return Question(topic=topic, wanted=Wanted())
    wanted = _wanted(iter(words[1:]), person_id) if len(words) <= MAX_WORDS else None
    if topic is Topic.STATUS:
        return Question(topic=topic, wanted=wanted if _names_one(wanted) else None)
    if wanted is not None:
        wanted = replace(wanted, only_open=topic is Topic.OPEN)
    return Question(topic=topic, wanted=wanted)


def typed(wanted: Wanted) -> str:
    """The command that asks for this, as somebody would type it: what `parse_question` reads back."""
    words = [
        Topic.OPEN.value if wanted.only_open else Topic.HISTORY.value,
        f"#{wanted.request_id}" if wanted.request_id is not None else "",
        wanted.order_uuid or "",
        f"@{wanted.requester_id}" if wanted.requester_id is not None else "",
        f"@{wanted.requester_name}" if wanted.requester_name is not None else "",
        wanted.market or "",
        f"since {wanted.since.date().isoformat()}" if wanted.since is not None else "",
        f"before #{wanted.before}" if wanted.before is not None else "",
    ]
    return "/cancel " + " ".join(filter(None, words))


_TOPICS: Final = {topic.value: topic for topic in Topic}
_MENTION: Final = re.compile(r"<@([UW][A-Z0-9]{1,30})(?:\|[^<>]{0,200})?>", re.ASCII)
_QUOTES_OF_NAMES: Final = QUOTES.replace("_", "")  # with which a name may end
_PERSON_ID: Final = re.compile(r"[UW][A-Z0-9]{1,30}", re.ASCII)
_NUMBER: Final = re.compile(rf"#?([1-9][0-9]{{0,{MAX_REQUEST_ID_DIGITS - 1}}})", re.ASCII)
_MARKET: Final = re.compile(r"[A-Z0-9]{1,20}-[A-Z0-9]{1,20}", re.ASCII)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
MAX_NAME_CHARS: Final = 80
"""Slack's longest name of a person."""


def _wanted(words: Iterator[str], person_id: str) -> Wanted | None:
    """What the words ask for; None where one of them is not understood, or says again what another has said."""
    given: dict[str, object] = {}
    for word in words:
        field = _keyword(word)
        value = _AFTER[field](next(words, "")) if field is not None else None
        if field is None:
            field, value = _filter(word, person_id)
        if value is None or field in given or ({field, *given} >= _BOTH_NAMES):
            return None
        given[field] = value
    return Wanted(**given)  # type: ignore[arg-type]


_BOTH_NAMES: Final = {"requester_id", "requester_name"}


def _keyword(word: str) -> str | None:
    keyword = word.strip(QUOTES).lower()
    return keyword if keyword in _AFTER else None


def _filter(word: str, person_id: str) -> tuple[str, object | None]:
    """The field of Wanted that a word stands for, and its value."""
    bare = word.strip(QUOTES)
    if bare.lower() == "me":
        return "requester_id", person_id
    if bare.startswith("@"):
        name = word.strip(_QUOTES_OF_NAMES)[1:]
        if _PERSON_ID.fullmatch(name):
            return "requester_id", name
        return "requester_name", name if 0 < len(name) <= MAX_NAME_CHARS else None
    if UUID_PATTERN.fullmatch(bare.lower()):
        return "order_uuid", bare.lower()
    if _NUMBER.fullmatch(bare):
        return "request_id", _number(bare)
    return "market", bare.upper() if _MARKET.fullmatch(bare.upper()) else None


def _number(word: str) -> int | None:
    found = _NUMBER.fullmatch(word.strip(QUOTES))
    return int(found[1]) if found else None


def _midnight(word: str) -> datetime | None:
    """The beginning of that day, UTC."""
    try:
        day = date.fromisoformat(word.strip(QUOTES)) if _DATE.fullmatch(word.strip(QUOTES)) else None
    except ValueError:
        return None
    return datetime(day.year, day.month, day.day, tzinfo=UTC) if day else None


_AFTER: Final[dict[str, Callable[[str], object | None]]] = {"since": _midnight, "before": _number}


def _names_one(wanted: Wanted | None) -> bool:
    """Whether it names one request or one order, and nothing else."""
    if wanted is None or wanted == Wanted():
        return False
    return wanted in (Wanted(request_id=wanted.request_id), Wanted(order_uuid=wanted.order_uuid))


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportQuestion:
    """Somebody asks for an export. `wanted` is None where the rest of it was not understood."""

    wanted: WantedExport | None


EXPORT: Final = "export"


def parse_export(text: str, *, person_id: str) -> ExportQuestion | None:
    """The export that is asked for, None where the text does not begin like that. `me` is who types."""
    words = _MENTION.sub(r" @\1 ", text).split(maxsplit=MAX_WORDS)
    if not words or words[0].strip(QUOTES).lower() != EXPORT:
        return None
    return ExportQuestion(wanted=_wanted_export(iter(words[1:]), person_id) if len(words) <= MAX_WORDS else None)


def _wanted_export(words: Iterator[str], person_id: str) -> WantedExport | None:
    """None where a word is not understood, or says again what another has said."""
    given: dict[str, object] = {}
    for word in words:
        bare = word.strip(QUOTES).lower()
        value: object | None
        if bare in _FORMS:
            name, value = "form", bare
        elif bare == "own":
            name, value = "own", True
        elif bare in _AFTER_IN_EXPORT:
            name, read = _AFTER_IN_EXPORT[bare]
            value = read(next(words, ""))
        else:
            name, value = _filter(word, person_id)
            name = _AS_IN_THE_AUDIT.get(name, name)
        if value is None or name in given or name not in _EXPORT_NAMES:
            return None
        given[name] = value
    form = given.pop("form", "csv")
    return WantedExport(form=form, selection=Filter(**given))  # type: ignore[arg-type]


def _amount(word: str) -> Decimal | None:
    return read_amount(word.strip(QUOTES))


def _one_of(words: Iterable[str]) -> Callable[[str], object | None]:
    known = frozenset(words)

    def read(word: str) -> object | None:
        bare = word.strip(QUOTES.replace("_", "")).lower()
        return bare if bare in known else None

    return read


_FORMS: Final = frozenset({"csv", "jsonl"})
_AS_IN_THE_AUDIT: Final = {"requester_id": "actor"}
_EXPORT_NAMES: Final = frozenset({"form", *(field.name for field in fields(Filter))})
_AFTER_IN_EXPORT: Final[dict[str, tuple[str, Callable[[str], object | None]]]] = {
    "since": ("since", _midnight),
    "until": ("until", _midnight),
    "action": ("action", _one_of(Action)),
    "outcome": ("outcome", _one_of(Outcome)),
    "reason": ("details_reason", _one_of(Reason)),
    "over": ("over_krw", _amount),
}
