"""The page of an evidence pack: what the events of one request tell, in words and tables. Pure, but for its template.

The page is made of stored events alone, so it says nothing that events.jsonl does not. What people and the exchange
wrote is escaped by the template engine, and characters that a reader would not see are written out.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bot.domain.audit import Action, Json, canonical
from bot.domain.cancel_request import ENDED_STATES, TRANSITIONS, CanceledBy, State, Verdict
from bot.domain.checkpoint import SignedCheckpoint
from bot.domain.order import Order

LONGEST_SHOWN: Final = 4000
"""Characters of one value; events.jsonl has the rest."""

Event = Mapping[str, Any]
Tone = Literal["good", "plain", "warning", "open"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the page tells beside the events."""

    request_id: int
    made_at: str
    made_by: str
    version: str
    signed: SignedCheckpoint
    first_seq: int
    later_events: bool  #: the request has events after the checkpoint
    counts: Mapping[str, int]  #: of the request's events, by action


@dataclass(frozen=True, kw_only=True, slots=True)
class Telling:
    """What came of the request, in words."""

    tone: Tone
    headline: str
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A call to the exchange, or the intent to make one."""

    seq: int
    what: str
    facts: tuple[tuple[str, Json], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A user group as a decision relied on it."""

    group_id: str
    members: str
    read_at: str


def render(events: Sequence[Event], facts: Facts) -> str:
    """One HTML file without anything outside of it. `events` are in order; of each action some may be left out."""
    created = _first(events, Action.REQUEST_CREATED)
    opened = _first(events, Action.REQUEST_OPENED) or _first(events, Action.REQUEST_REFUSED)
    left_out = sum(facts.counts.values()) - len(events)
    before, after = _orders(events)
    page = _pages().get_template("evidence.html")
    return page.render(
        facts=facts,
        telling=tell(events),
        created=created,
        opened=opened,
        order_rows=_order_rows(before, after),
        order_before=before,
        order_after=after,
        decisions=[event for event in events if event["action"] in _DECISIONS],
        refused=_all(events, Action.APPROVAL_REFUSED),
        calls=list(_calls(events)),
        steps=_steps(events),
        posted=[event for event in events if event["action"] in _POSTED],
        left_out=left_out,
        groups=_groups,
        words=_words,
        in_words=_in_words,
        person=_person,
        clock=_clock,
        grouped=_grouped,
    )


# What came of it


def tell(events: Sequence[Event]) -> Telling:
    """The verdict in words, from the last event that moved the request."""
    moved = [event for event in events if _action(event) in TRANSITIONS]
    if not moved:
        return Telling(tone="warning", headline="The events do not tell what came of it")
    last = moved[-1]
    action = _action(last)
    assert action is not None
    _, state = TRANSITIONS[action]
    telling = _TELLINGS[state](last)
    tries = len(_all(events, Action.CANCEL_SENT))
    sent = f"The bot set out to send a cancel to Upbit {tries} times." if tries != 1 else _ONE_TRY
    sentences = [*telling.sentences, sent if tries else "No cancel was sent to Upbit."]
    headline = telling.headline if state in ENDED_STATES else f"Not over: {telling.headline}"
    return Telling(tone=telling.tone, headline=headline, sentences=tuple(filter(None, sentences)))


_ONE_TRY: Final = "The bot set out to send a cancel to Upbit once."


def _refused(event: Event) -> Telling:
    return Telling(tone="plain", headline="Refused before anybody could approve it", sentences=(_why(event),))


def _denied(event: Event) -> Telling:
    return Telling(tone="plain", headline=f"Denied by {_person(event)}", sentences=(_in_words(event),))


def _superseded(event: Event) -> Telling:
    return Telling(
        tone="plain",
        headline="Superseded: the order was filled or canceled elsewhere before enough people had approved",
        sentences=(_why(event),),
    )


