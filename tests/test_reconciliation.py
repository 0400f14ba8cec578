"""The comparison by itself: one order as the exchange shows it, against all that is recorded of it."""

from decimal import Decimal
from typing import Any

import pytest
from builders import ORDER_UUID, order
from hypothesis import given
from hypothesis import strategies as st

from bot.domain.cancel_request import ENDED_STATES, State, Verdict
from bot.domain.order import Order
from bot.domain.reconciliation import WRONG, Finding, Kind, Recorded, ended_itself, judge

CANCELED = order(state="cancel", executed_volume=Decimal("0.40"), remaining_volume=Decimal("0.60"))
DONE = order(state="done", executed_volume=Decimal(1), remaining_volume=Decimal(0))
OPEN = order()
NOT_SENT = [State.DENIED, State.WITHDRAWN, State.EXPIRED, State.LAPSED, State.REFUSED]


def recorded(state: State, **changes: Any) -> Recorded:
    fields: dict[str, Any] = {"request_id": 1, "order_uuid": ORDER_UUID, "sends": 0, "order": OPEN}
    if state is State.CANCELED:
        fields |= {"sends": 1, "canceled_by": "this_request", "order": CANCELED}
    elif state is State.FILLED:
        fields |= {"sends": 1, "order": DONE}
    elif state in {State.REJECTED, State.FAILED, State.SETTLED, State.SENDING, State.ACCEPTED, State.UNRESOLVED}:
        fields["sends"] = 1
    return Recorded(state=state, **{**fields, **changes})


def found(shown: Order | None, *requests: Recorded) -> list[tuple[Kind, int | None]]:
    return [(each.kind, each.request_id) for each in judge(ORDER_UUID, shown, requests)]


@pytest.mark.parametrize(
    ("shown", "state"), [(CANCELED, State.CANCELED), (DONE, State.FILLED), (OPEN, State.DENIED), (OPEN, State.FAILED)]
)
def test_what_ended_as_recorded_is_no_finding(shown: Order, state: State) -> None:
    """A report that cries wolf is not read."""
    assert found(shown, recorded(state)) == []


def test_a_cancel_that_nobody_asked_for_here_is_found() -> None:
    """Somebody with the key, or in the app, canceled past the approvals."""
    assert judge(ORDER_UUID, CANCELED, ()) == (
        Finding(
            kind=Kind.UNASKED,
            order_uuid=ORDER_UUID,
            exchange="cancel; executed 0.40, remaining 0.60; KRW-BTC ask limit, of 2026-11-23T17:30:00+09:00",
        ),
    )


@pytest.mark.parametrize("state", [*NOT_SENT, State.REQUESTED, State.PENDING, State.APPROVED])
def test_a_cancel_past_a_request_of_which_nothing_was_sent_is_not_ours(state: State) -> None:
    """Denied here and canceled there all the same: what an auditor looks for first."""
    assert found(CANCELED, recorded(state, request_id=42)) == [(Kind.UNASKED, 42)]


def test_a_superseded_request_says_itself_that_somebody_else_canceled() -> None:
    """Its record is right, and the cancel is nobody's here."""
    assert found(CANCELED, recorded(State.SUPERSEDED, order=CANCELED)) == [(Kind.UNASKED, 1)]
    assert found(DONE, recorded(State.SUPERSEDED, order=DONE)) == []
    assert found(CANCELED, recorded(State.SUPERSEDED, order=DONE)) == [(Kind.DIFFERS, 1)]


@pytest.mark.parametrize("state", [State.SENDING, State.ACCEPTED, State.UNRESOLVED])
def test_a_cancel_that_is_under_way_is_not_somebody_elses(state: State) -> None:
    """It was sent before it was compared; what came of it is still to be recorded."""
    assert found(CANCELED, recorded(state)) == []


@pytest.mark.parametrize("state", [State.REJECTED, State.FAILED])
def test_recorded_as_not_canceled_and_canceled_differs(state: State) -> None:
    """The late effect of ours, or somebody else: nothing tells which, so neither is claimed."""
    assert found(CANCELED, recorded(state)) == [(Kind.DIFFERS, 1)]


def test_a_later_request_that_canceled_explains_the_end() -> None:
    """Asked again after a failure, as the bot itself says to do."""
    assert found(CANCELED, recorded(State.FAILED), recorded(State.CANCELED, request_id=2)) == []
    assert found(CANCELED, recorded(State.DENIED), recorded(State.CANCELED, request_id=2)) == []


@pytest.mark.parametrize(
    ("shown", "verdict", "wrong"),
    [
        (CANCELED, Verdict.CANCELED, False),
        (DONE, Verdict.FILLED, False),
        (OPEN, Verdict.OPEN, False),
        (DONE, Verdict.CANCELED, True),
        (OPEN, Verdict.CANCELED, True),
        (CANCELED, Verdict.FILLED, True),
        (CANCELED, Verdict.OPEN, True),
    ],
)
def test_what_a_person_said_is_compared_as_well(shown: Order, verdict: Verdict, *, wrong: bool) -> None:
    """They looked by hand, and hands slip; their word tells no amounts."""
    assert bool(found(shown, recorded(State.SETTLED, verdict=verdict))) is wrong


