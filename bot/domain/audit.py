"""The audit: every action there is, the event that records one, and the hash that chains events.

An event is kept as canonical JSON text, and that stored text is what is hashed: the hash is SHA-256 over the hash
before it, a newline and the text. The text equals RFC 8785 for what we put in it: text, whole numbers, booleans, null,
lists and objects with ASCII keys, and never a float.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

Json = str | int | bool | list["Json"] | dict[str, "Json"] | None

GENESIS_HASH: Final = "0" * 64
"""`prev_hash` of the first event."""


class Action(StrEnum):
    """Every action. The comment says what it does to a request's state; a test compares it with TRANSITIONS."""

    REQUEST_CREATED = "request.created"  #: (none) -> requested
    REQUEST_OPENED = "request.opened"  #: requested -> pending
    REQUEST_REFUSED = "request.refused"  #: requested, pending -> refused
    REQUEST_APPROVED = "request.approved"  #: pending -> approved
    REQUEST_DENIED = "request.denied"  #: pending -> denied
    REQUEST_WITHDRAWN = "request.withdrawn"  #: pending -> withdrawn
    REQUEST_SUPERSEDED = "request.superseded"  #: pending -> superseded
    REQUEST_EXPIRED = "request.expired"  #: pending -> expired
    REQUEST_LAPSED = "request.lapsed"  #: approved -> lapsed
    CANCEL_SENT = "cancel.sent"  #: approved -> sending
    CANCEL_UNSENT = "cancel.unsent"  #: sending -> approved
    CANCEL_ACCEPTED = "cancel.accepted"  #: sending -> accepted
    CANCEL_REJECTED = "cancel.rejected"  #: sending -> rejected
    ORDER_OPEN = "order.open"  #: sending -> approved
    ORDER_CANCELED = "order.canceled"  #: sending, accepted, unresolved -> canceled
    ORDER_FILLED = "order.filled"  #: sending, accepted, unresolved -> filled
    OUTCOME_UNRESOLVED = "outcome.unresolved"  #: sending, accepted -> unresolved
    CANCEL_FAILED = "cancel.failed"  #: unresolved -> failed
    OUTCOME_SETTLED = "outcome.settled"  #: unresolved -> settled

    BOT_STARTED = "bot.started"  #: moves nothing
    COMMAND_REFUSED = "command.refused"  #: moves nothing
    APPROVAL_RECORDED = "approval.recorded"  #: moves nothing
    APPROVAL_REFUSED = "approval.refused"  #: moves nothing
    REMINDER_SENT = "reminder.sent"  #: moves nothing
    ORDER_CHANGED = "order.changed"  #: moves nothing
    ORDER_UNSEEN = "order.unseen"  #: moves nothing
    REFRESH_FAILED = "refresh.failed"  #: moves nothing
    CANCEL_UNANSWERED = "cancel.unanswered"  #: moves nothing
    CANCEL_DOUBTED = "cancel.doubted"  #: moves nothing
    CANCEL_ANSWERED_LATE = "cancel.answered_late"  #: moves nothing
    CARD_POSTED = "card.posted"  #: moves nothing
    SUMMARY_POSTED = "summary.posted"  #: moves nothing
    AUDIT_VERIFIED = "audit.verified"  #: moves nothing
    AUDIT_CHECKPOINTED = "audit.checkpointed"  #: moves nothing
    AUDIT_RECONCILED = "audit.reconciled"  #: moves nothing
    EVIDENCE_PACKED = "evidence.packed"  #: moves nothing
    REPORT_MADE = "report.made"  #: moves nothing
    EXPORT_BEGUN = "export.begun"  #: moves nothing
    AUDIT_EXPORTED = "audit.exported"  #: moves nothing
    EXPORT_DELIVERED = "export.delivered"  #: moves nothing
    AUDIT_PRUNED = "audit.pruned"  #: moves nothing


