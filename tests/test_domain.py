"""The domain by itself: the table of transitions, the policy, canonical JSON and Upbit's order."""

import inspect
import json
import re
from dataclasses import replace
from datetime import UTC, timedelta
from decimal import Decimal
from itertools import product
from typing import Any, Final

import pytest
import rfc8785
from builders import APPROVER, HOME, ORDER_UUID, REQUESTER, SECOND, START, STRANGER, order
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bot.domain import audit, cancel_request
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import GENESIS_HASH, Action, Actor, AuditEvent, Reason, canonical, chain_hash, columns, timestamp
from bot.domain.cancel_request import (
    ENDED_STATES,
    OPEN_STATES,
    TRANSITIONS,
    CanceledBy,
    CancelRequest,
    Decision,
    DecisionKind,
    State,
    refusal_of,
)
from bot.domain.errors import CannotPost, IllegalTransition, TryLater
from bot.domain.event_filter import Filter
from bot.domain.order import MAX_TEXT_CHARS, MalformedOrder, Order, dump_order, load_order

UNHURRIED: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no failure."""

APPROVE, DENY, WITHDRAW = DecisionKind.APPROVE, DecisionKind.DENY, DecisionKind.WITHDRAW
ELSEWHERE: Final = replace(APPROVER, team_id="T0OTHER")


def request(**changes: Any) -> CancelRequest:
    """A request that waits for approval."""
    fields: dict[str, Any] = {
        "id": 42,
        "order_uuid": ORDER_UUID,
        "state": State.PENDING,
        "requester": REQUESTER,
        "reason": "wrong price",
        "team_id": HOME,
        "channel_id": "C0DESK",
        "trigger_id": "trigger",
        "created_at": START,
        "approvers": (APPROVER.id, SECOND.id),
        "expires_at": START + timedelta(minutes=30),
    }
    return CancelRequest(**{**fields, **changes})


# The table of transitions


def comments_of_actions() -> dict[str, str]:
    """What stands beside each action in its source."""
    source = inspect.getsource(audit.Action)
    return dict(re.findall(r'= "([a-z_.]+)"  #: (.+)$', source, flags=re.MULTILINE))


def in_words(action: Action) -> str:
    """The comment that the table asks for, its sources in the order of the states."""
    if action not in TRANSITIONS:
        return "moves nothing"
    sources, target = TRANSITIONS[action]
    return f"{', '.join(state for state in State if state in sources) or '(none)'} -> {target}"


def test_the_comment_beside_each_action_says_what_the_table_does() -> None:
    """People read the comments, the bot the table: an auditor must be able to rely on either."""
    assert comments_of_actions() == {action.value: in_words(action) for action in Action}


def test_every_state_can_be_reached() -> None:
    """A state that nothing leads to is a rule that never holds."""
    reached: set[State] = set()
    for _ in State:
        reached |= {target for sources, target in TRANSITIONS.values() if not sources or sources & reached}
    assert reached == set(State)


def test_the_picture_names_every_state() -> None:
    """The picture is where a newcomer starts."""
    picture = (cancel_request.__doc__ or "").partition("A state names")[0]
    missing = [state for state in State if not re.search(rf"\b{state}\b", picture)]
    assert missing == []


def test_states_that_are_open_or_ended_are_what_the_design_says() -> None:
    """The one-request-per-order rule and the end of all work hang on these two sets."""
    assert {State.REQUESTED, State.PENDING, State.APPROVED, State.SENDING, State.ACCEPTED} == OPEN_STATES
    assert set(State) - OPEN_STATES - {State.UNRESOLVED} == ENDED_STATES


@pytest.mark.parametrize(("state", "action"), list(product(State, Action)))
def test_an_action_leads_only_where_the_table_says(state: State, action: Action) -> None:
    """Whatever is not in the table is refused, for every state and every action."""
    sources, target = TRANSITIONS.get(action, (frozenset(), None))
    if state in sources:
        assert request(state=state).after(action) is target
    else:
        with pytest.raises(IllegalTransition, match=re.escape(f"{action} of request 42 in state {state}")):
            request(state=state).after(action)


def test_a_request_knows_its_market_from_the_latest_look() -> None:
    """Audit rows carry the market, which is known only once the order was read."""
    assert request().market is None
    assert request(order=order()).market == "KRW-BTC"
    assert request(order=order(), order_now=order(market="KRW-ETH")).market == "KRW-ETH"


def test_a_request_that_is_unresolved_is_not_open() -> None:
    """Unresolved must not block a new request for the same order."""
    assert request().is_open
    assert not request(state=State.UNRESOLVED).is_open


def test_decisions_are_told_apart_by_kind() -> None:
    """Only approvals count towards an approval."""
    approval = Decision(kind=APPROVE, actor=APPROVER, decided_at=START)
    denial = Decision(kind=DENY, actor=SECOND, decided_at=START)
    assert request(decisions=(approval, denial)).decided(APPROVE) == (approval,)


PRIVATE_CASES: Final = [
    ("asked in public", False, STRANGER.id, None, True),
    ("asked in private: who asked", True, REQUESTER.id, None, True),
    ("asked in private: who may approve", True, APPROVER.id, None, True),
    ("asked in private: who decided, and may no longer", True, "U0FORMER", None, True),
    ("asked in private: anybody else", True, STRANGER.id, None, False),
    ("asked in private: somebody who types there", True, STRANGER.id, "C0DESK", True),
    ("asked in private: somebody who types where the card is", True, STRANGER.id, "C0CARDS", True),
    ("asked in private: somebody who types elsewhere", True, STRANGER.id, "C0OTHER", False),
]


@pytest.mark.parametrize(("in_private", "person_id", "from_channel", "is_seen"), [case[1:] for case in PRIVATE_CASES])
def test_what_was_asked_in_private_is_seen_by_those_it_concerns(
    *, in_private: bool, person_id: str, from_channel: str | None, is_seen: bool
) -> None:
    """An order that a private channel talks about is nobody else's business."""
    former = Decision(kind=DecisionKind.DENY, actor=Actor(id="U0FORMER", team_id=HOME), decided_at=START)
    asked = request(in_private=in_private, card_channel_id="C0CARDS", decisions=(former,))
    assert asked.may_be_seen_by(person_id, from_channel=from_channel) is is_seen


