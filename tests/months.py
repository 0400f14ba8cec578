"""Months of events, made up: small ones to count by hand, and a busy one that looks like a desk's."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from bot.database.chain import Chain
from bot.database.engine import Database
from bot.domain.audit import SYSTEM, Action, Actor, AuditEvent, Json, Outcome, canonical
from bot.domain.stored_event import StoredEvent

HOME: Final = "T0HOME"
DANA: Final = Actor(id="U0DANA", name="dana", team_id=HOME)
CARA: Final = Actor(id="U0CARA", name="cara", team_id=HOME)
BEN: Final = Actor(id="U0BEN", name="ben", team_id=HOME)
MINA: Final = Actor(id="U0MINA", name="김민아", team_id=HOME)
EVE: Final = Actor(id="U0EVE", name="eve", team_id=HOME)
OPS: Final = Actor(id="cli:ops")

Told = tuple[float, Action, Actor, dict[str, Json]]
"""A step of a story: seconds since it began, what happened, who did it, and the facts."""


def step(after_s: float, action: Action, actor: Actor = SYSTEM, **details: Json) -> Told:
    return after_s, action, actor, details


def opened(after_s: float = 1.0, *, value: str | None = "1000000", required: int = 1) -> Told:
    return step(
        after_s, Action.REQUEST_OPENED, remaining_value=value, approvals_required=required, order={"side": "ask"}
    )


def canceled(after_s: float) -> Told:
    return step(after_s, Action.ORDER_CANCELED, by="this_request")


def sent_and_canceled(after_s: float) -> tuple[Told, ...]:
    """Sent at once, accepted a quarter of a second later, canceled half a second after that."""
    return (
        step(after_s, Action.CANCEL_SENT, attempt=1),
        step(after_s + 0.25, Action.CANCEL_ACCEPTED),
        canceled(after_s + 0.75),
    )


@dataclass
class Happened:
    """What happened, in any order; it is told in the order of time."""

    events: list[tuple[datetime, AuditEvent]] = field(default_factory=list)

    def request(
        self, number: int, at: str | datetime, *steps: Told, by: Actor = DANA, market: str | None = "KRW-BTC"
    ) -> None:
        """A request from its command on; `at` is UTC."""
        begins_at = datetime.fromisoformat(at).replace(tzinfo=UTC) if isinstance(at, str) else at
        for after_s, action, actor, details in (step(0, Action.REQUEST_CREATED, by), *steps):
            is_created = action is Action.REQUEST_CREATED
            event = AuditEvent(
                action=action,
                outcome=_outcome_of(action),
                actor=actor,
                request_id=number,
                order_uuid=f"00000000-0000-4000-8000-{number:012d}",
                market=None if is_created else market,
                reason="wrong price" if is_created else None,
                details=details,
            )
            self.events.append((begins_at + timedelta(seconds=after_s), event))

    def alone(self, at: str | datetime, action: str, actor: Actor = SYSTEM, **facts: Any) -> None:
        """An event that belongs to no request. `action` may be one of other versions."""
        moment = datetime.fromisoformat(at).replace(tzinfo=UTC) if isinstance(at, str) else at
        outcome = facts.pop("outcome", Outcome.OK)
        # What other versions write is no member of Action, and is stored all the same.
        known: Any = action if isinstance(action, Action) else _Word(action)
        self.events.append((moment, AuditEvent(action=known, outcome=outcome, actor=actor, details=facts)))

    def ordered(self) -> Sequence[tuple[datetime, AuditEvent]]:
        return sorted(self.events, key=lambda each: each[0])

    def stored(self) -> list[StoredEvent]:
        """As the database would give them back."""
        return [_stored(seq, at, event) for seq, (at, event) in enumerate(self.ordered(), start=1)]

    def write(self, database: Database) -> None:
        """Into the audit, as one chain."""
        with database.write() as connection:
            chain = Chain(database, connection)
            for at, event in self.ordered():
                chain.append(event, occurred_at=at)
            chain.write()


class _Word(str):
    """An action that this version does not know."""

    __slots__ = ()

    @property
    def value(self) -> str:
        return str(self)


def _stored(seq: int, at: datetime, event: AuditEvent) -> StoredEvent:
    return StoredEvent(
        seq=seq,
        occurred_at=at,
        action=str(event.action.value),
        outcome=str(event.outcome),
        actor=event.actor.id,
        actor_name=event.actor.name,
        request_id=event.request_id,
        order_uuid=event.order_uuid,
        market=event.market,
        reason=event.reason,
        details=canonical(dict(event.details)),
    )


def _outcome_of(action: Action) -> Outcome:
    if action in {Action.REQUEST_REFUSED, Action.CANCEL_REJECTED, Action.APPROVAL_REFUSED}:
        return Outcome.REFUSED
    if action in {Action.OUTCOME_UNRESOLVED, Action.CANCEL_UNANSWERED}:
        return Outcome.UNKNOWN
    failed = {Action.CANCEL_FAILED, Action.REQUEST_LAPSED, Action.CANCEL_UNSENT}
    return Outcome.FAILED if action in failed else Outcome.OK


# A desk's month

_DESK: Final = tuple(
    Actor(id=f"U0{name.upper()}", name=shown, team_id=HOME)
    for name, shown in (
        ("dana", "dana"),
        ("cara", "cara"),
        ("mina", "김민아"),
        ("jiho", "박지호"),
        ("paul", "Paul <b>O'Neil</b>"),
        ("yuna", "이유나"),
        ("theodora", "theodora.von.und.zu.hohenstein-schwarzenberg"),
    )
)
_CHIEFS: Final = (
    BEN,
    Actor(id="U0SEO", name="서윤 (treasury)", team_id=HOME),
    Actor(id="U0LEE", name="lee", team_id=HOME),
)
_MARKETS: Final = ("KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE", "BTC-ETH", "USDT-BTC", "KRW-ADA")


def busy_month(begins_at: datetime, *, requests: int, days: int = 31, seed: int = 10) -> Happened:
    """What a desk does in a month, with everything in it that a reviewer looks for; the same for the same seed."""
    happened, dice = Happened(), random.Random(seed)
    for number in range(1, requests + 1):
        _one(happened, dice, number, begins_at + _office_hours(dice, days))
    for number, (reason, person) in enumerate(_refused_commands()):
        happened.alone(
            begins_at + timedelta(days=number % days, hours=3), Action.COMMAND_REFUSED, person, reason=reason
        )
    _around(happened, begins_at)
    return happened


def _office_hours(dice: random.Random, days: int) -> timedelta:
    day = dice.randrange(days)
    if day % 7 in {2, 3} and dice.random() < 0.8:
        day = (day + 2) % days
    return timedelta(days=day, hours=dice.triangular(0, 15, 5))


def _one(happened: Happened, dice: random.Random, number: int, at: datetime) -> None:
    who = dice.choices(_DESK, (9, 7, 5, 4, 2, 2, 1))[0]
    usual = _CHIEFS[0] if who is _DESK[1] else dice.choices(_CHIEFS, (5, 3, 2))[0]
    market = dice.choices(_MARKETS, (12, 8, 5, 4, 3, 2, 1, 1))[0]
    value = f"{dice.lognormvariate(16, 1.6) / (1 if market.startswith('KRW') else 1e7):.4f}"
    decides_after = 1.3 if dice.random() < 0.02 else min(dice.lognormvariate(4, 1.3) + 3, 1700)
    accepted_after = decides_after + 0.1 + dice.lognormvariate(-1.6, 0.8)
    ended_after = accepted_after + dice.lognormvariate(-0.9, 1.0)
    steps: list[Told] = [opened(0.4, value=value)]
    if dice.random() < 0.05:
        reason = dice.choices(("own_request", "not_an_approver", "already_decided", "expired"), (2, 5, 4, 1))[0]
        clicker = who if reason == "own_request" else dice.choice(_DESK)
        steps.append(step(decides_after / 2, Action.APPROVAL_REFUSED, clicker, reason=reason, kind="approve"))
    steps += _ending(dice, (who, usual), (decides_after, accepted_after, ended_after))
    happened.request(number, at, *steps, by=who, market=market)


def _ending(dice: random.Random, people: tuple[Actor, Actor], times: tuple[float, float, float]) -> list[Told]:
    """How it goes on: mostly well."""
    (who, approver), (decides_after, accepted_after, ended_after) = people, times
    approved = step(decides_after, Action.REQUEST_APPROVED, approver, approvals=[approver.id])
    sent = step(decides_after + 0.05, Action.CANCEL_SENT, attempt=1)
    accepted = step(accepted_after, Action.CANCEL_ACCEPTED)
    lost = [approved, sent, step(decides_after + 5, Action.CANCEL_UNANSWERED, error="timeout")]
    unresolved = [*lost, step(decides_after + 31, Action.OUTCOME_UNRESOLVED, reason="nothing_certain")]
    endings = (
        (80, [approved, sent, accepted, canceled(ended_after)]),
        (4, [approved, sent, accepted, step(ended_after, Action.ORDER_FILLED)]),
        (4, [step(decides_after, Action.REQUEST_DENIED, approver)]),
        (3, [step(decides_after, Action.REQUEST_WITHDRAWN, who)]),
        (3, [step(1800, Action.REQUEST_EXPIRED, reason="expired")]),
        (2, [step(decides_after, Action.REQUEST_SUPERSEDED, reason="already_done")]),
        (1, [approved, sent, step(accepted_after, Action.CANCEL_REJECTED, error="validation_error")]),
        (1, [*unresolved, canceled(decides_after + 200)]),
        (0.5, [*unresolved, step(decides_after + 700, Action.CANCEL_FAILED, reason="still_open")]),
        (0.5, unresolved),
        (1, [approved, step(decides_after + 300, Action.REQUEST_LAPSED, reason="too_late_to_send")]),
    )
    return dice.choices([steps for _, steps in endings], [weight for weight, _ in endings])[0]


def _refused_commands() -> Iterator[tuple[str, Actor]]:
    yield from (("usage", _DESK[0]), ("usage", _DESK[0]), ("not_a_uuid", _DESK[3]), ("not_a_requester", EVE))
    yield from (("order_has_open_request", _DESK[2]), ("not_a_requester", EVE), ("usage", _DESK[5]))


def _around(happened: Happened, begins_at: datetime) -> None:
    """What else is in an audit: starts with other settings, checkpoints, exports, verifications."""
    changed: dict[str, Json] = {
        "APPROVAL_TIERS": {"before": "", "after": "KRW-*:50000000=2"},
        "APPROVERS": {"before": "U0BEN,U0SEO", "after": "U0BEN,U0SEO,U0LEE"},
    }
    happened.alone(begins_at + timedelta(days=1, hours=1), Action.BOT_STARTED, version="0.2.0", changed={})
    happened.alone(
        begins_at + timedelta(days=12, hours=2),
        Action.BOT_STARTED,
        version="0.2.1",
        changed=changed,
    )
    for day in range(28):
        happened.alone(begins_at + timedelta(days=day, hours=15), Action.AUDIT_CHECKPOINTED, checkpoint={})
    happened.alone(begins_at + timedelta(days=4), Action.AUDIT_VERIFIED, OPS, events=8123, witnesses=12, fault=None)
    happened.alone(
        begins_at + timedelta(days=9), "audit.exported", OPS, file="october.csv", rows=8300, sha256="9f" * 32
    )
    happened.alone(
        begins_at + timedelta(days=20),
        Action.AUDIT_RECONCILED,
        OPS,
        outcome=Outcome.FAILED,
        canceled_on_exchange=412,
        unasked=1,
        findings=[
            {
                "kind": "unasked",
                "order_uuid": "00000000-0000-4000-8000-999999999999",
                "request_id": None,
                "recorded": "no request",
                "exchange": "canceled",
            }
        ],
    )
