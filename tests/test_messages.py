"""What the bot says: readable snapshots of every state, Slack's limits, and nothing typed that pings or misleads.

After a sentence was changed on purpose: `UPDATE_SNAPSHOTS=1 pytest tests/test_messages.py -n 0`, and read the diff.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slack_sdk.models.blocks import Block
from slack_sdk.models.views import View

from bot.choosing import Trouble
from bot.domain.audit import Actor, Reason
from bot.domain.cancel_request import CanceledBy, CancelRequest, Decision, DecisionKind, State, Verdict
from bot.domain.checkpoint import Checkpoint, SignedCheckpoint
from bot.domain.event_filter import Filter
from bot.domain.order import Order
from bot.domain.quote import Quote
from bot.domain.tiers import Tier, parse_tier
from bot.exporting import Export, ExportFile, WantedExport
from bot.inquiry import Listing, Status, Wanted
from bot.playground.slack_blocks import view_faults
from bot.slack import messages, views
from bot.slack.messages import Message, card, thread_message

SNAPSHOTS: Final = Path(__file__).parent / "snapshots"

UUID = "cdd92199-2897-4e14-9448-f923320408ad"
ASKED = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
REQUESTER = Actor(id="U0REQUESTER", name="Requester", team_id="T0HOME")
APPROVER = Actor(id="U0APPROVER", name="Approver", team_id="T0HOME")
SECOND = Actor(id="U0SECOND", name="Second", team_id="T0HOME")
NOTIFY = ("S0TREASURY",)
DESK_URL = "https://desk.slack.com/"
NEW_LINE, INDENTED = "\n", "\n    "


def minutes(count: float) -> datetime:
    return ASKED + timedelta(minutes=count)


SELL = Order.from_json(
    {
        "uuid": UUID,
        "side": "ask",
        "ord_type": "limit",
        "price": "95000000.0",
        "state": "wait",
        "market": "KRW-BTC",
        "created_at": "2026-11-23T17:30:00+09:00",
        "volume": "1.00",
        "remaining_volume": "1.00",
        "executed_volume": "0.0",
        "reserved_fee": "0",
        "remaining_fee": "0",
        "paid_fee": "0",
        "locked": "1.00",
        "trades_count": 0,
        "identifier": "desk-7/rebalance",
        "time_in_force": "post_only",
        "smp_type": "cancel_maker",
        "prevented_volume": "0",
        "prevented_locked": "0",
    }
)
BUY_BY_TOTAL = Order.from_json(
    {
        "uuid": UUID,
        "side": "bid",
        "ord_type": "price",
        "price": "1500000",
        "state": "wait",
        "market": "KRW-ETH",
        "created_at": "2026-11-23T17:30:00+09:00",
        "executed_volume": "0",
        "reserved_fee": "750",
        "remaining_fee": "750",
        "paid_fee": "0",
        "locked": "1500750",
        "trades_count": 0,
    }
)
SELL_AT_MARKET = replace(SELL, ord_type="market", price=None)
BUY_BEST = replace(BUY_BY_TOTAL, ord_type="best", time_in_force="ioc")
STRANGE = replace(SELL, side="short", ord_type="iceberg", state="frozen", created_at="yesterday", smp_type="both")

PARTLY = replace(
    SELL,
    state="cancel",
    remaining_volume=Decimal("0.58"),
    executed_volume=Decimal("0.42"),
    paid_fee=Decimal("19950.0"),
    locked=Decimal(0),
    trades_count=3,
)
RESTING = replace(SELL, remaining_volume=Decimal("0.80"), executed_volume=Decimal("0.20"), trades_count=1)
FILLED = replace(
    SELL, state="done", remaining_volume=Decimal(0), executed_volume=Decimal("1.00"), locked=Decimal(0), trades_count=5
)

QUOTE = Quote(bid=Decimal("93000000.0"), ask=Decimal(93_050_000), quoted_at=minutes(0.05))
LARGEST = Decimal("123456789012345678901234567890.123456789012345678901234567891")

PENDING = CancelRequest(
    id=42,
    order_uuid=UUID,
    state=State.PENDING,
    requester=REQUESTER,
    reason="wrong price",
    team_id="T0HOME",
    channel_id="C0DESK",
    trigger_id="1.2.3",
    created_at=ASKED,
    order=SELL,
    order_now=SELL,
    looked_at=minutes(0),
    approvers=(APPROVER.id, SECOND.id),
    opened_at=minutes(0),
    expires_at=minutes(30),
    quote=QUOTE,
    witness_seq=1234,
    witness_hash="9f2c41d07be3a01b" * 4,
)
YES = Decision(kind=DecisionKind.APPROVE, actor=APPROVER, decided_at=minutes(2))
YES_TOO = Decision(kind=DecisionKind.APPROVE, actor=SECOND, decided_at=minutes(3))
WHY = "fat finger: the desk wanted <b>KRW-ETH</b> & not this"
NO = Decision(kind=DecisionKind.DENY, actor=APPROVER, decided_at=minutes(2))
BACK = Decision(kind=DecisionKind.WITHDRAW, actor=REQUESTER, decided_at=minutes(2))

NOT_OPENED: Final[dict[str, Any]] = dict.fromkeys(
    ("order", "order_now", "looked_at", "expires_at", "opened_at", "quote")
)
REQUESTED = replace(PENDING, state=State.REQUESTED, **NOT_OPENED)
REFUSED = replace(REQUESTED, state=State.REFUSED)
APPROVED = replace(PENDING, state=State.APPROVED, decisions=(YES,), approved_at=minutes(2), send_before=minutes(7))
SENDING = replace(APPROVED, state=State.SENDING, sends=1, unanswered=1, sent_at=minutes(2))
ACCEPTED = replace(SENDING, state=State.ACCEPTED, unanswered=0, accepted_at=minutes(2.1))
CANCELED = replace(
    ACCEPTED,
    state=State.CANCELED,
    order_now=PARTLY,
    looked_at=minutes(2.2),
    canceled_by=CanceledBy.THIS_REQUEST,
    ended_at=minutes(2.2),
)


def priced(price: str | Decimal, *, bid: str = "100", ask: str = "101", **changes: Any) -> CancelRequest:
    """A request for an order at this price, between these best prices."""
    asked_for = replace(SELL, price=Decimal(price), **changes)
    shown = Quote(bid=Decimal(bid), ask=Decimal(ask), quoted_at=minutes(0.05))
    return replace(PENDING, order=asked_for, order_now=asked_for, quote=shown)


CASES: Final[Mapping[str, CancelRequest]] = {
    "requested": REQUESTED,
    "pending": PENDING,
    "pending_one_of_two": replace(PENDING, approvals_required=2, decisions=(YES,), reason=""),
    "pending_not_counted": replace(PENDING, approvals_required=2, decisions=(YES, YES_TOO), not_counted=(APPROVER.id,)),
    "pending_large": replace(PENDING, approvals_required=2, approval_rule=parse_tier("KRW-*:50000000=2")),
    "pending_large_sell_of_unknown_value": replace(
        PENDING,
        approvals_required=3,
        approval_rule=parse_tier("KRW-BTC/ask:50000000=3"),
        order=SELL_AT_MARKET,
        order_now=SELL_AT_MARKET,
    ),
    "pending_any_buy": replace(PENDING, approvals_required=2, approval_rule=parse_tier("*/bid=2")),
    "approved_by_two": replace(APPROVED, approvals_required=2, decisions=(YES, YES_TOO)),
    "denied_after_approval": replace(PENDING, state=State.DENIED, approvals_required=2, decisions=(YES, NO)),
    "pending_buy_by_total": replace(PENDING, order=BUY_BY_TOTAL, order_now=BUY_BY_TOTAL),
    "pending_best_bid": replace(PENDING, order=BUY_BEST, order_now=BUY_BEST),
    "pending_unknown_words": replace(PENDING, order=STRANGE, order_now=STRANGE),
    "pending_many_approvers": replace(PENDING, approvers=tuple(f"U{n:03}" for n in range(200))),
    "pending_partly_filled": replace(PENDING, order_now=replace(PARTLY, state="wait"), looked_at=minutes(3)),
    "pending_unseen": replace(PENDING, unseen_since=minutes(3)),
    "pending_card_elsewhere": replace(PENDING, approvals_channel_id="C0APPROVALS"),
    "pending_asked_in_a_direct_message": replace(PENDING, channel_id="D0DANA", approvals_channel_id="C0APPROVALS"),
    "pending_market_unknown": replace(PENDING, quote=None),
    "pending_market_reached": priced("100", side="ask"),
    "pending_market_far": priced(LARGEST, bid="0.00000001", ask="0.00000002", market=f"{'A' * 100}-{'B' * 100}"),
    "pending_longest_everything": replace(
        priced(LARGEST, bid=str(LARGEST), ask=str(LARGEST * 2), market=f"{'<' * 100}-{'&' * 100}", uuid="`" * 200),
        reason="<!here> & \u202e" * 1000,
        approvals_channel_id="C0APPROVALS",
        approvers=tuple(f"U{n:03}" for n in range(200)),
        unseen_since=minutes(3),
        decisions=(YES,) * 20,
        approvals_required=20,
    ),
    "refused_cannot_post": replace(REFUSED, cause="cannot_post:not_in_channel"),
    "refused_already_done": replace(REFUSED, cause="already_done", order_now=FILLED),
    "approved": APPROVED,
    "approved_again": replace(APPROVED, sends=1),
    "denied": replace(PENDING, state=State.DENIED, decisions=(NO,)),
    "denied_with_reason": replace(PENDING, state=State.DENIED, decisions=(replace(NO, reason=WHY),)),
    "withdrawn": replace(PENDING, state=State.WITHDRAWN, decisions=(BACK,)),
    "superseded_filled": replace(
        PENDING, state=State.SUPERSEDED, order_now=FILLED, looked_at=minutes(3), cause="already_done"
    ),
    "superseded_canceled": replace(
        PENDING, state=State.SUPERSEDED, order_now=PARTLY, looked_at=minutes(3), cause="already_canceled"
    ),
    "expired": replace(PENDING, state=State.EXPIRED, approvals_required=2, decisions=(YES,)),
    "lapsed": replace(APPROVED, state=State.LAPSED, cause="too_late_to_send"),
    "lapsed_after_a_try": replace(APPROVED, state=State.LAPSED, sends=1, unanswered=1),
    "sending": SENDING,
    "accepted": ACCEPTED,
    "rejected": replace(SENDING, state=State.REJECTED, unanswered=0, cause="out_of_scope"),
    "rejected_unknown_name": replace(SENDING, state=State.REJECTED, unanswered=0, cause="new_error_name"),
    "canceled_partly": CANCELED,
    "approved_after_a_fill": replace(APPROVED, order_now=RESTING, order_approved=RESTING, looked_at=minutes(2)),
    "canceled_after_fills": replace(CANCELED, order_approved=RESTING),
    "canceled_after_a_later_fill": replace(CANCELED, order_approved=SELL),
    "canceled_whole": replace(CANCELED, order_now=replace(SELL, state="cancel", locked=Decimal(0))),
    "canceled_buy_by_total": replace(
        CANCELED,
        order=BUY_BY_TOTAL,
        order_now=replace(BUY_BY_TOTAL, state="cancel", executed_volume=Decimal("0.1234")),
    ),
    "canceled_unproven": replace(CANCELED, accepted_at=None, unanswered=1, canceled_by=CanceledBy.UNPROVEN),
    "canceled_refused": replace(
        CANCELED, accepted_at=None, unanswered=0, doubt="order_not_found", canceled_by=CanceledBy.UNPROVEN
    ),
    "canceled_with_smp": replace(
        CANCELED,
        order_now=replace(PARTLY, remaining_volume=None, prevented_volume=Decimal("0.1")),
    ),
    "filled": replace(ACCEPTED, state=State.FILLED, order_now=FILLED, looked_at=minutes(2.2)),
    "unresolved": replace(SENDING, state=State.UNRESOLVED),
    "unresolved_accepted": replace(ACCEPTED, state=State.UNRESOLVED),
    "failed": replace(ACCEPTED, state=State.FAILED, looked_at=minutes(12), cause="still_open"),
    "settled": replace(
        SENDING,
        state=State.SETTLED,
        settled_verdict=Verdict.OPEN,
        settled_by="cli:operator",
        settled_reason="seen in the app",
    ),
}

CLICKS: Final = (
    Reason.NOT_AN_APPROVER,
    Reason.MEMBERSHIP_UNKNOWN,
    Reason.OWN_REQUEST,
    Reason.NOT_THE_REQUESTER,
    Reason.UNKNOWN_REQUEST,
    Reason.UNKNOWN_BUTTON,
    Reason.UNKNOWN_FORM,
    Reason.NO_REASON,
    Reason.REASON_TOO_LONG,
    Reason.OTHER_WORKSPACE,
    Reason.NOT_YET_PENDING,
    Reason.ALREADY_APPROVED,
    Reason.ALREADY_DECIDED,
    Reason.EXPIRED,
)
COMMANDS: Final = (
    Reason.USAGE,
    Reason.NOT_A_UUID,
    Reason.NOT_A_QUESTION,
    Reason.NOT_A_REQUESTER,
    Reason.MEMBERSHIP_UNKNOWN,
    Reason.OTHER_WORKSPACE,
    Reason.CHANNEL_NOT_ALLOWED,
    Reason.ORDER_HAS_OPEN_REQUEST,
    Reason.TOO_MANY_OPEN_REQUESTS,
)
REQUESTS: Final = (
    Reason.ORDER_NOT_FOUND,
    Reason.ALREADY_DONE,
    Reason.ALREADY_CANCELED,
    Reason.NOT_OPEN,
    Reason.KEY_LACKS_VIEW,
    Reason.EXCHANGE_REFUSED,
    Reason.EXCHANGE_UNREACHABLE,
    Reason.CANNOT_POST,
    Reason.NOBODY_CAN_APPROVE,
    Reason.TOO_FEW_APPROVERS,
    Reason.MEMBERSHIP_UNKNOWN,
)
UPBIT_ERRORS: Final = (
    "validation_error",
    "invalid_parameter",
    "bad_request",
    "QUERY_PARAMETER_NOT_SUPPORTED",
    "invalid_query_payload",
    "jwt_verification",
    "no_authorization_token",
    "invalid_access_key",
    "expired_access_key",
    "no_authorization_ip",
    "no_authorization_i_p",
    "nonce_used",
    "out_of_scope",
    "order_not_found",
    "too_many_requests",
    "banned",
)
ALLOWED: Final = frozenset({"C0DESK", "C0OPS", "D0DANA", "D0BEN"})
SLACK_ERRORS: Final = (
    "not_in_channel",
    "channel_not_found",
    "is_archived",
    "restricted_action_read_only_channel",
    "messages_tab_disabled",
    "a_new_word",
)
TROUBLES: Final[tuple[Trouble, ...]] = ("away", "busy", "key_lacks_view", "refused")


# --- Snapshots ------------------------------------------------------------------------------------------------------


def check_snapshot(name: str, text: str) -> None:
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"no snapshot {name}: see the top of this file"
    assert text == path.read_text(encoding="utf-8")


def in_words(message: Message | None) -> str:
    """A message as a reviewer reads it: the blocks from top to bottom, then the notification."""
    if message is None:
        return "(nothing)\n"
    blocks = "\n\n".join("\n".join(_block_lines(block)) for block in message.blocks)
    metadata = f"\nmetadata: {json.dumps(message.metadata)}" if message.metadata else ""
    return f"{blocks}\n\n[notification]\n{message.text}\n{metadata}".rstrip() + "\n"


def _block_lines(block: dict[str, Any]) -> list[str]:
    match block:
        case {"type": "header", "text": {"text": text}}:
            return [f"# {text}"]
        case {"type": "section", "text": {"text": text}}:
            return [str(text)]
        case {"type": "section", "fields": fields}:
            return ["| " + field["text"].replace("\n", " | ") for field in fields]
        case {"type": "context", "elements": elements}:
            return [f"({element['text']})" for element in elements]
        case {"type": "actions", "elements": elements}:
            return [line for element in elements for line in _button_lines(element)]
        case _:
            raise AssertionError(f"no words for {block}")


def _button_lines(button: dict[str, Any]) -> list[str]:
    style = f", {button['style']}" if "style" in button else ""
    lines = [f"[{button['text']['text']}]  {button['action_id']}={button['value']}{style}"]
    if confirm := button.get("confirm"):
        lines.append(f"   asks: {confirm['title']['text']} {confirm['text']['text']}")
        lines.append(f"   [{confirm['confirm']['text']}] [{confirm['deny']['text']}]")
    return lines


@pytest.mark.parametrize("name", CASES)
def test_each_state_reads_as_agreed(name: str) -> None:
    """Someone who decides about real money reads these words: a change of them is a change of the product."""
    request = CASES[name]
    shown = in_words(card(request, notify=NOTIFY))
    said = in_words(thread_message(request, notify=NOTIFY))
    check_snapshot(name, f"===== the card =====\n{shown}\n===== the thread =====\n{said}")


def test_the_private_lines_read_as_agreed() -> None:
    """Every refusal says what happened and the next step; all of them side by side show when two sound alike."""
    check_snapshot("private_lines", "\n".join(f"{name}\n    {line}\n" for name, line in _private_lines()))


def _private_lines() -> Iterator[tuple[str, str]]:
    for reason in COMMANDS:
        yield f"command: {reason}", _command(reason)
    yield "command: recorded", messages.recorded(42)
    yield "command: nothing done", messages.nothing_was_done()
    yield "command: in doubt", messages.in_doubt()
    yield "command: starting", messages.starting()
    yield "form: did not open", messages.form_did_not_open()
    yield "form: loading", messages.form_is_loading()
    yield "form: no open orders", messages.no_open_orders()
    yield "form: more orders", messages.more_open_orders(500)
    for trouble in TROUBLES:
        yield f"form: {trouble}", messages.orders_not_listed(trouble)
    yield "form: not a uuid", messages.not_a_uuid_in_form()
    yield "form: recorded", messages.recorded_from_form(42, "C0DESK")
    for reason in CLICKS:
        yield f"click: {reason}", _click(reason)
    for name in (
        "denied",
        "withdrawn",
        "superseded_filled",
        "superseded_canceled",
        "approved",
        "approved_by_two",
        "canceled_partly",
        "pending_one_of_two",
        "refused_already_done",
    ):
        yield f"click: too late, {name}", messages.click_refused(Reason.ALREADY_DECIDED, CASES[name])
    for name in ("pending_one_of_two", "approved_by_two", "denied_after_approval"):
        yield f"click: again, {name}", messages.click_refused(Reason.ALREADY_APPROVED, CASES[name])
    yield "notice: form not opened", messages.form_not_opened(PENDING)
    yield "notice: still reading", messages.still_reading(REQUESTED)
    yield "notice: still asking who may", messages.still_asking_who_may(REQUESTED)
    for reason in REQUESTS:
        yield f"request: {reason}", _request(reason)
    for error in SLACK_ERRORS:
        refused = replace(REFUSED, cause=f"cannot_post:{error}")
        yield f"request: cannot_post, {error}", messages.request_refused(refused)
        elsewhere = replace(refused, approvals_channel_id="C0APPROVALS")
        yield f"request: cannot_post in APPROVALS_CHANNEL, {error}", messages.request_refused(elsewhere)
    card_elsewhere = CASES["pending_card_elsewhere"]
    link = messages.permalink("https://desk.slack.com/", "C0APPROVALS", "1790000000.000100")
    yield "notice: card elsewhere", messages.card_elsewhere(card_elsewhere, link=link)
    yield "notice: card elsewhere, no link", messages.card_elsewhere(card_elsewhere, link=None)
    yield (
        "command: not here, many channels",
        messages.command_refused(Reason.CHANNEL_NOT_ALLOWED, channels=[f"C{n:02}" for n in range(40)]),
    )
    for error in UPBIT_ERRORS:
        refused = replace(REFUSED, cause=f"exchange_refused:{error}")
        yield f"request: exchange_refused, {error}", messages.request_refused(replace(refused, said="키가 없습니다"))
    yield "notice: the thread cannot be posted", messages.summary_elsewhere(CASES["filled"])


def _command(reason: Reason) -> str:
    link = messages.permalink("https://desk.slack.com/", "C0DESK", "1790000000.000100")
    return messages.command_refused(reason, open_request=PENDING, link=link, text="abc", limit=20, channels=ALLOWED)


def _click(reason: Reason) -> str:
    late = replace(PENDING, state=State.DENIED, decisions=(NO,))
    return messages.click_refused(reason, late if reason is Reason.ALREADY_DECIDED else PENDING)


def _request(reason: Reason) -> str:
    needed = {Reason.NOBODY_CAN_APPROVE: (1, ()), Reason.TOO_FEW_APPROVERS: (3, (APPROVER.id, SECOND.id))}
    count, people = needed.get(reason, (1, ()))
    rule = parse_tier("KRW-*:50000000=3") if count > 1 else None
    refused = replace(REFUSED, cause=reason.value, approvals_required=count, approvers=people, approval_rule=rule)
    return messages.request_refused(replace(refused, order_now=SELL if rule else None))


def _answers() -> Iterator[tuple[str, str]]:
    """What questions are answered: one request in each state, and requests in lists."""
    yield "help", messages.help_text()
    yield "could not be read", messages.could_not_be_read()
    yield "status: none", messages.status(Status(request=None), workspace_url=DESK_URL)
    for name in ("requested", "pending_one_of_two", "approved", "accepted", "canceled_partly", "unresolved", "failed"):
        placed = replace(CASES[name], card_channel_id="C0DESK", card_ts="1790000000.000100")
        shown = Status(request=placed if name != "requested" else CASES[name], has_others=name == "failed")
        yield f"status: {name}", messages.status(shown, workspace_url=DESK_URL)
    everything = Wanted(order_uuid=UUID, requester_id=REQUESTER.id, market="KRW-BTC", since=ASKED, before=43)
    yield "history", messages.listing(Listing(wanted=Wanted(), requests=tuple(CASES.values())[:10]), workspace_url="")
    found = Listing(wanted=everything, requests=(CANCELED,), next_page=replace(everything, before=42))
    yield "history: every filter, and more", messages.listing(found, workspace_url=DESK_URL)
    by_name = Wanted(requester_name="dana`<!here>", request_id=7)
    yield "history: by name, none", messages.listing(Listing(wanted=by_name, requests=()), workspace_url="")
    some = Listing(wanted=Wanted(only_open=True), requests=(), next_page=Wanted(only_open=True, before=31))
    yield "open: none so far", messages.listing(some, workspace_url="")


def test_the_answers_to_questions_read_as_agreed() -> None:
    """Someone who was not there reads what has become of a request."""
    lines = [f"{name}\n    {text.replace(NEW_LINE, INDENTED)}\n" for name, text in _answers()]
    check_snapshot("answers", "\n".join(lines))


def test_no_snapshot_is_left_over() -> None:
    """A file that nothing writes any more would be read as a promise."""
    snapshots = {path.stem for path in SNAPSHOTS.glob("*") if not path.stem.startswith("home_")}
    assert snapshots == {*CASES, "private_lines", "forms", "answers", "checkpoints", "exports"}


def test_exports_read_as_agreed() -> None:
    """What was chosen stands beside the file; and why there is none is told to the person, not to the log alone."""
    selection = Filter(actor="U0BEN", since=ASKED, details_reason="<!channel>`")
    asked = Export(
        number=3,
        person=APPROVER,
        team_id="T0HOME",
        wanted=WantedExport(selection=selection),
        up_to_seq=1234,
        asked_at=ASKED,
        leased_at=ASKED,
        attempts=0,
        fence=1,
    )
    file = ExportFile(content=b"", events=1200, first_seq=1, last_seq=1230, sha256="9f" * 32)
    faults = ("too_large", "no_event", "audit_altered", "not_an_auditor", "missing_scope", "user_disabled", "<!here>")
    said = {
        "recorded": messages.export_recorded(),
        "not understood": messages.export_not_understood("export <!channel> everything"),
        "in doubt": messages.export_in_doubt(),
        **{reason: messages.command_refused(reason) for reason in (Reason.NOT_AN_AUDITOR, Reason.EXPORT_WAITING)},
        "beside the file": messages.export_comment(asked, file),
        "beside the file of everything": messages.export_comment(replace(asked, wanted=WantedExport()), file),
        **{f"no file: {fault}": messages.no_export(fault) for fault in faults},
    }
    check_snapshot("exports", "\n".join(f"===== {name} =====\n{each}" for name, each in said.items()))


def test_checkpoints_read_as_agreed() -> None:
    """The line in the code block is evidence: it must come back out of Slack as it was signed."""
    made = Checkpoint(seq=1234, hash="9f" * 32, at="2026-11-23T09:00:00.000000Z")
    said = {
        "a day's": messages.checkpoint(SignedCheckpoint(checkpoint=made, key="d7" * 32, signature="1a" * 64)),
        "of an empty audit": messages.checkpoint(
            SignedCheckpoint(checkpoint=replace(made, seq=0, hash="0" * 64), key="d7" * 32, signature="1a" * 64)
        ),
        "of an audit that does not verify": messages.broken_audit("event 3 was altered: column actor differs <!here>"),
    }
    check_snapshot("checkpoints", "\n".join(f"===== {name} =====\n{in_words(each)}" for name, each in said.items()))


FORMS: Final[Mapping[str, views.View]] = {
    "deny": views.deny_form(CASES["pending_partly_filled"]),
    "nothing was done": views.told(messages.click_refused(Reason.ALREADY_DECIDED, CASES["denied"])),
}


def test_the_forms_read_as_agreed() -> None:
    """What somebody is asked, and what happens when it is submitted."""
    check_snapshot("forms", "\n".join(f"===== {name} =====\n{_form_in_words(form)}" for name, form in FORMS.items()))


def _form_in_words(form: views.View) -> str:
    lines = [f"# {form['title']['text']}  {form.get('callback_id', '')}({form.get('private_metadata', '')})"]
    for block in form["blocks"]:
        if block["type"] == "input":
            lines.append(f"{block['label']['text']} ______  ({block['hint']['text']})")
        else:
            lines += _block_lines(block)
    buttons = [form[name]["text"] for name in ("submit", "close") if name in form]
    return "\n".join([*lines, *(f"[{button}]" for button in buttons)]) + "\n"


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_nothing_breaks_out_of_a_form_or_its_limits(data: st.DataObject) -> None:
    """Slack refuses a form that is too long, and the person would see nothing."""
    request = data.draw(requests)
    for form in (views.deny_form(request), views.told(messages.click_refused(Reason.ALREADY_DECIDED, request))):
        assert view_faults(form) == []
        View(**form).validate_json()
        for kind, text in texts_of(form["blocks"]):
            if kind == "mrkdwn":
                assert_contained(text)
    answer = views.keep_open("reason", messages.reason_too_long())
    assert 1 <= len(answer["errors"]["reason"]) <= 2000


# --- Every state and reason has its words ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_card_with_buttons_only_while_pending(state: State) -> None:
    """A button that stays after the decision is clicked again; a state without a card is silence."""
    shown = card(replace(CANCELED, state=state), notify=NOTIFY)
    buttons = [element for block in shown.blocks if block["type"] == "actions" for element in block["elements"]]
    if state is State.PENDING:
        assert [button["action_id"] for button in buttons] == ["approve", "deny", "deny_with_reason", "withdraw"]
        assert {button["value"] for button in buttons} == {"42"}
    else:
        assert not buttons
    assert shown.metadata == {"event_type": "cancel_request", "event_payload": {"request_id": 42}}
    assert "#42" in shown.text


@pytest.mark.parametrize("state", State)
def test_those_to_notify_are_called_by_a_new_card_and_in_trouble_only(state: State) -> None:
    """Whoever is called for everything stops listening."""
    request = replace(CANCELED, state=state)
    said = thread_message(request, notify=NOTIFY)
    assert ("S0TREASURY" in json.dumps(card(request, notify=NOTIFY).blocks)) == (state is State.PENDING)
    assert ("S0TREASURY" in (said.text if said else "")) == (
        state in {State.LAPSED, State.REJECTED, State.UNRESOLVED, State.FAILED}
    )


@pytest.mark.parametrize("state", State)
def test_the_thread_speaks_when_a_verdict_is_there(state: State) -> None:
    """The requester is mentioned with the outcome, and nobody is mentioned for what is only under way."""
    said = thread_message(replace(CANCELED, state=state), notify=())
    under_way = {State.REQUESTED, State.PENDING, State.REFUSED, State.APPROVED, State.SENDING, State.ACCEPTED}
    assert (said is None) == (state in under_way)
    if said:
        assert "<@U0REQUESTER>" in said.text
        assert "<@U0APPROVER>" in said.text


@pytest.mark.parametrize(
    ("reasons", "sentence"),
    [(COMMANDS, _command), (CLICKS, _click), (REQUESTS, _request)],
    ids=["command", "click", "request"],
)
def test_each_reason_has_a_sentence_of_its_own(reasons: tuple[Reason, ...], sentence: Callable[[Reason], str]) -> None:
    """Two refusals that read alike leave the person without the next step."""
    assert len({sentence(reason) for reason in reasons}) == len(reasons)


@pytest.mark.parametrize("reason", Reason)
def test_any_reason_anywhere_still_gets_a_sentence(reason: Reason) -> None:
    """A reason added tomorrow must not turn an answer into silence."""
    assert messages.command_refused(reason)
    assert messages.click_refused(reason, None)
    assert messages.click_refused(reason, PENDING)
    assert _request(reason)


def test_the_loser_hears_who_won_and_when() -> None:
    """Without the name the two approvers do not know that it was not the bot that refused."""
    for decision, state in ((NO, State.DENIED), (YES, State.ACCEPTED)):
        line = messages.click_refused(Reason.ALREADY_DECIDED, replace(PENDING, state=state, decisions=(decision,)))
        assert "<@U0APPROVER>" in line
        assert messages.when(decision.decided_at) in line


def test_expired_is_never_worded_as_denied() -> None:
    """Nobody said no: who reads a denial asks the wrong person why."""
    for decided in ((), (YES,)):
        request = replace(CASES["expired"], decisions=decided)
        said = thread_message(request, notify=NOTIFY)
        assert said is not None
        told = [card(request, notify=NOTIFY).text, said.text, messages.click_refused(Reason.EXPIRED, request)]
        for text in told:
            assert "xpired" in text
            assert not re.search("den(y|ied|ial)", text, re.IGNORECASE)


def test_the_expiry_is_shown_in_the_readers_own_time() -> None:
    """On the card that waits, in its reminder, and to who clicks too late."""
    local = f"<!date^{int(minutes(30).timestamp())}^{{date_short_pretty}} {{time}}|2026-11-23 09:30 UTC>"
    reminder = messages.reminder(PENDING, may_still_approve=PENDING.approvers, notify=())
    shown = [card(PENDING, notify=()), reminder, card(CASES["expired"], notify=())]
    for text in (*(message.text for message in shown), messages.click_refused(Reason.EXPIRED, PENDING)):
        assert local in text


# --- No more than the fields prove ----------------------------------------------------------------------------------


def first_sentence(**fields: Any) -> str:
    said = thread_message(replace(CANCELED, order_now=replace(PARTLY, **fields)), notify=())
    assert said
    return said.text.split(" Upbit had", maxsplit=1)[0]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "*Canceled:* 0.58 of 1 BTC; 0.42 BTC had been filled."),
        ({"remaining_volume": None}, "*Canceled:* 0.58 of 1 BTC; 0.42 BTC had been filled."),
        ({"volume": None}, "*Canceled:* 0.58 BTC; 0.42 BTC had been filled."),
        ({"executed_volume": None}, "*Canceled:* 0.58 of 1 BTC; how much had been filled is not known."),
        ({"volume": None, "remaining_volume": None}, "*Canceled.* 0.42 BTC had been filled."),
        ({"remaining_volume": None, "executed_volume": Decimal(2)}, "*Canceled.* 2 BTC had been filled."),
        (
            {"remaining_volume": None, "prevented_volume": Decimal("0.1")},
            "*Canceled.* 0.42 BTC had been filled. Self-match prevention (SMP) at Upbit canceled 0.1 BTC.",
        ),
        (
            {"volume": None, "remaining_volume": None, "executed_volume": None},
            "*Canceled.* How much had been filled is not known.",
        ),
    ],
)
def test_a_canceled_volume_is_named_only_where_it_is_proven(fields: dict[str, Any], sentence: str) -> None:
    """A wrong number of coins is worse than none: traders act on it at once."""
    assert first_sentence(**fields) == sentence


@pytest.mark.parametrize("state", sorted(set(State) - {State.CANCELED, State.SETTLED}))
def test_no_other_state_claims_that_the_order_was_canceled(state: State) -> None:
    """Accepted is not canceled, and neither is sent, refused, late or unknown."""
    request = replace(ACCEPTED, state=state)
    for message in (card(request, notify=()), thread_message(request, notify=())):
        if message:
            assert "*Canceled" not in message.text
            assert "is canceled." not in message.text.replace("whether the order is canceled", "")


WITNESS: Final = "audit #1234 9f2c41d07be3a01b"


@pytest.mark.parametrize("state", State)
def test_a_summary_ends_with_its_witness_however_long_it_is(state: State) -> None:
    """Who rewrites the audit cannot rewrite what stands in Slack; a line that was cut off would prove nothing."""
    for reason in ("", "long " * 2000):
        request = replace(CANCELED, state=state, settled_reason=reason, decisions=(replace(NO, reason=reason),) * 20)
        said = thread_message(request, notify=())
        if said is None:
            continue
        assert said.text.splitlines()[-1] == WITNESS
        assert said.blocks[-1]["elements"][0]["text"] == WITNESS
        elsewhere = messages.summary_elsewhere(request)
        assert elsewhere.splitlines()[-1] == WITNESS
        assert elsewhere.count(WITNESS) == 1
        assert max(length(said.text), length(elsewhere)) <= 4000


def test_a_verdict_of_an_older_version_has_no_witness_to_name() -> None:
    """An invented one would make a sound audit look rewritten."""
    said = thread_message(replace(CANCELED, witness_seq=None, witness_hash=None), notify=())
    assert said
    assert "audit #" not in said.text
    assert "context" not in {block["type"] for block in said.blocks}


def test_no_change_is_denied_where_nobody_looked_again() -> None:
    """That nothing has changed is a claim about the exchange, and needs a look after the request was opened."""
    unseen = thread_message(CASES["expired"], notify=())
    seen = thread_message(CASES["failed"], notify=())
    assert unseen
    assert "changed" not in unseen.text
    assert seen
    assert "When last seen, nothing in the order had changed" in seen.text


@pytest.mark.parametrize(
    ("asked", "approved", "now", "says"),
    [
        ("0", None, "0", ""),
        ("0", None, "0.2", "*0.2 BTC filled since the request*."),
        ("0.1", "0.1", "0.3", "*0.2 BTC filled since the request*, all of it seen after the approval."),
        ("0.1", "0.3", "0.3", "*0.2 BTC filled since the request*, all of it seen before the approval."),
        (
            "0.1",
            "0.3",
            "0.35",
            "*0.25 BTC filled since the request*: 0.2 BTC seen before the approval, 0.05 BTC after it.",
        ),
        ("0.3", "0.3", "0.1", ""),
        ("0.1", "0.3", "0.2", "*0.1 BTC filled since the request*."),
        (None, None, "0.2", ""),
        ("0", "0.1", None, ""),
    ],
)
def test_what_was_filled_between_request_approval_and_end_is_told_in_words(
    asked: str | None, approved: str | None, now: str | None, says: str
) -> None:
    """Who approved wants to know how much got away meanwhile; a number that the looks do not prove is not told."""

    def seen(executed: str | None) -> Order:
        return replace(SELL, executed_volume=None if executed is None else Decimal(executed))

    request = replace(CANCELED, order=seen(asked), order_now=seen(now))
    request = replace(request, order_approved=None if approved is None else seen(approved))
    said = thread_message(request, notify=())
    assert said is not None
    for text in (card(request, notify=()).text, said.text):
        told = [line for line in text.split("\n") if "filled since the request" in line]
        assert told == ([says] if says else [])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("canceled_partly", "Upbit had accepted this request's cancel"),
        ("canceled_unproven", "its answer was lost, so it is not proven"),
        ("canceled_refused", "Upbit had refused this request's cancel, so most likely"),
    ],
)
def test_whose_cancel_it_was_is_told_as_far_as_it_is_proven(name: str, says: str) -> None:
    """An auditor asks who canceled; "the bot" is true in one case only."""
    thread = thread_message(CASES[name], notify=())
    assert thread is not None
    assert says in thread.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("987654321.12345678", "987,654,321.12345678 BTC"),
        ("95000000.0", "95,000,000 BTC"),
        ("1E+8", "100,000,000 BTC"),
        ("1E-8", "0.00000001 BTC"),
        ("0.00", "0 BTC"),
        ("-0.0", "0 BTC"),
        ("100", "100 BTC"),
        ("-12.50", "-12.5 BTC"),
    ],
)
def test_an_amount_keeps_every_digit(value: str, text: str) -> None:
    """Floats lose digits and 1E+8 is read wrongly; both have cost people money."""
    assert messages.amount(Decimal(value), "BTC") == text


@given(value=st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**25), max_value=10**25))
def test_an_amount_reads_back_as_itself(value: Decimal) -> None:
    """Exact digits, whatever the number."""
    shown = messages.amount(value, "")
    assert Decimal(shown.replace(",", "")) == value
    assert "E" not in shown.upper()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"price": "101", "bid": "99", "ask": "100"},
            "the order's price is 1 % above the best ask 100 KRW; best bid 99 KRW",
        ),
        ({"price": "100", "bid": "99", "ask": "100"}, "the order's price is at the best ask 100 KRW; best bid 99 KRW"),
        (
            {"price": "99.995", "bid": "99", "ask": "100"},
            "is less than 0.01 % below the best ask 100 KRW; best bid 99 KRW",
        ),
        (
            {"price": "98.9", "bid": "99", "ask": "100"},
            "is 0.1 % below the best bid 99 KRW, so it may be filled at any moment; best ask 100 KRW",
        ),
        (
            {"price": "98.9", "bid": "99", "ask": "100", "state": "watch"},
            "is 0.1 % below the best bid 99 KRW; best ask 100 KRW",
        ),
        ({"price": "97", "side": "bid"}, "is 3 % below the best bid 100 KRW; best ask 101 KRW"),
        ({"price": "11000"}, "is more than 10,000 % above the best ask 101 KRW; best bid 100 KRW"),
        ({"price": "7", "ord_type": "market"}, ":* best bid 100 KRW, best ask 101 KRW"),
    ],
)
def test_the_distance_to_the_market_is_told_in_plain_words(changes: dict[str, Any], words: str) -> None:
    """A sign that is read wrongly is worse than none."""
    assert words in card(priced(**changes), notify=()).text


def test_a_request_from_before_there_were_quotes_says_that_there_is_none() -> None:
    """And one whose order was never read says nothing of the market."""
    assert "market price not available" in card(replace(PENDING, quote=None), notify=()).text
    assert "arket" not in card(REQUESTED, notify=()).text


@pytest.mark.parametrize(
    ("created_at", "shown"),
    [
        ("2026-11-23T17:30:00+09:00", "<!date^1795422600^{date_short_pretty} {time}|2026-11-23 08:30 UTC>"),
        ("2026-11-23T17:30:00", "`2026-11-23T17:30:00`"),
        ("yesterday", "`yesterday`"),
        ("0001-01-01T00:00:00+09:00", "`0001-01-01T00:00:00+09:00`"),
        ("<!channel>", "`&lt;!channel&gt;`"),
    ],
)
def test_a_time_that_is_none_is_shown_as_it_came(created_at: str, shown: str) -> None:
    """Guessing a time zone would put the order at another time."""
    blocks = card(replace(PENDING, order_now=replace(SELL, created_at=created_at)), notify=()).blocks
    assert f"*Placed*\n{shown}" in [field["text"] for block in blocks for field in block.get("fields", ())]


# --- Nothing foreign leaves its place -------------------------------------------------------------------------------

MARK = "☠"
FRAGMENTS: Final = (
    "<!channel>", "<!here|here>", "<@UEVIL>", "<#CEVIL>", "<https://evil.example|click>", "https://evil.example",
    "`", "```", "*APPROVED*", "_x_", "&lt;!channel&gt;", "&", "<", ">", "|", "\n", "\r\n> quote", "\u202e", "\u200b",
    "\u2028", "\x00", "\x1b[31m", "\ud800", "😀", "@channel", ":tada:", "x" * 300, "{uuid}", "%s", "\U0001d4b3" * 40,
)  # fmt: skip

OURS: Final = re.compile(
    r"<@(?P<person>U[0-9A-Z]+)>|<!subteam\^(?P<group>S[0-9A-Z]+)>|<#C0(?:DESK|APPROVALS)>"
    r"|<!date\^\d+\^\{date_short_pretty\} \{time(?:_secs)?\}\|[0-9: UTC-]+>"
    r"|<https://desk\.slack\.com/archives/C0DESK/p1790000000000100\|(?:open it|#\d+)>"
)
CODE: Final = re.compile(r"`[^`\n]+`")


def assert_contained(text: str) -> None:
    """Nothing but our own mentions and times is active, and what was marked as foreign stands in a code span."""
    for found in OURS.finditer(text):
        if person := found["person"]:
            assert person in {"U0REQUESTER", "U0APPROVER", "U0SECOND"} or re.fullmatch(r"U\d{3}", person)
        if group := found["group"]:
            assert group == "S0TREASURY"
    bare = OURS.sub("", text)
    assert "<" not in bare
    assert ">" not in bare
    assert not re.search(r"&(?!(?:amp|lt|gt);)", bare)
    rest = CODE.sub("", bare)
    assert "`" not in rest
    assert MARK not in rest
    assert not re.search(r"[\u202a-\u202e\u2066-\u2069\u200b-\u200f\x00-\x09\x0b-\x1f\ud800-\udfff]", text)


def texts_of(node: object) -> Iterator[tuple[str, str]]:
    """Every text object under the node: its type and its text."""
    if isinstance(node, dict):
        if node.get("type") in {"mrkdwn", "plain_text"}:
            yield node["type"], node["text"]
        for value in node.values():
            yield from texts_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from texts_of(value)


def length(text: str) -> int:
    """As Slack might count at worst: an emoji as two."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def assert_valid(blocks: list[dict[str, Any]]) -> None:
    """Slack's limits: https://docs.slack.dev/reference/block-kit/blocks."""
    assert 1 <= len(blocks) <= 50
    for text, limit in limited_texts(blocks):
        assert 1 <= length(text["text"]) <= limit
    for parsed in Block.parse_all(blocks):
        parsed.validate_json()
        parsed.to_dict()