def _canceled(event: Event) -> Telling:
    by, volumes = event["details"].get("by"), _volumes(event)
    headline = "Canceled: the exchange shows the order canceled"
    if by == CanceledBy.THIS_REQUEST.value:
        return Telling(tone="good", headline=headline, sentences=("Upbit had accepted this request's cancel.", volumes))
    doubt = (
        "Whose cancel it was is not proven: the answer to this request's cancel was lost, or proves nothing, so "
        "somebody else may have canceled it."
    )
    return Telling(tone="warning", headline=headline, sentences=(doubt, volumes))


def _filled(event: Event) -> Telling:
    return Telling(
        tone="warning",
        headline="Not canceled: the order was fully executed before the cancel took effect",
        sentences=(_volumes(event),),
    )


def _rejected(event: Event) -> Telling:
    said = _text(event["details"].get("error"))
    return Telling(
        tone="warning",
        headline="Not canceled: Upbit refused the cancel",
        sentences=(f"Upbit's name for why: {said}." if said else "",),
    )


def _settled(event: Event) -> Telling:
    verdict = event["details"].get("verdict")
    found = _SETTLED.get(verdict, _text(verdict)) if isinstance(verdict, str) else _text(verdict)
    return Telling(
        tone="warning",
        headline=f"Settled by hand: {_person(event)} looked at Upbit and says that {found}",
        sentences=("The bot itself could not tell what had happened.", _in_words(event)),
    )


_SETTLED: Final = {
    Verdict.CANCELED.value: "the order was canceled",
    Verdict.FILLED.value: "the order was fully executed",
    Verdict.OPEN.value: "the order was still open",
}


def _plainly(tone: Tone, headline: str, *sentences: str) -> Any:
    return lambda _event: Telling(tone=tone, headline=headline, sentences=sentences)


_TELLINGS: Final = {
    State.REQUESTED: _plainly("open", "recorded, and the order has not been read"),
    State.PENDING: _plainly("open", "waits for approval"),
    State.REFUSED: _refused,
    State.APPROVED: _plainly("open", "approved; a cancel may be sent"),
    State.DENIED: _denied,
    State.WITHDRAWN: _plainly("plain", "Withdrawn by who asked"),
    State.SUPERSEDED: _superseded,
    State.EXPIRED: _plainly("plain", "Expired: not enough people approved in time"),
    State.LAPSED: _plainly(
        "warning",
        "Not canceled by this request: approved, but not surely sent in time",
        "An earlier try, if there was one, showed no effect.",
    ),
    State.SENDING: _plainly("open", "a cancel was sent or is about to be, and what came of it is not known"),
    State.ACCEPTED: _plainly("open", "Upbit accepted the cancel, and the order is not seen canceled yet"),
    State.REJECTED: _rejected,
    State.CANCELED: _canceled,
    State.FILLED: _filled,
    State.UNRESOLVED: _plainly("warning", "UNRESOLVED, what came of the cancel is not known"),
    State.FAILED: _plainly("warning", "Not canceled: long after the last try the exchange still showed the order open"),
    State.SETTLED: _settled,
}


def _why(event: Event) -> str:
    reason, error = _text(event["details"].get("reason")), _text(event["details"].get("error"))
    return f"The reason as the bot records it: {reason}{f' ({error})' if error else ''}." if reason else ""


def _in_words(event: Event) -> str:
    said = event["reason"] or event["details"].get("reason")
    return f"In their words: “{_text(said)}”" if said else ""


def _volumes(event: Event) -> str:
    order = _order(event)
    if order is None or "executed_volume" not in order:
        return "How much had been executed is not known."
    whole = f" of {_grouped(order['volume'])}" if "volume" in order else ""
    rest = f"; remaining {_grouped(order['remaining_volume'])}" if "remaining_volume" in order else ""
    return f"Executed volume at that look: {_grouped(order['executed_volume'])}{whole}{rest}."


# The order


def _order(event: Event) -> Mapping[str, Any] | None:
    order = event["details"].get("order")
    return order if isinstance(order, dict) else None


def _orders(events: Sequence[Event]) -> tuple[Event | None, Event | None]:
    """The events that show the order first and last."""
    showing = [event for event in events if _order(event) is not None]
    return (showing[0], showing[-1]) if showing else (None, None)