class Outcome(StrEnum):
    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Reason(StrEnum):
    """Why something was refused or ended: the auditor's words, in `details.reason`."""

    # Wherever somebody would have to be on a list
    MEMBERSHIP_UNKNOWN = "membership_unknown"  # a user group of the list could not be read

    # A command that makes no request
    USAGE = "usage"  # no uuid, or more than one
    NOT_A_UUID = "not_a_uuid"
    NOT_A_QUESTION = "not_a_question"  # status, open or history, and then something that was not understood
    NOT_A_REQUESTER = "not_a_requester"
    CHANNEL_NOT_ALLOWED = "channel_not_allowed"
    OTHER_WORKSPACE = "other_workspace"
    ORDER_HAS_OPEN_REQUEST = "order_has_open_request"
    TOO_MANY_OPEN_REQUESTS = "too_many_open_requests"
    NOT_AN_AUDITOR = "not_an_auditor"
    EXPORT_WAITING = "export_waiting"  # the same person's last one is not over

    # A request that is refused before anybody could approve it
    ORDER_NOT_FOUND = "order_not_found"
    ALREADY_DONE = "already_done"
    ALREADY_CANCELED = "already_canceled"
    NOT_OPEN = "not_open"  # a state that Upbit has not documented
    KEY_LACKS_VIEW = "key_lacks_view"
    EXCHANGE_REFUSED = "exchange_refused"
    EXCHANGE_UNREACHABLE = "exchange_unreachable"
    CANNOT_POST = "cannot_post"
    NOBODY_CAN_APPROVE = "nobody_can_approve"
    TOO_FEW_APPROVERS = "too_few_approvers"

    # A click that does not count
    NOT_AN_APPROVER = "not_an_approver"
    OWN_REQUEST = "own_request"
    NOT_THE_REQUESTER = "not_the_requester"
    UNKNOWN_REQUEST = "unknown_request"
    UNKNOWN_BUTTON = "unknown_button"
    UNKNOWN_FORM = "unknown_form"
    NO_REASON = "no_reason"  # the form asks for one
    REASON_TOO_LONG = "reason_too_long"
    NOT_YET_PENDING = "not_yet_pending"
    ALREADY_APPROVED = "already_approved"  # by the same person
    ALREADY_DECIDED = "already_decided"
    EXPIRED = "expired"

    # A cancel that did not go as hoped
    TOO_LATE_TO_SEND = "too_late_to_send"
    STILL_OPEN = "still_open"
    NOTHING_CERTAIN = "nothing_certain"


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """Who did it: a person in Slack, the bot itself, or somebody at the bot's command line."""

    id: str  #: Slack user id, `system`, or `cli:<login>`
    name: str = ""  #: as Slack gave it at the time
    team_id: str = ""  #: the workspace the person belongs to, which in a shared channel need not be ours


SYSTEM: Final = Actor(id="system")


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEvent:
    """One thing that happened or was refused. `team_id` and `channel_id` say where."""

    action: Action
    outcome: Outcome = Outcome.OK
    actor: Actor = SYSTEM
    request_id: int | None = None
    order_uuid: str | None = None
    market: str | None = None
    team_id: str | None = None
    channel_id: str | None = None
    reason: str | None = None  #: why, in the words of the person who asked or decided
    trigger_id: str | None = None  #: Slack's id of the delivery
    details: Mapping[str, Json] = field(default_factory=dict)


def timestamp(moment: datetime) -> str:
    """The one way a time is written: UTC, microseconds, `2026-11-23T09:00:00.000000Z`."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def columns(event: AuditEvent, *, seq: int, occurred_at: datetime) -> dict[str, Json]:
    """The event's columns, as the entry holds them."""
    return {
        "seq": seq,
        "occurred_at": timestamp(occurred_at),
        "action": event.action.value,
        "outcome": event.outcome.value,
        "actor": event.actor.id,
        "actor_name": event.actor.name,
        "actor_team": event.actor.team_id,
        "request_id": event.request_id,
        "order_uuid": event.order_uuid,
        "market": event.market,
        "team_id": event.team_id,
        "channel_id": event.channel_id,
        "reason": event.reason,
        "trigger_id": event.trigger_id,
        "details": dict(event.details),
    }


_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: Json) -> str:
    """JSON text that is the same for the same value, whoever writes it (RFC 8785 for values without floats)."""
    return _ENCODER.encode(value)


def chain_hash(prev_hash: str, entry: str) -> str:
    """SHA-256, in hex, over the previous event's hash and this event's stored text."""
    return hashlib.sha256(f"{prev_hash}\n{entry}".encode()).hexdigest()
