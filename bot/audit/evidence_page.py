"""The page of an evidence pack: what the events of one request tell, in words and tables. Pure, but for its template.

The page is made of stored events alone, so it says nothing that events.jsonl does not. What people and the exchange
wrote is escaped by the template engine, and characters that a reader would not see are written out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bot.audit.telling import (
    Event,
    calls,
    clock,
    events_of,
    first_of,
    grouped,
    in_words,
    order_rows,
    orders,
    person,
    steps,
    tell,
    text_of,
    words,
)
from bot.domain.audit import Action
from bot.domain.checkpoint import SignedCheckpoint
from bot.domain.visible import visible_lines

LONGEST_SHOWN: Final = 4000
"""Characters of one value; events.jsonl has the rest."""


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
class Group:
    """A user group as a decision relied on it."""

    group_id: str
    members: str
    read_at: str


def render(events: Sequence[Event], facts: Facts) -> str:
    """One HTML file without anything outside of it. `events` are in order; of each action some may be left out."""
    created = first_of(events, Action.REQUEST_CREATED)
    opened = first_of(events, Action.REQUEST_OPENED) or first_of(events, Action.REQUEST_REFUSED)
    left_out = sum(facts.counts.values()) - len(events)
    before, after = orders(events)
    page = _pages().get_template("evidence.html")
    return page.render(
        facts=facts,
        telling=tell(events),
        created=created,
        opened=opened,
        order_rows=order_rows(before, after),
        order_before=before,
        order_after=after,
        decisions=[event for event in events if event["action"] in _DECISIONS],
        refused=events_of(events, Action.APPROVAL_REFUSED),
        calls=list(calls(events)),
        steps=steps(events),
        posted=[event for event in events if event["action"] in _POSTED],
        left_out=left_out,
        groups=_groups,
        words=words,
        in_words=in_words,
        person=person,
        clock=clock,
        grouped=grouped,
    )


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
        Group(group_id=group_id, members=_members(group), read_at=clock(text_of(group.get("read_at"))))
        for group_id, group in membership.items()
        if isinstance(group, dict)
    ]


def _members(group: Mapping[str, Any]) -> str:
    members = group.get("members")
    if not isinstance(members, list):
        return f"not known ({text_of(group.get('error'))})"
    count = group.get("members_count", len(members))
    listed = ", ".join(map(text_of, members))
    return f"{listed}, and others: {text_of(count)} in all" if count != len(members) else listed or "nobody"


def _shown(value: object) -> object:
    """What the template puts on the page in place of a value."""
    if isinstance(value, Markup):
        return value
    text = text_of(value)
    cut = f"{text[:LONGEST_SHOWN]} … (cut; events.jsonl has all of it)" if len(text) > LONGEST_SHOWN else text
    return visible_lines(cut)


def _pages() -> Environment:
    return Environment(
        loader=PackageLoader("bot.audit"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