def test_without_a_channel_nobody_is_where_a_card_is_not_posted() -> None:
    """The Home tab is no channel, and a request without a card has none either: they are not the same place."""
    assert not request(in_private=True, card_channel_id=None).may_be_seen_by(STRANGER.id, from_channel=None)


def test_where_it_was_asked_is_private_unless_it_is_known() -> None:
    """A row of the version before does not tell."""
    assert request().in_private


@pytest.mark.parametrize(
    ("facts", "whose"),
    [
        ({"accepted_at": START, "unanswered": 1}, CanceledBy.THIS_REQUEST),
        ({"unanswered": 1}, CanceledBy.UNPROVEN),
        ({"doubt": "order_not_found"}, CanceledBy.UNPROVEN),
    ],
)
def test_a_cancel_is_ours_only_where_that_is_proven(facts: dict[str, Any], whose: CanceledBy) -> None:
    """The thread says whose cancel it was: claiming somebody else's would be a lie in the audit."""
    assert request(**facts).whose_cancel() is whose


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("wait", None),
        ("watch", None),
        ("done", Reason.ALREADY_DONE),
        ("cancel", Reason.ALREADY_CANCELED),
        ("odd", Reason.NOT_OPEN),
    ],
)
def test_only_an_open_order_can_be_asked_to_be_canceled(state: str, reason: Reason | None) -> None:
    """A state that Upbit has not documented is not taken for open."""
    assert refusal_of(order(state=state)) is reason


# The policy

ALLOWED: Final = frozenset({APPROVER.id, SECOND.id, REQUESTER.id})
SHOWN: Final = tuple(sorted(ALLOWED))