def limited_texts(blocks: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Every text object with the length that it may have."""
    for block in blocks:
        match block:
            case {"type": "header", "text": text}:
                yield text, 150
            case {"type": "section", "text": text}:
                yield text, 3000
            case {"type": "section", "fields": fields}:
                assert 1 <= len(fields) <= 10
                yield from ((field, 2000) for field in fields)
            case {"type": "context", "elements": elements}:
                assert 1 <= len(elements) <= 10
                yield from ((element, 3000) for element in elements)
            case {"type": "actions", "elements": buttons}:
                assert 1 <= len(buttons) <= 25
                for button in buttons:
                    yield from limited_button_texts(button)
            case _:
                raise AssertionError(f"unknown block {block}")


def limited_button_texts(button: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    assert len(button["value"]) <= 2000
    yield button["text"], 75
    if confirm := button.get("confirm"):
        yield confirm["title"], 100
        yield confirm["text"], 300
        yield confirm["confirm"], 30
        yield confirm["deny"], 30


def assert_message(message: Message) -> None:
    assert_valid(message.blocks)
    assert 1 <= length(message.text) <= 4000
    assert_contained(message.text)
    for kind, text in texts_of(message.blocks):
        # A confirm dialog may cut a code span of foreign text open; in plain text nothing is active.
        if kind == "mrkdwn":
            assert_contained(text)
    json.dumps([message.text, message.blocks]).encode()


foreign = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=20), max_size=8).map(
    lambda parts: MARK + "".join(parts)
)
words = st.one_of(
    foreign.map(lambda text: text[:200]), st.sampled_from(["ask", "bid", "limit", "wait", "done", "best"])
)
amounts = st.none() | st.decimals(
    allow_nan=False, allow_infinity=False, min_value=Decimal("-1e30"), max_value=Decimal("1e30")
)
moments = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - made aware
orders = st.builds(
    Order,
    uuid=st.just(UUID),
    side=words,
    ord_type=words,
    state=words,
    market=st.just("KRW-BTC") | foreign.map(lambda text: f"{text[:90]}-{text[:90]}"),
    created_at=words | st.just("2026-11-23T17:30:00+09:00"),
    **dict.fromkeys(
        (
            "price",
            "volume",
            "remaining_volume",
            "executed_volume",
            "reserved_fee",
            "remaining_fee",
            "paid_fee",
            "locked",
            "prevented_volume",
            "prevented_locked",
        ),
        amounts,
    ),
    trades_count=st.none() | st.integers(0, 10**30),
    time_in_force=st.none() | words,
    identifier=st.none() | foreign.map(lambda text: text[:200]),
    smp_type=st.none() | words,
)
prices = st.decimals("1e-29", "1e29", allow_nan=False, allow_infinity=False)
decisions = st.lists(
    st.builds(
        Decision,
        kind=st.sampled_from(DecisionKind),
        actor=st.sampled_from([REQUESTER, APPROVER, SECOND]),
        decided_at=moments,
        reason=st.just("") | foreign | foreign.map(lambda text: (text * 500)[:1000]),
    ),
    max_size=20,
).map(tuple)
requests = st.builds(
    CancelRequest,
    id=st.integers(1, 2**63),
    order_uuid=st.just(UUID),
    state=st.sampled_from(State),
    requester=st.just(REQUESTER),
    reason=st.just("") | foreign | foreign.map(lambda text: (text * 500)[:4000]),
    team_id=st.just("T0HOME"),
    channel_id=st.just("C0DESK") | foreign,
    approvals_channel_id=st.none() | st.just("C0APPROVALS"),
    opened_at=st.none() | moments,
    quote=st.none() | st.builds(Quote, bid=prices, ask=prices, quoted_at=moments),
    trigger_id=st.just("1.2.3"),
    created_at=moments,
    order=st.none() | orders,
    order_now=st.none() | orders,
    order_approved=st.none() | orders,
    looked_at=st.none() | moments,
    approvals_required=st.integers(1, 5),
    approval_rule=st.none()
    | st.builds(
        Tier,
        market=st.sampled_from(["*", "KRW-*", "KRW-BTC", f"{'A' * 200}-{'B' * 200}"]),
        side=st.sampled_from([None, "bid", "ask"]),
        over=st.none() | st.decimals(0, 10**30, allow_nan=False, allow_infinity=False),
        approvals=st.integers(1, 20),
    ),
    not_counted=st.sampled_from([(), (APPROVER.id,), (APPROVER.id, SECOND.id)]),
    approvers=st.integers(0, 200).map(lambda count: tuple(f"U{n:03}" for n in range(count))),
    expires_at=st.none() | moments,
    send_before=st.none() | moments,
    sent_at=st.none() | moments,
    accepted_at=st.none() | moments,
    sends=st.integers(0, 3),
    decisions=decisions,
    cause=st.none()
    | foreign
    | st.sampled_from([*Reason, *UPBIT_ERRORS])
    | foreign.map(lambda text: f"cannot_post:{text}"),
    canceled_by=st.none() | st.sampled_from(CanceledBy),
    settled_verdict=st.none() | st.sampled_from(Verdict),
    settled_by=st.none() | foreign.map(lambda text: f"cli:{text}"),
    settled_reason=st.none() | foreign,
)


@settings(max_examples=100, deadline=None)
@given(request=requests)
def test_nothing_typed_or_sent_pings_links_or_breaks_a_limit(request: CancelRequest) -> None:
    """Slack refuses a card that is too long, and `<!channel>` in a reason would wake up the company."""
    shown = card(request, notify=NOTIFY)
    assert_message(shown)
    if said := thread_message(request, notify=NOTIFY):
        assert_message(said)
    assert_message(messages.reminder(request, may_still_approve=request.approvers, notify=NOTIFY))
    assert_message(messages.reminder(request, may_still_approve=request.approvers, notify=()))
    lines = [messages.summary_elsewhere(request, notify=NOTIFY), messages.still_reading(request)]
    lines += [messages.click_refused(reason, request) for reason in CLICKS]
    lines.append(messages.card_elsewhere(request, link=request.reason))
    lines.append(messages.command_refused(Reason.CHANNEL_NOT_ALLOWED, channels=[request.channel_id]))
    lines += [messages.denying(request), messages.form_not_opened(request)]
    lines.append(messages.request_refused(replace(request, said=request.reason)))
    lines.append(messages.command_refused(Reason.ORDER_HAS_OPEN_REQUEST, open_request=request, link=request.reason))
    lines.append(messages.command_refused(Reason.NOT_A_UUID, text=request.reason))
    lines.append(messages.command_refused(Reason.NOT_A_QUESTION, text=request.reason))
    placed = replace(request, card_channel_id="C0DESK", card_ts="1790000000.000100")
    lines.append(messages.status(Status(request=placed, has_others=True), workspace_url=DESK_URL))
    wanted = Wanted(requester_name=request.reason[:80], request_id=request.id, market="A" * 20 + "-" + "B" * 20)
    page = Listing(wanted=wanted, requests=(placed,) * 10, next_page=replace(wanted, before=request.id))
    lines.append(messages.listing(page, workspace_url=DESK_URL))
    for line in lines:
        assert_contained(line)
        assert 1 <= length(line) <= 4000


def test_what_does_not_fit_into_one_answer_is_on_the_next_page() -> None:
    """Ten requests whose words are as long as can be; each is shown once, none is lost between two pages."""
    long = "가" * 200
    orders = [replace(SELL, side=long, market=f"{long[:100]}-{long[:99]}") for _ in range(10)]
    asked = tuple(replace(PENDING, id=100 - n, order_now=each) for n, each in enumerate(orders))
    said = messages.listing(Listing(wanted=Wanted(), requests=asked), workspace_url=DESK_URL)
    shown = [int(number) for number in re.findall(r"^• #(\d+)", said, re.MULTILINE)]

    assert 1 <= len(shown) < 10
    assert shown == [100 - n for n in range(len(shown))]
    assert f"/cancel history before #{shown[-1]}`" in said
    assert length(said) <= 4000


@pytest.mark.parametrize("name", CASES)
def test_each_example_is_what_slack_takes(name: str) -> None:
    """The snapshots show words; this looks at the JSON."""
    assert_message(card(CASES[name], notify=NOTIFY))
    if said := thread_message(CASES[name], notify=NOTIFY):
        assert_message(said)


@given(text=foreign, limit=st.integers(1, 400))
def test_a_cut_never_leaves_half_an_escaped_character(text: str, limit: int) -> None:
    """`&l` would be shown as it is, and `&` alone is not what Slack asks for."""
    short = messages.cut(messages.escape(text), limit)
    assert len(short) <= limit
    assert not re.search(r"&(?!(?:amp|lt|gt);)", short)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("AT&T <b>", "AT&amp;T &lt;b&gt;"),
        ("one\ntwo\t three", "one two three"),
        ("`code`", "'code'"),
        ("100\u202e$", "100\ufffd$"),
        ("half \ud83d", "half \ufffd"),
    ],
)
def test_what_was_typed_stays_readable(text: str, shown: str) -> None:
    """Escaped for Slack, whole for the reader, and nothing invisible."""
    assert messages.escape(text) == shown


@pytest.mark.parametrize(
    ("actor", "shown"),
    [
        ("U0APPROVER", "<@U0APPROVER>"),
        ("W0ENTERPRISE", "<@W0ENTERPRISE>"),
        ("S0TREASURY", "<!subteam^S0TREASURY>"),
        ("cli:operator", "`cli:operator`"),
        ("U1> <!channel", "`U1&gt; &lt;!channel`"),
    ],
)
def test_only_an_id_becomes_a_mention(actor: str, shown: str) -> None:
    """A mention is made of Slack's own id or not at all."""
    assert messages.mention(actor) == shown


def test_a_link_leads_to_the_card_or_is_none() -> None:
    """The address comes from Slack; anything else is left out."""
    link = messages.permalink("https://desk.slack.com/", "C0DESK", "1790000000.000100")
    assert link == "https://desk.slack.com/archives/C0DESK/p1790000000000100"
    refused = messages.command_refused(Reason.ORDER_HAS_OPEN_REQUEST, open_request=PENDING, link="x|<!channel>")
    assert "<!channel>" not in refused
    assert "request #42" in refused
