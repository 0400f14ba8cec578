"""What the events of one request tell, in plain words for who has seen neither Slack nor the exchange. Pure.

All of it is made of stored events alone, and says nothing that they do not. The page of an evidence pack and the story
in the terminal say the same in the same words; each escapes what people wrote for where it goes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from bot.domain.audit import Action, Json, canonical
from bot.domain.cancel_request import ENDED_STATES, TRANSITIONS, CanceledBy, State, Verdict
from bot.domain.order import Order

Event = Mapping[str, Any]
Tone = Literal["good", "plain", "warning", "open"]


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


# What came of it


def tell(events: Sequence[Event]) -> Telling:
    """The verdict in words, from the last event that moved the request."""
    moved = [event for event in events if action_of(event) in TRANSITIONS]
    if not moved:
        return Telling(tone="warning", headline="The events do not tell what came of it")
    last = moved[-1]
    action = action_of(last)
    assert action is not None
    _, state = TRANSITIONS[action]
    telling = _TELLINGS[state](last)
    tries = len(events_of(events, Action.CANCEL_SENT))
    sent = f"The bot set out to send a cancel to Upbit {tries} times." if tries != 1 else _ONE_TRY
    sentences = [*telling.sentences, sent if tries else "No cancel was sent to Upbit."]
    headline = telling.headline if state in ENDED_STATES else f"Not over: {telling.headline}"
    return Telling(tone=telling.tone, headline=headline, sentences=tuple(filter(None, sentences)))


_ONE_TRY: Final = "The bot set out to send a cancel to Upbit once."


def _refused(event: Event) -> Telling:
    return Telling(tone="plain", headline="Refused before anybody could approve it", sentences=(_why(event),))


def _denied(event: Event) -> Telling:
    return Telling(tone="plain", headline=f"Denied by {person(event)}", sentences=(in_words(event),))


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
    said = text_of(event["details"].get("error"))
    return Telling(
        tone="warning",
        headline="Not canceled: Upbit refused the cancel",
        sentences=(f"Upbit's name for why: {said}." if said else "",),
    )


def _settled(event: Event) -> Telling:
    verdict = event["details"].get("verdict")
    found = _SETTLED.get(verdict, text_of(verdict)) if isinstance(verdict, str) else text_of(verdict)
    return Telling(
        tone="warning",
        headline=f"Settled by hand: {person(event)} looked at Upbit and says that {found}",
        sentences=("The bot itself could not tell what had happened.", in_words(event)),
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
    reason, error = text_of(event["details"].get("reason")), text_of(event["details"].get("error"))
    return f"The reason as the bot records it: {reason}{f' ({error})' if error else ''}." if reason else ""


def in_words(event: Event) -> str:
    said = event["reason"] or event["details"].get("reason")
    return f"In their words: “{text_of(said)}”" if said else ""


def _volumes(event: Event) -> str:
    order = order_of(event)
    if order is None or "executed_volume" not in order:
        return "How much had been executed is not known."
    whole = f" of {grouped(order['volume'])}" if "volume" in order else ""
    rest = f"; remaining {grouped(order['remaining_volume'])}" if "remaining_volume" in order else ""
    return f"Executed volume at that look: {grouped(order['executed_volume'])}{whole}{rest}."


# The order


def order_of(event: Event) -> Mapping[str, Any] | None:
    order = event["details"].get("order")
    return order if isinstance(order, dict) else None


def orders(events: Sequence[Event]) -> tuple[Event | None, Event | None]:
    """The events that show the order first and last."""
    showing = [event for event in events if order_of(event) is not None]
    return (showing[0], showing[-1]) if showing else (None, None)


def order_rows(before: Event | None, after: Event | None) -> list[tuple[str, str, str, bool]]:
    """(field, before, after, whether it differs) of the order; what one look does not tell is no difference."""
    old, new = (dict(order_of(event) or {}) if event is not None else {} for event in (before, after))
    return [
        (name, grouped(old.get(name)), grouped(new.get(name)), name in old and name in new and old[name] != new[name])
        for name in sorted(old | new, key=lambda name: (_FIELDS.get(name, len(_FIELDS)), name))
    ]


_FIELDS: Final = {name: place for place, name in enumerate(Order.__dataclass_fields__)}
"""The fields of an order as Upbit lists them."""


def grouped(value: object) -> str:
    """An amount with its thousands apart and every digit; anything else as it is."""
    text = text_of(value)
    if not _AMOUNT.fullmatch(text):
        return text
    whole, point, fraction = text.partition(".")
    return f"{int(whole):,}{point}{fraction}"


_AMOUNT: Final = re.compile(r"[0-9]{4,60}(\.[0-9]{1,60})?", re.ASCII)


# What was sent


def calls(events: Sequence[Event]) -> Iterator[Call]:
    """What the bot set out to send, and each call that an event tells of, in order."""
    for event in events:
        details = event["details"]
        if event["action"] == Action.CANCEL_SENT.value:
            names = ("method", "path", "uuid", "nonce", "attempt", "query_hash")
            facts = tuple((name, details[name]) for name in names if name in details)
            yield Call(seq=event["seq"], what="about to be sent; recorded before", facts=facts)
        call = details.get("call")
        if isinstance(call, dict):
            yield Call(seq=event["seq"], what=f"answered, or not: {words(event)}", facts=tuple(call.items()))


# The timeline


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    event: Event
    since_start: str
    since_last: str
    details: str


def steps(events: Sequence[Event]) -> list[Step]:
    moments = [moment_of(event["occurred_at"]) for event in events]
    return [
        Step(
            event=event,
            since_start=duration(moments[0], moments[place]),
            since_last=duration(moments[place - 1], moments[place]) if place else "",
            details=in_brief(event),
        )
        for place, event in enumerate(events)
    ]


def in_brief(event: Event) -> str:
    """The plain facts of an event; orders, calls and lists have tables of their own."""
    plain = {name: value for name, value in event["details"].items() if not isinstance(value, dict | list)}
    return " ".join(f"{name}={text_of(value)}" for name, value in plain.items() if value is not None)


def moment_of(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None


def duration(start: datetime | None, end: datetime | None) -> str:
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


def words(event: Event) -> str:
    action = action_of(event)
    return _WORDS.get(action, "") if action is not None else ""


# Words and values


def action_of(event: Event) -> Action | None:
    """None where a later version of the bot wrote the event."""
    try:
        return Action(event["action"])
    except ValueError:
        return None


def events_of(events: Sequence[Event], action: Action) -> list[Event]:
    return [event for event in events if event["action"] == action.value]


def first_of(events: Sequence[Event], action: Action) -> Event | None:
    return next(iter(events_of(events, action)), None)


def person(event: Event) -> str:
    """Whoever acted: the name as Slack gave it then, and the id, which is what counts."""
    if event["actor"] == "system":
        return "the bot"
    return f"{event['actor_name']} ({event['actor']})" if event["actor_name"] else text_of(event["actor"])


def clock(text: object) -> str:
    """A stored time as people read it, with all its digits."""
    return re.sub(r"^([0-9-]{10})T([0-9:.]+?)0{0,3}Z$", r"\1 \2 UTC", text_of(text))


def text_of(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else canonical(value)  # type: ignore[arg-type]