POLICY_TABLE: Final[list[tuple[str, dict[str, Any], Actor, Reason | None, Reason | None]]] = [
    # rule, what is different about the request, actor, refusal to approve, refusal to deny
    ("an approver may", {}, APPROVER, None, None),
    ("another approver may", {}, SECOND, None, None),
    ("who asked may deny only", {}, REQUESTER, Reason.OWN_REQUEST, None),
    ("a stranger may not", {}, STRANGER, Reason.NOT_AN_APPROVER, Reason.NOT_AN_APPROVER),
    ("another workspace may not", {}, ELSEWHERE, Reason.OTHER_WORKSPACE, Reason.OTHER_WORKSPACE),
    ("who was not on the card may deny only", {"approvers": (SECOND.id,)}, APPROVER, Reason.NOT_AN_APPROVER, None),
    ("not after its time", {"expires_at": START}, APPROVER, Reason.EXPIRED, Reason.EXPIRED),
    ("not without a time", {"expires_at": None}, APPROVER, Reason.EXPIRED, Reason.EXPIRED),
    ("not too early", {"state": State.REQUESTED}, APPROVER, Reason.NOT_YET_PENDING, Reason.NOT_YET_PENDING),
    ("not once expired", {"state": State.EXPIRED}, APPROVER, Reason.EXPIRED, Reason.EXPIRED),
    ("not twice", {"state": State.APPROVED}, APPROVER, Reason.ALREADY_DECIDED, Reason.ALREADY_DECIDED),
    ("a stranger hears no state", {"state": State.FILLED}, STRANGER, Reason.NOT_AN_APPROVER, Reason.NOT_AN_APPROVER),
]


@pytest.mark.parametrize(("changes", "actor", "approve", "deny"), [row[1:] for row in POLICY_TABLE])
def test_each_rule_holds_for_each_button_and_kind_of_person(
    changes: dict[str, Any], actor: Actor, approve: Reason | None, deny: Reason | None
) -> None:
    """Allowlists were bypassed elsewhere where one button checked less than the other."""
    policy = ApprovalPolicy(approvers=ALLOWED)
    asked = request(**{"approvers": SHOWN, **changes})
    assert policy.refusal(asked, actor, APPROVE, START) is approve
    assert policy.refusal(asked, actor, DENY, START) is deny


@pytest.mark.parametrize(
    ("changes", "actor", "refusal"),
    [
        ({}, REQUESTER, None),
        ({}, replace(REQUESTER, team_id="T0OTHER"), Reason.OTHER_WORKSPACE),
        ({}, APPROVER, Reason.NOT_THE_REQUESTER),
        ({}, STRANGER, Reason.NOT_THE_REQUESTER),
        ({"state": State.REQUESTED}, REQUESTER, Reason.NOT_YET_PENDING),
        ({"state": State.APPROVED}, REQUESTER, Reason.ALREADY_DECIDED),
        ({"state": State.WITHDRAWN}, REQUESTER, Reason.ALREADY_DECIDED),
        ({"expires_at": START}, REQUESTER, Reason.EXPIRED),
    ],
)
def test_only_who_asked_withdraws_and_needs_no_allowlist_for_it(
    changes: dict[str, Any], actor: Actor, refusal: Reason | None
) -> None:
    """To withdraw sends nothing, so who may no longer ask still may; an approver who wants it gone denies."""
    policy = ApprovalPolicy(approvers=frozenset({APPROVER.id}), requesters=frozenset({SECOND.id}))
    assert policy.refusal(request(**changes), actor, WITHDRAW, START) is refusal


@pytest.mark.parametrize("state", [state for state in State if state is not State.PENDING])
@pytest.mark.parametrize("kind", list(DecisionKind))
def test_nothing_but_a_pending_request_can_be_decided(state: State, kind: DecisionKind) -> None:
    """A button that stayed on an old card must never decide anything."""
    actor = REQUESTER if kind is WITHDRAW else APPROVER
    policy = ApprovalPolicy(approvers=ALLOWED)
    expected = {State.REQUESTED: Reason.NOT_YET_PENDING, State.EXPIRED: Reason.EXPIRED}
    refusal = policy.refusal(request(state=state), actor, kind, START)
    assert refusal is expected.get(state, Reason.ALREADY_DECIDED)


@pytest.mark.parametrize("kind", list(DecisionKind))
@pytest.mark.parametrize("actor", [REQUESTER, APPROVER, STRANGER, ELSEWHERE])
def test_a_click_on_no_request_decides_nothing(actor: Actor, kind: DecisionKind) -> None:
    """A forged or orphaned button gets an honest answer."""
    assert ApprovalPolicy(approvers=ALLOWED).refusal(None, actor, kind, START) is Reason.UNKNOWN_REQUEST