def _order_rows(before: Event | None, after: Event | None) -> list[tuple[str, str, str, bool]]:
    """(field, before, after, whether it differs) of the order; what one look does not tell is no difference."""
    old, new = (dict(_order(event) or {}) if event is not None else {} for event in (before, after))
    return [
        (name, _grouped(old.get(name)), _grouped(new.get(name)), name in old and name in new and old[name] != new[name])
        for name in sorted(old | new, key=lambda name: (_FIELDS.get(name, len(_FIELDS)), name))
    ]


_FIELDS: Final = {name: place for place, name in enumerate(Order.__dataclass_fields__)}
"""The fields of an order as Upbit lists them."""


def _grouped(value: object) -> str:
    """An amount with its thousands apart and every digit; anything else as it is."""
    text = _text(value)
    if not _AMOUNT.fullmatch(text):
        return text
    whole, point, fraction = text.partition(".")
    return f"{int(whole):,}{point}{fraction}"


_AMOUNT: Final = re.compile(r"[0-9]{4,60}(\.[0-9]{1,60})?", re.ASCII)


# Who decided, and what was sent

_POSTED: Final = frozenset({Action.CARD_POSTED.value, Action.SUMMARY_POSTED.value})
_DECISIONS: Final = frozenset(
    {
        Action.APPROVAL_RECORDED.value,
        Action.REQUEST_APPROVED.value,
        Action.REQUEST_DENIED.value,
        Action.REQUEST_WITHDRAWN.value,
        Action.OUTCOME_SETTLED.value,
    }
)


def _groups(event: Event) -> list[Group]:
    """The user groups that this decision relied on."""
    membership = event["details"].get("membership")
    if not isinstance(membership, dict):
        return []
    return [
        Group(group_id=group_id, members=_members(group), read_at=_clock(_text(group.get("read_at"))))
        for group_id, group in membership.items()
        if isinstance(group, dict)
    ]


def _members(group: Mapping[str, Any]) -> str:
    members = group.get("members")
    if not isinstance(members, list):
        return f"not known ({_text(group.get('error'))})"
    count = group.get("members_count", len(members))
    listed = ", ".join(map(_text, members))
    return f"{listed}, and others: {_text(count)} in all" if count != len(members) else listed or "nobody"


def _calls(events: Sequence[Event]) -> Iterator[Call]:
    """What the bot set out to send, and each call that an event tells of, in order."""
    for event in events:
        details = event["details"]
        if event["action"] == Action.CANCEL_SENT.value:
            names = ("method", "path", "uuid", "nonce", "attempt", "query_hash")
            facts = tuple((name, details[name]) for name in names if name in details)
            yield Call(seq=event["seq"], what="about to be sent; recorded before", facts=facts)
        call = details.get("call")
        if isinstance(call, dict):
            yield Call(seq=event["seq"], what=f"answered, or not: {_words(event)}", facts=tuple(call.items()))


# The timeline


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    event: Event
    since_start: str
    since_last: str
    details: str


def _steps(events: Sequence[Event]) -> list[Step]:
    moments = [_moment(event["occurred_at"]) for event in events]
    return [
        Step(
            event=event,
            since_start=_duration(moments[0], moments[place]),
            since_last=_duration(moments[place - 1], moments[place]) if place else "",
            details=_in_brief(event),
        )
        for place, event in enumerate(events)
    ]


def _in_brief(event: Event) -> str:
    """The plain facts of an event; orders, calls and lists have tables of their own."""
    plain = {name: value for name, value in event["details"].items() if not isinstance(value, dict | list)}
    return " ".join(f"{name}={_text(value)}" for name, value in plain.items() if value is not None)