@pytest.mark.parametrize("shown", [DONE, OPEN, order(state="watch"), order(state="a new word")])
def test_recorded_as_canceled_and_not_canceled_differs(shown: Order) -> None:
    """The worst there is: people believed that the order was gone."""
    (finding,) = judge(ORDER_UUID, shown, [recorded(State.CANCELED)])
    assert finding.kind is Kind.DIFFERS
    assert finding.recorded == "canceled by this_request; executed 0.40, remaining 0.60"
    assert finding.exchange.startswith(shown.state)


@pytest.mark.parametrize(
    ("amounts", "differs"),
    [
        ({"executed_volume": Decimal("0.4")}, False),
        ({"executed_volume": None, "remaining_volume": None}, False),
        ({"executed_volume": Decimal("0.41")}, True),
        ({"remaining_volume": Decimal("0.59")}, True),
    ],
)
def test_other_amounts_differ_and_absent_ones_do_not(amounts: dict[str, Any], *, differs: bool) -> None:
    """0.4 is 0.40; and a list that leaves a field out has not contradicted it."""
    shown = order(state="cancel", **{"executed_volume": Decimal("0.4"), "remaining_volume": Decimal("0.6"), **amounts})
    assert bool(found(shown, recorded(State.CANCELED))) is differs


def test_an_order_that_is_not_shown_is_a_finding_of_its_own() -> None:
    """Nothing is concluded from it; once for an order, with the latest request."""
    assert found(None, recorded(State.DENIED), recorded(State.CANCELED, request_id=2)) == [(Kind.NOT_FOUND, 2)]
    assert found(None, recorded(State.REFUSED, order=None)) == []
    assert found(None, recorded(State.SENDING)) == []


@pytest.mark.parametrize(
    ("fields", "proof"),
    [
        ({"ord_type": "price", "volume": None}, "ord_type price"),
        ({"ord_type": "market"}, "ord_type market"),
        ({"ord_type": "best", "time_in_force": "ioc"}, "ord_type best"),
        ({"time_in_force": "ioc"}, "time_in_force ioc"),
        ({"time_in_force": "fok"}, "time_in_force fok"),
        ({"prevented_volume": Decimal("0.6")}, "self-match prevention, prevented_volume 0.6"),
        ({"prevented_volume": Decimal("0.5")}, None),
        ({"prevented_volume": Decimal(0)}, None),
        ({"smp_type": "cancel_maker"}, None),
        ({"time_in_force": "post_only"}, None),
        ({}, None),
    ],
)
def test_the_exchanges_own_cancels_are_told_apart_only_where_that_is_proven(
    fields: dict[str, Any], proof: str | None
) -> None:
    """What merely could have been the exchange is somebody's until shown otherwise."""
    shown = order(**{"state": "cancel", "executed_volume": Decimal("0.4"), **fields})
    assert ended_itself(shown) == proof
    assert found(shown) == [(Kind.UNASKED if proof is None else Kind.BY_THE_EXCHANGE, None)]
    assert found(shown, recorded(State.DENIED))[0][0] is (Kind.UNASKED if proof is None else Kind.BY_THE_EXCHANGE)


amounts = st.sampled_from([None, Decimal(0), Decimal("0.4"), Decimal("0.6"), Decimal(1)])
orders = st.builds(
    order,
    state=st.sampled_from(["wait", "watch", "done", "cancel", "other"]),
    executed_volume=amounts,
    remaining_volume=amounts,
    prevented_volume=amounts,
    time_in_force=st.sampled_from([None, "ioc", "fok", "post_only"]),
    ord_type=st.sampled_from(["limit", "price", "market", "best"]),
)
requests = st.lists(
    st.builds(
        recorded,
        st.sampled_from(State),
        request_id=st.integers(1, 99),
        sends=st.integers(0, 3),
        order=st.none() | orders,
        verdict=st.none() | st.sampled_from(Verdict),
    ),
    max_size=4,
)


@given(orders, requests)
def test_every_canceled_order_is_accounted_for_or_found(shown: Order, of_order: list[Recorded]) -> None:
    """Whatever was recorded: silence about a canceled order means that a request of ours sent a cancel, or ended so."""
    findings = judge(ORDER_UUID, shown, of_order)
    if shown.is_canceled and not findings:
        assert any(
            each.state is State.CANCELED
            or (each.state is State.SETTLED and each.verdict is Verdict.CANCELED)
            or (each.state not in ENDED_STATES and each.sends)
            for each in of_order
        )
    if not shown.is_canceled:
        assert {finding.kind for finding in findings} <= {Kind.DIFFERS}


@given(st.none() | orders, requests)
def test_a_record_that_is_contradicted_is_always_found(shown: Order | None, of_order: list[Recorded]) -> None:
    """No other request beside it, and no field of the order, may cover it up."""
    findings = judge(ORDER_UUID, shown, of_order)
    for each in of_order:
        says_canceled = each.state is State.CANCELED
        if says_canceled and (shown is None or not shown.is_canceled):
            assert {finding.kind for finding in findings} & WRONG
    assert all(finding.order_uuid == ORDER_UUID for finding in findings)
    assert all(finding.request_id in {None, *(each.request_id for each in of_order)} for finding in findings)