@pytest.mark.parametrize("kind", [APPROVE, DENY])
@pytest.mark.parametrize("actor", [REQUESTER, APPROVER, STRANGER])
def test_an_empty_allowlist_is_nobody(actor: Actor, kind: DecisionKind) -> None:
    """Empty must never come to mean everyone."""
    policy = ApprovalPolicy(approvers=frozenset(), self_approval=True)
    assert policy.refusal(request(), actor, kind, START) is Reason.NOT_AN_APPROVER
    assert policy.opening_refusal(REQUESTER, approvals=1) is Reason.NOBODY_CAN_APPROVE


def test_who_asked_may_approve_only_where_that_is_allowed() -> None:
    """Four eyes are the default."""
    alone = frozenset({REQUESTER.id})
    strict, lenient = ApprovalPolicy(approvers=alone), ApprovalPolicy(approvers=alone, self_approval=True)
    assert strict.approvers_of(REQUESTER) == ()
    assert strict.opening_refusal(REQUESTER, approvals=1) is Reason.NOBODY_CAN_APPROVE
    assert lenient.approvers_of(REQUESTER) == (REQUESTER.id,)
    assert lenient.opening_refusal(REQUESTER, approvals=1) is None
    assert lenient.refusal(request(approvers=(REQUESTER.id,)), REQUESTER, APPROVE, START) is None


def test_a_request_is_refused_where_too_few_could_approve_it() -> None:
    """Two approvals of one person can never come."""
    policy = ApprovalPolicy(approvers=frozenset({REQUESTER.id, APPROVER.id}))
    assert policy.opening_refusal(REQUESTER, approvals=2) is Reason.TOO_FEW_APPROVERS
    assert policy.opening_refusal(STRANGER, approvals=2) is None


# Several approvals for one request


def approved_by(*people: Actor) -> tuple[Decision, ...]:
    return tuple(Decision(kind=APPROVE, actor=person, decided_at=START) for person in people)


VOTES_TABLE: Final[list[tuple[str, tuple[Actor, ...], Actor, Reason | None, Reason | None]]] = [
    # rule, who has approved, actor, refusal to approve, refusal to deny
    ("the second of two may", (APPROVER,), SECOND, None, None),
    ("nobody counts twice, and who approved may deny", (APPROVER,), APPROVER, Reason.ALREADY_APPROVED, None),
    ("who asked may not be the second", (APPROVER,), REQUESTER, Reason.OWN_REQUEST, None),
    ("a stranger may not", (APPROVER,), STRANGER, Reason.NOT_AN_APPROVER, Reason.NOT_AN_APPROVER),
    ("who was taken off may not", (ELSEWHERE,), ELSEWHERE, Reason.OTHER_WORKSPACE, Reason.OTHER_WORKSPACE),
    ("who may say that they are enough", (APPROVER, SECOND), APPROVER, None, None),
]


@pytest.mark.parametrize(("before", "actor", "approve", "deny"), [row[1:] for row in VOTES_TABLE])
def test_each_rule_holds_while_approvals_are_counted(
    before: tuple[Actor, ...], actor: Actor, approve: Reason | None, deny: Reason | None
) -> None:
    """Two approvals of one person are one pair of eyes."""
    policy = ApprovalPolicy(approvers=ALLOWED)
    asked = request(approvers=SHOWN, approvals_required=2, decisions=approved_by(*before))
    assert policy.refusal(asked, actor, APPROVE, START) is approve
    assert policy.refusal(asked, actor, DENY, START) is deny


@pytest.mark.parametrize(
    ("policy", "changes", "counting"),
    [
        ({}, {}, (APPROVER, SECOND)),
        ({"approvers": frozenset({SECOND.id})}, {}, (SECOND,)),
        ({}, {"approvers": (APPROVER.id,)}, (APPROVER,)),
        ({"self_approval": True}, {}, (APPROVER, SECOND, REQUESTER)),
        ({"approvers": frozenset()}, {}, ()),
    ],
)
def test_an_approval_counts_by_the_lists_of_the_day_it_is_counted(
    policy: dict[str, Any], changes: dict[str, Any], counting: tuple[Actor, ...]
) -> None:
    """Somebody who left this morning does not help to cancel an order this afternoon."""
    asked = request(
        **{"approvers": SHOWN, **changes}, approvals_required=2, decisions=approved_by(APPROVER, SECOND, REQUESTER)
    )
    rules = ApprovalPolicy(**{"approvers": ALLOWED, **policy})
    assert tuple(each.actor for each in rules.counting(asked)) == counting
    assert rules.is_enough(asked) == (len(counting) >= 2)