def _moment(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _duration(start: datetime | None, end: datetime | None) -> str:
    if start is None or end is None or (start.tzinfo is None) != (end.tzinfo is None):
        return "not known"
    passed = end - start
    if passed < timedelta(minutes=1):
        return f"{passed.total_seconds():.3f} s"
    minutes, seconds = divmod(int(passed.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


_WORDS: Final = {
    Action.REQUEST_CREATED: "asked for the cancel",
    Action.REQUEST_OPENED: "the order was read; approval was asked for",
    Action.REQUEST_REFUSED: "refused before anybody could approve",
    Action.REQUEST_APPROVED: "approved; it was the last approval needed",
    Action.REQUEST_DENIED: "denied",
    Action.REQUEST_WITHDRAWN: "withdrew the request",
    Action.REQUEST_SUPERSEDED: "the order had ended elsewhere",
    Action.REQUEST_EXPIRED: "nobody decided in time",
    Action.REQUEST_LAPSED: "not sent in time",
    Action.CANCEL_SENT: "set out to send the cancel",
    Action.CANCEL_UNSENT: "surely nothing reached Upbit, or it limits us",
    Action.CANCEL_ACCEPTED: "Upbit accepted the cancel",
    Action.CANCEL_REJECTED: "Upbit refused the cancel",
    Action.ORDER_OPEN: "the order shows that nothing happened",
    Action.ORDER_CANCELED: "the exchange shows the order canceled",
    Action.ORDER_FILLED: "the exchange shows the order fully executed",
    Action.OUTCOME_UNRESOLVED: "nothing is certain; people are called",
    Action.CANCEL_FAILED: "the order is still open",
    Action.OUTCOME_SETTLED: "said what happened, after a look at Upbit",
    Action.APPROVAL_RECORDED: "approved; more approvals are needed",
    Action.APPROVAL_REFUSED: "a click or form that does not count",
    Action.REMINDER_SENT: "who may approve was reminded",
    Action.ORDER_CHANGED: "the order has moved",
    Action.ORDER_UNSEEN: "Upbit does not show the order",
    Action.CANCEL_UNANSWERED: "no answer that can be relied on",
    Action.CANCEL_DOUBTED: "refused in a way that proves nothing",
    Action.CANCEL_ANSWERED_LATE: "an answer that came late",
    Action.CARD_POSTED: "the card was shown in Slack",
    Action.SUMMARY_POSTED: "the verdict was told in Slack, or could not be",
}


def _words(event: Event) -> str:
    action = _action(event)
    return _WORDS.get(action, "") if action is not None else ""


# Words and values


def _action(event: Event) -> Action | None:
    """None where a later version of the bot wrote the event."""
    try:
        return Action(event["action"])
    except ValueError:
        return None


def _all(events: Sequence[Event], action: Action) -> list[Event]:
    return [event for event in events if event["action"] == action.value]


def _first(events: Sequence[Event], action: Action) -> Event | None:
    return next(iter(_all(events, action)), None)


def _person(event: Event) -> str:
    """Whoever acted: the name as Slack gave it then, and the id, which is what counts."""
    if event["actor"] == "system":
        return "the bot"
    return f"{event['actor_name']} ({event['actor']})" if event["actor_name"] else _text(event["actor"])


def _clock(text: object) -> str:
    """A stored time as people read it, with all its digits."""
    return re.sub(r"^([0-9-]{10})T([0-9:.]+?)0{0,3}Z$", r"\1 \2 UTC", _text(text))


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else canonical(value)  # type: ignore[arg-type]


_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""Unicode's categories of what is obeyed, or not seen, instead of read; also what turns a line around."""


def visible(text: str) -> str:
    """The text with such characters in JSON's notation, so that it stays JSON where it was."""
    return "".join(json.dumps(char)[1:-1] if unicodedata.category(char) in _INVISIBLE else char for char in text)


def _shown(value: object) -> object:
    """What the template puts on the page in place of a value."""
    if isinstance(value, Markup):
        return value
    text = _text(value)
    cut = f"{text[:LONGEST_SHOWN]} … (cut; events.jsonl has all of it)" if len(text) > LONGEST_SHOWN else text
    return "\n".join(map(visible, cut.split("\n")))


def _pages() -> Environment:
    return Environment(
        loader=PackageLoader("bot.audit"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
