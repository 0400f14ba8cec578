"""One request's whole story as lines of text, for who has never seen Slack's side. Pure.

What people and the exchange wrote is told as it is: `bot.domain.visible` makes a line safe for a terminal.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from bot.audit.telling import (
    Event,
    Step,
    clock,
    first_of,
    grouped,
    in_words,
    order_of,
    order_rows,
    orders,
    person,
    steps,
    tell,
    text_of,
    words,
)
from bot.domain.audit import Action

MAX_STEPS: Final = 400
"""Of a longer story the first and the last half of so many are told."""

LONGEST_VALUE: Final = 300
"""Characters of one value; `--format json` has the rest."""

_INDENT: Final = " " * 4


def tell_story(request_id: int, events: Sequence[Event]) -> Iterator[str]:
    """The lines: who asked for what, each step with its durations, and last what came of it. `events` are in order."""
    yield from _opening(request_id, events)
    yield ""
    yield "What happened (times are UTC; then the time since the step before, and since the request)"
    half = MAX_STEPS // 2
    told = steps(events)
    left_out = max(0, len(told) - MAX_STEPS)
    for place, step in enumerate(told):
        if left_out and place == half:
            yield ""
            yield f"… {left_out} events are left out here: --format json has them"
        if left_out and half <= place < half + left_out:
            continue
        yield ""
        yield from _step(step)
    yield ""
    yield from _changes(events)
    telling = tell(events)
    yield f"Outcome: {telling.headline}"
    yield from (f"{_INDENT}{_cut(sentence)}" for sentence in telling.sentences)


def _opening(request_id: int, events: Sequence[Event]) -> Iterator[str]:
    created = first_of(events, Action.REQUEST_CREATED)
    yield f"Cancel request #{request_id}"
    if created is None:
        yield f"{_INDENT}Its beginning is not in this database."
        return
    yield f"{_INDENT}{person(created)} asked on {clock(created['occurred_at'])}"
    yield f"{_INDENT}in Slack's workspace {text_of(created['team_id'])}, channel {text_of(created['channel_id'])}"
    yield f"{_INDENT}to cancel order {text_of(created['order_uuid'])} at Upbit"
    if created["reason"]:
        yield f"{_INDENT}because: “{_cut(text_of(created['reason']))}”"
    before, _ = orders(events)
    order = order_of(before) if before is not None else None
    if order is not None:
        yield f"{_INDENT}The order: {_order_in_brief(order)}"
    worth = next((each["details"]["value_krw"] for each in events if "value_krw" in each["details"]), None)
    if worth is not None:
        yield f"{_INDENT}What remained of it was worth {grouped(worth)} KRW when approval was asked for."


def _step(step: Step) -> Iterator[str]:
    event = step.event
    is_first = not step.since_last
    durations = "" if is_first else f"  +{step.since_last}, {step.since_start} after the request"
    yield f"{clock(event['occurred_at'])}{durations}"
    outcome = "" if event["outcome"] == "ok" else f" [{event['outcome']}]"
    what = words(event) or event["action"]
    yield f"{_INDENT}{person(event)}: {what}{outcome}  (event {event['seq']}, {event['action']})"
    yield from (f"{_INDENT * 2}{_cut(fact)}" for fact in _facts(event))


def _facts(event: Event) -> Iterator[str]:
    """What the event tells beside who did what when."""
    details = dict(event["details"])
    if event["action"] != Action.REQUEST_CREATED.value and in_words(event) and event["reason"]:
        yield in_words(event)
    reason, error = details.pop("reason", None), details.pop("error", None)
    if reason and not (event["action"] == Action.OUTCOME_SETTLED.value and event["reason"]):
        yield f"The reason as the bot records it: {text_of(reason)}"
    if error:
        yield f"The error: {text_of(error)}"
    order = order_of(event)
    if order is not None:
        yield f"The order then: {_order_in_brief(order)}"
    if event["action"] == Action.CANCEL_SENT.value:
        yield f"About to be sent, recorded before: {_pairs(details, _SENT)}"
    call = details.get("call")
    if isinstance(call, dict):
        yield from _call(call)
    approvals = details.get("approvals")
    if isinstance(approvals, list):
        counted = ", ".join(map(text_of, approvals)) or "nobody's"
        yield f"Approvals that counted: {counted}, of {text_of(details.get('approvals_required'))} needed"
    elif "approvals_required" in details:
        yield f"Approvals needed: {text_of(details['approvals_required'])}"
    rest = [name for name, value in details.items() if name not in _TOLD and not isinstance(value, dict | list | None)]
    if rest:
        yield _pairs(details, rest)


_SENT: Final = ("method", "path", "query_hash", "nonce", "uuid", "attempt")
_TOLD: Final = frozenset({*_SENT, "approvals_required", "value_krw", "remaining_value", "requester", "state"})


def _call(call: Mapping[str, Any]) -> Iterator[str]:
    yield f"Sent to Upbit: {_pairs(call, ('method', 'path', 'query_hash', 'nonce'))}"
    if "status" not in call:
        after = f" within {text_of(call['elapsed_ms'])} ms" if "elapsed_ms" in call else ""
        yield f"Upbit's answer: none that can be relied on{after}"
        return
    yield f"Upbit's answer: {_pairs(call, ('status', 'error', 'elapsed_ms', 'remaining_req'))}"
    if "body" in call:
        yield f"Upbit's words: {text_of(call['body'])}"


def _changes(events: Sequence[Event]) -> Iterator[str]:
    """The order before and after, as far as they differ."""
    before, after = orders(events)
    if before is None or after is None or before is after:
        return
    yield f"The order at event {before['seq']} and at event {after['seq']}"
    changed = [(name, old, new) for name, old, new, differs in order_rows(before, after) if differs]
    yield from (f"{_INDENT}{name}: {_cut(old)} → {_cut(new)}" for name, old, new in changed)
    if not changed:
        yield f"{_INDENT}nothing that both looks tell has changed"
    yield ""


def _order_in_brief(order: Mapping[str, Any]) -> str:
    side = {"ask": "sell", "bid": "buy"}.get(text_of(order.get("side")), text_of(order.get("side")))
    facts = [f"{side} ({text_of(order.get('ord_type'))}) on {text_of(order.get('market'))}"]
    facts += [f"{name.replace('_', ' ')} {grouped(order[name])}" for name in _AMOUNTS if name in order]
    return f"{', '.join(facts)}, state {text_of(order.get('state'))}"


_AMOUNTS: Final = ("price", "volume", "executed_volume", "remaining_volume")


def _pairs(facts: Mapping[str, Any], names: Sequence[str]) -> str:
    return " ".join(f"{name}={text_of(facts[name])}" for name in names if facts.get(name) is not None)


def _cut(text: str) -> str:
    """One line of bounded length."""
    line = re.sub(r"\s*\n\s*", " ⏎ ", text)
    return f"{line[:LONGEST_VALUE]} … (cut; --format json has all of it)" if len(line) > LONGEST_VALUE else line