@pytest.mark.parametrize(
    ("requesters", "actor", "open_requests", "refusal"),
    [
        (frozenset(), STRANGER, 0, None),
        (frozenset(), ELSEWHERE, 0, Reason.OTHER_WORKSPACE),
        (frozenset({REQUESTER.id}), REQUESTER, 19, None),
        (frozenset({REQUESTER.id}), REQUESTER, 20, Reason.TOO_MANY_OPEN_REQUESTS),
        (frozenset({REQUESTER.id}), STRANGER, 0, Reason.NOT_A_REQUESTER),
        (frozenset({ELSEWHERE.id}), ELSEWHERE, 0, Reason.OTHER_WORKSPACE),
    ],
)
def test_who_may_make_a_request(
    requesters: frozenset[str], actor: Actor, open_requests: int, refusal: Reason | None
) -> None:
    """An empty list of requesters is everyone at home; nobody floods the approvers."""
    policy = ApprovalPolicy(approvers=ALLOWED, requesters=requesters)
    assert policy.command_refusal(actor, home_team=HOME, channel_id="C0DESK", open_requests=open_requests) is refusal


@pytest.mark.parametrize(
    ("channels", "actor", "channel_id", "refusal"),
    [
        (frozenset(), REQUESTER, "C0ANYWHERE", None),
        (frozenset({"C0DESK", "D0DANA"}), REQUESTER, "C0DESK", None),
        (frozenset({"C0DESK", "D0DANA"}), REQUESTER, "D0DANA", None),
        (frozenset({"C0DESK"}), REQUESTER, "D0DANA", Reason.CHANNEL_NOT_ALLOWED),
        (frozenset({"C0DESK"}), REQUESTER, "c0desk", Reason.CHANNEL_NOT_ALLOWED),
        (frozenset({"C0DESK"}), REQUESTER, "", Reason.CHANNEL_NOT_ALLOWED),
        (frozenset({"C0DESK"}), STRANGER, "C0ANYWHERE", Reason.NOT_A_REQUESTER),
        (frozenset({"C0DESK"}), ELSEWHERE, "C0DESK", Reason.OTHER_WORKSPACE),
    ],
)
def test_where_a_request_may_be_made(
    channels: frozenset[str], actor: Actor, channel_id: str, refusal: Reason | None
) -> None:
    """No list is everywhere; and somebody who may not ask at all is not sent to another channel."""
    policy = ApprovalPolicy(approvers=ALLOWED, requesters=frozenset({REQUESTER.id}), channels=channels)
    assert policy.command_refusal(actor, home_team=HOME, channel_id=channel_id, open_requests=0) is refusal


@pytest.mark.parametrize("kind", DecisionKind)
def test_a_decision_is_not_bound_to_the_channels_where_requests_are_made(kind: DecisionKind) -> None:
    """The card stays where it was posted: taking its channel off the list must not leave buttons that do nothing."""
    asked = request(channel_id="C0OLD", approvers=SHOWN)
    policy = ApprovalPolicy(approvers=ALLOWED, channels=frozenset({"C0DESK"}))
    who = REQUESTER if kind is DecisionKind.WITHDRAW else APPROVER
    assert policy.refusal(asked, who, kind, START) is None


# Canonical JSON and the hash

WHOLE_NUMBERS: Final = st.integers(-(2**53) + 1, 2**53 - 1)
TEXTS: Final = st.text(st.characters(codec="utf-8"))
ASCII_TEXTS: Final = st.text(st.characters(codec="ascii"))
JSON_VALUES: Final[st.SearchStrategy[Any]] = st.recursive(
    st.none() | st.booleans() | WHOLE_NUMBERS | TEXTS,
    lambda values: st.lists(values) | st.dictionaries(ASCII_TEXTS, values),
)


@UNHURRIED
@given(JSON_VALUES)
@example({"b": '\u2028\x7f\x1f"\\/', "a": [1, True, None], "A": "\U0001f600€"})
def test_canonical_text_is_what_rfc_8785_says(value: Any) -> None:
    """An auditor must be able to write the same text with other tools."""
    assert canonical(value).encode() == rfc8785.dumps(value)


def test_what_is_no_number_has_no_canonical_text() -> None:
    """JSON knows no NaN; a hash over one could not be checked elsewhere."""
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(float("nan"))  # type: ignore[arg-type] # the type forbids it too


def test_an_event_holds_every_fact_in_plain_json() -> None:
    """The hashed text stands alone: whoever has only it knows what happened."""
    event = AuditEvent(action=Action.CANCEL_SENT, actor=APPROVER, request_id=42, market="KRW-BTC", details={"a": 1})
    held = json.loads(canonical(columns(event, seq=7, occurred_at=START)))
    assert held == {
        "seq": 7,
        "occurred_at": "2026-11-23T09:00:00.000000Z",
        "action": "cancel.sent",
        "outcome": "ok",
        "actor": APPROVER.id,
        "actor_name": APPROVER.name,
        "actor_team": HOME,
        "request_id": 42,
        "order_uuid": None,
        "market": "KRW-BTC",
        "team_id": None,
        "channel_id": None,
        "reason": None,
        "trigger_id": None,
        "details": {"a": 1},
    }


def test_the_hash_covers_the_event_before() -> None:
    """Were it the text alone, an event could be moved."""
    assert chain_hash(GENESIS_HASH, "{}") == "5649d09ed68c17156095d175eef152856c5b1a81c117c409c1e00f096aa6838e"
    assert chain_hash(GENESIS_HASH, "{}") != chain_hash("1" * 64, "{}")


def test_times_are_written_in_utc_with_microseconds() -> None:
    """One spelling only, since the text is what is hashed and what SQLite sorts."""
    assert timestamp(START + timedelta(microseconds=5)) == "2026-11-23T09:00:00.000005Z"
    assert timestamp(START.astimezone()) == "2026-11-23T09:00:00.000000Z"


def test_errors_of_slack_carry_what_the_next_step_needs() -> None:
    """The worker waits as long as Slack says, and the audit holds Slack's word."""
    assert CannotPost("not_in_channel").error == "not_in_channel"
    assert (TryLater("limited", retry_after_s=7.0).cause, TryLater("away").retry_after_s) == ("limited", 0.0)


# The order

FIELDS: Final = {
    "uuid": ORDER_UUID,
    "side": "bid",
    "ord_type": "limit",
    "state": "wait",
    "market": "KRW-BTC",
    "created_at": "2026-11-23T17:30:00+09:00",
}
AMOUNT_NAMES: Final = [name for name, kind in inspect.get_annotations(Order).items() if kind == Decimal | None]
AMOUNTS: Final = st.decimals(
    min_value=Decimal(0), max_value=Decimal("1e14"), places=12, allow_nan=False, allow_infinity=False
)
SHORT_TEXTS: Final = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=MAX_TEXT_CHARS)
ORDERS: Final = st.builds(
    Order,
    **{name: SHORT_TEXTS.filter(bool) for name in FIELDS},
    **{name: st.none() | AMOUNTS for name in AMOUNT_NAMES},
    **{name: st.none() | SHORT_TEXTS for name in ("time_in_force", "identifier", "smp_type")},
    trades_count=st.none() | st.integers(0, 10**9),
)


@UNHURRIED
@given(ORDERS)
def test_an_order_comes_back_from_the_database_as_it_was(shown: Order) -> None:
    """What approvers were shown is evidence."""
    assert load_order(dump_order(shown)) == shown
    assert "E" not in "".join(str(value) for name, value in shown.to_json().items() if name in AMOUNT_NAMES)


@pytest.mark.parametrize("name", ["remaining_fee", "remaing_fee"])
def test_both_spellings_of_the_remaining_fee_are_read(name: str) -> None:
    """Upbit's documentation and its answers spell it differently."""
    assert Order.from_json({**FIELDS, name: "0.5"}).remaining_fee == Decimal("0.5")


def test_an_order_is_read_with_its_numbers_exact() -> None:
    """Money in floats is money lost: strings and whole numbers keep every digit."""
    read = Order.from_json({**FIELDS, "price": "987654321.12345678", "volume": 3, "locked": Decimal("0.1"), "x": []})
    assert (read.price, read.volume, read.locked) == (Decimal("987654321.12345678"), Decimal(3), Decimal("0.1"))
    assert (read.executed_volume, read.base_currency, read.quote_currency) == (None, "BTC", "KRW")
    assert Order.from_json({**FIELDS, "price": "", "trades_count": "2"}).trades_count == 2


@pytest.mark.parametrize(
    ("earlier", "later", "moved"),
    [
        ({}, {}, False),
        ({}, {"state": "done"}, True),
        ({}, {"executed_volume": Decimal("0.1")}, True),
        ({"price": None}, {"price": Decimal(1)}, False),
        ({"price": Decimal("1.0")}, {"price": Decimal(1)}, False),
        ({"identifier": None, "locked": Decimal(1)}, {"identifier": "mine", "locked": None}, False),
    ],
)
def test_an_order_has_moved_where_both_looks_tell_and_differ(
    earlier: dict[str, Any], later: dict[str, Any], *, moved: bool
) -> None:
    """A list that tells fewer fields than a single look must not look like a change every half minute."""
    assert order(**later).has_moved_since(order(**earlier)) is moved


@pytest.mark.parametrize("name", list(FIELDS))
@pytest.mark.parametrize("value", [None, "", 1, [], "x" * (MAX_TEXT_CHARS + 1), "\x00", "\ud800"])
def test_a_required_field_must_be_a_short_text(name: str, value: object) -> None:
    """What lacks a state or a uuid is not an order, and nothing may be concluded from it."""
    with pytest.raises(MalformedOrder, match=name):
        Order.from_json({**FIELDS, name: value})


@pytest.mark.parametrize("name", AMOUNT_NAMES)
@pytest.mark.parametrize(
    "value", [True, 0.1, [], {}, "much", "NaN", "Infinity", "-sNaN", "1e31", "1e-31", "1e999999999", "1" * 31, "\ud800"]
)
def test_an_odd_amount_is_refused(name: str, value: object) -> None:
    """`1e999999999` would fill the memory when written, NaN compares with nothing, and a float has lost digits."""
    with pytest.raises(MalformedOrder, match=name):
        Order.from_json({**FIELDS, name: value})


@pytest.mark.parametrize("value", ["1.5", -1, "-1", True, "many"])
def test_a_count_is_a_whole_number(value: object) -> None:
    """Half a trade is a sign that something else is answering."""
    with pytest.raises(MalformedOrder, match="trades_count"):
        Order.from_json({**FIELDS, "trades_count": value})


ODD_VALUES: Final = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=20)
    | st.sampled_from(["1e999999999", "-1e-999999999", "NaN", "1_0", " 1 ", "\u0661"])
    | st.decimals()
    | st.lists(st.none(), max_size=1)
    | st.dictionaries(st.text(max_size=2), st.none(), max_size=1)
)


@UNHURRIED
@given(st.dictionaries(st.sampled_from([*Order.__dataclass_fields__, "remaing_fee", "x"]), ODD_VALUES))
def test_what_is_no_order_is_named_so_and_never_crashes(odd: dict[str, Any]) -> None:
    """Anything but MalformedOrder would end the step before it could be audited."""
    try:
        read = Order.from_json({**FIELDS, **odd})
    except MalformedOrder:
        return
    assert read.to_json()


@pytest.mark.parametrize(
    ("name", "value"),
    [("price", "1e29"), ("price", "9" * 30), ("price", "1e-29"), ("price", "0." + "9" * 29), ("trades_count", 2**53)],
)
def test_every_order_that_is_read_can_be_read_again(name: str, value: str | int) -> None:
    """A row that cannot be read any more is a request that nobody can end."""
    read = Order.from_json({**FIELDS, name: value})
    assert load_order(dump_order(read)) == read


@pytest.mark.parametrize(("name", "value"), [("price", "1e30"), ("price", "1e-30"), ("trades_count", 2**53 + 1)])
def test_a_number_beyond_all_money_is_refused(name: str, value: str | int) -> None:
    """Written out it would be longer than what is read back, or no whole number in every JSON."""
    with pytest.raises(MalformedOrder):
        Order.from_json({**FIELDS, name: value})


# Which events


@UNHURRIED
@given(
    filters=st.builds(
        Filter,
        actor=st.none() | st.text(),
        request_id=st.none() | st.integers(1, 2**62),
        over_krw=st.none() | st.decimals(0, 10**30, places=8),
        own=st.sampled_from([None, True]),
        since=st.none() | st.datetimes(timezones=st.just(UTC)),
    )
)
def test_a_filter_is_kept_as_json(filters: Filter) -> None:
    """An export that was asked for in Slack is made later, perhaps by another process."""
    assert Filter.from_json(json.loads(json.dumps(filters.to_json()))) == filters
