"""The figures of a month, each counted by hand on a small one; and on any month they add up."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from operator import itemgetter
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from months import BEN, CARA, DANA, EVE, MINA, OPS, Happened, canceled, opened, sent_and_canceled, step

from bot.audit.figures import LONGEST_LIST, Pair, Review, Row
from bot.audit.month import parse_month
from bot.audit.review import LARGEST, MOST_NAMES, OTHERS, TOP, UNKNOWN, review
from bot.domain.audit import Action, Actor, Outcome
from bot.domain.cancel_request import ENDED_STATES, TRANSITIONS, State
from bot.domain.stored_event import StoredEvent

OCTOBER = parse_month("2026-10", ZoneInfo("UTC"))
APPROVED = Action.REQUEST_APPROVED
FOUND = {"kind": "unasked", "order_uuid": "00000000", "request_id": None, "recorded": "nothing", "exchange": "canceled"}


def reviewed(happened: Happened, month_name: str = "2026-10", zone: str = "UTC") -> Review:
    """The month of what happened, with what had happened before it at hand, as the database would have it."""
    month = parse_month(month_name, ZoneInfo(zone))
    stored = happened.stored()
    earlier = [event for event in stored if event.occurred_at < month.begins_at]

    def before(request_id: int) -> Sequence[StoredEvent]:
        return [event for event in earlier if event.request_id == request_id]

    return review(
        month,
        (event for event in stored if month.begins_at <= event.occurred_at < month.ends_at),
        before=before,
        unresolved_before=sorted(
            {event.request_id for event in earlier if event.action == "outcome.unresolved" and event.request_id}
        ),
    )


@pytest.fixture
def october() -> Review:
    """Six requests, one of them from September, and what people tried in vain."""
    happened = Happened()
    happened.request(1, "2026-09-30T23:50:00", opened(), step(900, APPROVED, BEN), *sent_and_canceled(900))
    happened.request(2, "2026-10-01T09:00:00", opened(value="5000000"), step(31, APPROVED, BEN), *sent_and_canceled(31))
    happened.request(
        3,
        "2026-10-01T10:00:00",
        opened(value="90000000", required=2),
        step(2, Action.APPROVAL_REFUSED, CARA, reason="own_request", kind="approve"),
        step(2.5, Action.APPROVAL_RECORDED, BEN),
        step(11, APPROVED, MINA, approvals=["U0BEN", "U0MINA"]),
        *sent_and_canceled(11),
        by=CARA,
        market="KRW-ETH",
    )
    happened.request(4, "2026-10-02T09:00:00", opened(), step(60, Action.REQUEST_DENIED, BEN), by=CARA)
    happened.request(5, "2026-10-31T10:00:00", opened(value=None), step(1800, Action.REQUEST_EXPIRED, reason="expired"))
    happened.request(6, "2026-10-31T23:59:00", opened(), market="BTC-ETH")
    happened.alone("2026-10-05T09:00:00", Action.COMMAND_REFUSED, EVE, reason="not_a_requester")
    return reviewed(happened)


# Months


def test_a_month_begins_and_ends_where_its_people_are() -> None:
    """At a desk in Seoul, October begins while it is still September in UTC."""
    seoul = parse_month("2026-10", ZoneInfo("Asia/Seoul"))
    assert seoul.begins_at == datetime(2026, 9, 30, 15, tzinfo=UTC)
    assert seoul.ends_at == datetime(2026, 10, 31, 15, tzinfo=UTC)
    assert len(seoul.days) == 31
    assert parse_month("2027-02", ZoneInfo("UTC")).days[-1] == date(2027, 2, 28)
    assert parse_month("2026-12", ZoneInfo("UTC")).ends_at == datetime(2027, 1, 1, tzinfo=UTC)


def test_a_day_may_have_25_hours() -> None:
    """Where clocks are set back in the month, its days still follow one another."""
    berlin = parse_month("2026-10", ZoneInfo("Europe/Berlin"))
    lengths = {until - start for start, until in zip(berlin.begins, berlin.begins[1:], strict=False)}
    assert lengths == {timedelta(hours=24), timedelta(hours=25)}
    assert berlin.day_of(datetime(2026, 10, 25, 22, 59, tzinfo=UTC)) == 24
    assert berlin.day_of(datetime(2026, 10, 25, 23, 0, tzinfo=UTC)) == 25


@pytest.mark.parametrize(
    "name", ["", "2026", "2026-13", "2026-00", "2026-1", "26-10", "2026-10-01", "\uff11026-10", "9999-01"]
)
def test_what_is_no_month_is_refused(name: str) -> None:
    """A report of another month than somebody meant would be believed."""
    with pytest.raises(ValueError, match="2026-10"):
        parse_month(name, ZoneInfo("UTC"))


# Counted by hand


def test_requests_add_up_over_the_edges_of_the_month(october: Review) -> None:
    """One came from September and ended here, one is still open: neither is lost nor counted twice."""
    assert (october.carried_in, october.created, october.ended) == (1, 5, 5)
    assert october.open_at_end == {"pending": 1}
    assert october.outcomes == {"canceled": 3, "denied": 1, "expired": 1}
    assert october.canceled == 3


def test_a_request_counts_on_the_day_on_which_it_ended(october: Review) -> None:
    """Canceled below, ended otherwise above; five minutes after midnight is the first of October."""
    busy = {(day.date.day, day.canceled, day.otherwise) for day in october.by_day if day.canceled or day.otherwise}
    assert busy == {(1, 3, 0), (2, 0, 1), (31, 0, 1)}
    assert len(october.by_day) == 31


def test_markets_and_people_have_what_they_did_in_the_month(october: Review) -> None:
    """Dana asked for three in October and for one in September, and two of hers were canceled."""
    assert october.by_market == (Row(name="KRW-BTC", counts=(4, 2)), Row(name="KRW-ETH", counts=(1, 1)))
    assert october.by_requester == (Row(name="U0DANA", counts=(3, 3, 2)), Row(name="U0CARA", counts=(2, 2, 1)))
    assert october.by_approver == (Row(name="U0BEN", counts=(3, 1, 3)), Row(name="U0MINA", counts=(1, 0, 1)))
    assert october.people == {
        "U0DANA": "dana",
        "U0CARA": "cara",
        "U0BEN": "ben",
        "U0MINA": "김민아",
        "U0EVE": "eve",
    }


def test_waits_are_measured_from_when_they_began(october: Review) -> None:
    """The one from September waited 15 minutes, though only the last five were in October."""
    approval, acceptance, end = october.waits
    assert (approval.count, approval.p50, approval.p90, approval.p99, approval.longest) == (3, 31, 900, 900, 900)
    assert (acceptance.count, acceptance.p50, acceptance.longest) == (3, 0.25, 0.25)
    assert (end.count, end.p50, end.longest) == (3, 0.5, 0.5)


def test_percentiles_are_by_the_nearest_rank() -> None:
    """Of a hundred waits of 1 to 100 s, ninety are no longer than 90 s."""
    happened = Happened()
    for number in range(1, 101):
        happened.request(number, f"2026-10-01T{number % 24:02}:00:00", opened(0.1), step(number, APPROVED, BEN))
    approval = reviewed(happened).waits[0]
    assert (approval.p50, approval.p90, approval.p99, approval.longest) == (50, 90, 99, 100)
    # From 0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60 and 120 s on
    assert approval.bins[:12] == (0, 0, 0, 0, 1, 3, 5, 10, 10, 30, 41, 0)
    assert sum(approval.bins) == 100


def test_what_did_not_count_is_counted_by_reason_and_person(october: Review) -> None:
    """Somebody who clicks what they may not is a question to that person."""
    assert october.refused_clicks.count == 1
    assert october.refused_clicks.by_reason == (Row(name="own_request", counts=(1,)),)
    assert october.refused_clicks.by_person == (("U0CARA", "own_request", 1),)
    assert october.refused_commands.count == 1
    assert october.refused_commands.by_person == (("U0EVE", "not_a_requester", 1),)
    (attempt,) = october.own_attempts.first
    assert (attempt.request_id, attempt.person, attempt.market) == (3, "U0CARA", "KRW-ETH")


def test_an_approval_within_two_seconds_is_listed(october: Review) -> None:
    """The card had been there for a second and a half: nobody has read it."""
    (quick,) = october.quick_approvals.first
    assert (quick.request_id, quick.approver, quick.requester, quick.after_s) == (3, "U0BEN", "U0CARA", 1.5)
    assert quick.value == Decimal(90000000)


def test_only_attempts_at_ones_own_request_are_listed_as_such() -> None:
    """Who is no approver at all is another matter."""
    happened = Happened()
    for number, reason in enumerate(("not_an_approver", "own_request", "already_decided"), start=1):
        at = f"2026-10-01T09:00:0{number}"
        happened.request(number, at, opened(), step(60, Action.APPROVAL_REFUSED, DANA, reason=reason))
    counted = reviewed(happened)
    assert counted.refused_clicks.count == 3
    assert [attempt.request_id for attempt in counted.own_attempts.first] == [2]


def test_acceptance_is_waited_for_from_the_approval_on() -> None:
    """A bot that was away for five seconds kept people waiting for six, though Upbit took one."""
    happened = Happened()
    sent, accepted = step(35, Action.CANCEL_SENT), step(36, Action.CANCEL_ACCEPTED)
    happened.request(1, "2026-10-01T09:00:00", opened(), step(30, APPROVED, BEN), sent, accepted)
    assert reviewed(happened).waits[1].longest == 6


def test_an_approval_that_did_not_count_makes_no_pair() -> None:
    """Ben approved, and was no approver any more when mina and eve did."""
    happened = Happened()
    recorded = (step(30, Action.APPROVAL_RECORDED, BEN), step(40, Action.APPROVAL_RECORDED, MINA))
    approved = step(50, APPROVED, EVE, approvals=["U0MINA", "U0EVE"], not_counted=["U0BEN"])
    happened.request(1, "2026-10-01T09:00:00", opened(required=2), *recorded, approved, canceled(60))
    counted = reviewed(happened)
    assert [pair.approver for pair in counted.pairs] == ["U0EVE", "U0MINA"]
    assert {row.name: row.counts for row in counted.by_approver} == {
        "U0BEN": (1, 0, 0),
        "U0EVE": (1, 0, 1),
        "U0MINA": (1, 0, 1),
    }


@pytest.mark.parametrize(("after_s", "listed"), [(2.9, 1), (3.0, 1), (3.1, 0)])
def test_two_seconds_are_counted_from_the_card(after_s: float, listed: int) -> None:
    """It was opened one second after it was asked for."""
    happened = Happened()
    happened.request(1, "2026-10-01T09:00:00", opened(1), step(after_s, APPROVED, BEN))
    assert reviewed(happened).quick_approvals.count == listed


@pytest.mark.parametrize(
    ("card_s", "after_s", "listed"), [(20.0, 22.0, 1), (20.0, 22.1, 0), (4.0, 3.5, 0), (4.0, 2.5, 1)]
)
def test_a_late_card_is_what_counts(card_s: float, after_s: float, listed: int) -> None:
    """Slack may have taken the card long after the request was opened; nobody reads before that."""
    happened = Happened()
    steps = sorted([step(card_s, Action.CARD_POSTED), step(after_s, APPROVED, BEN)], key=itemgetter(0))
    happened.request(1, "2026-10-01T09:00:00", opened(1), *steps)
    assert reviewed(happened).quick_approvals.count == listed


def test_who_was_asked_and_nobody_decided(october: Review) -> None:
    """With how many approvals it had got until then."""
    (expired,) = october.expired.first
    assert (expired.request_id, expired.requester, expired.approvals, expired.approvals_required) == (5, "U0DANA", 0, 1)


def test_pairs_are_counted_for_each_approval_that_counted(october: Review) -> None:
    """With the share of the requester's approved requests; few requests prove nothing."""
    assert october.pairs == (
        Pair(requester="U0DANA", approver="U0BEN", count=2, of=2),
        Pair(requester="U0CARA", approver="U0BEN", count=1, of=1),
        Pair(requester="U0CARA", approver="U0MINA", count=1, of=1),
    )
    assert october.notable_pairs == 0


def test_a_pair_is_notable_from_five_requests_and_four_fifths_on() -> None:
    """Ben approved 8 of dana's 10 and 4 of cara's 4; and mina approved her own."""
    happened = Happened()
    for number in range(1, 16):
        by = DANA if number <= 10 else CARA if number <= 14 else MINA
        approver = BEN if number <= 8 or by is CARA else MINA
        happened.request(number, "2026-10-01T09:00:00", opened(), step(60 + number, APPROVED, approver), by=by)
    counted = reviewed(happened)
    assert [(pair.requester, pair.approver) for pair in counted.pairs if pair.is_notable] == [
        ("U0DANA", "U0BEN"),
        ("U0MINA", "U0MINA"),
    ]
    assert (counted.notable_pairs, counted.own_approvals) == (2, 1)
    assert (counted.pairs[0].count, counted.pairs[0].of, counted.pairs[0].share) == (8, 10, 0.8)


def test_the_largest_requests_are_ranked_by_currency(october: Review) -> None:
    """A million won and a million bitcoin are not the same."""
    assert [(large.request_id, large.value, large.state) for large in october.largest["KRW"]] == [
        (3, Decimal(90000000), "canceled"),
        (2, Decimal(5000000), "canceled"),
        (4, Decimal(1000000), "denied"),
    ]
    assert [(large.request_id, large.state) for large in october.largest["BTC"]] == [(6, "pending")]
    assert october.without_value == 1


def test_only_the_ten_largest_are_kept() -> None:
    """Whatever order they came in; of two of the same value the first."""
    happened = Happened()
    for number, value in enumerate([3, 9, 1, 12, 7, 5, 11, 2, 10, 8, 6, 4, 12], start=1):
        happened.request(number, f"2026-10-{number:02}T09:00:00", opened(value=str(value)))
    ranked = reviewed(happened).largest["KRW"]
    assert len(ranked) == LARGEST
    assert [int(large.value) for large in ranked] == [12, 12, 11, 10, 9, 8, 7, 6, 5, 4]
    assert [large.request_id for large in ranked[:2]] == [4, 13]


# What did not go as hoped


def troubled() -> Happened:
    happened = Happened()
    lost = (step(30, APPROVED, BEN), step(31, Action.CANCEL_SENT), step(36, Action.CANCEL_UNANSWERED, error="timeout"))
    unresolved = (opened(), *lost, step(62, Action.OUTCOME_UNRESOLVED, reason="nothing_certain"))
    happened.request(1, "2026-08-10T09:00:00", *unresolved)
    happened.request(2, "2026-09-10T09:00:00", *unresolved, step(90, Action.ORDER_CANCELED, by="unproven"))
    settled = step(86_400 * 30, Action.OUTCOME_SETTLED, OPS, verdict="canceled", reason="seen at Upbit")
    happened.request(3, "2026-09-10T10:00:00", *unresolved, settled)
    happened.request(4, "2026-10-01T09:00:00", *unresolved, step(800, Action.CANCEL_FAILED, reason="still_open"))
    rejected = step(32, Action.CANCEL_REJECTED, error="validation_error")
    happened.request(
        5, "2026-10-02T09:00:00", opened(), step(30, APPROVED, BEN), step(31, Action.CANCEL_SENT), rejected
    )
    lapsed = step(330, Action.REQUEST_LAPSED, reason="too_late_to_send")
    unsent = step(31, Action.CANCEL_UNSENT, error="connect_timeout")
    happened.request(6, "2026-10-03T09:00:00", opened(), step(30, APPROVED, BEN), unsent, lapsed)
    return happened


def test_troubles_are_told_with_their_causes_and_their_ends() -> None:
    """What is still unresolved comes first, also where it was left so in August."""
    counted = reviewed(troubled())
    told = [(each.request_id, [(step.what, step.why) for step in each.steps]) for each in counted.troubles.first]
    nothing = ("unresolved", "nothing_certain (last answer: timeout)")
    assert told == [
        (1, [nothing]),
        (4, [nothing, ("failed", "still_open (last answer: timeout)")]),
        (5, [("rejected", "validation_error")]),
        (6, [("lapsed", "too_late_to_send (last answer: connect_timeout)")]),
        (3, [nothing, ("settled", "canceled, says cli:ops: seen at Upbit")]),
    ]
    assert [each.is_over for each in counted.troubles.first] == [False, True, True, True, True]
    assert counted.troubles.first[0].sent_at == datetime(2026, 8, 10, 9, 0, 31, tzinfo=UTC)
    assert (counted.carried_in, counted.created, counted.ended, counted.open_at_end) == (2, 3, 4, {"unresolved": 1})
    assert counted.outcomes == {"failed": 1, "lapsed": 1, "rejected": 1, "settled: canceled": 1}
    assert counted.unresolved_at_end == 1


def test_what_is_heard_late_of_a_request_that_is_over_opens_it_not_again() -> None:
    """An answer may come after the verdict, and a click after that."""
    happened = Happened()
    late = (
        step(60, Action.CANCEL_DOUBTED, error="x"),
        step(70, Action.APPROVAL_REFUSED, EVE, reason="already_decided"),
    )
    happened.request(1, "2026-10-01T09:00:00", opened(), step(30, APPROVED, BEN), *sent_and_canceled(30), *late)
    counted = reviewed(happened)
    assert (counted.created, counted.ended, counted.carried_in, counted.open_in_all) == (1, 1, 0, 0)
    assert counted.refused_clicks.count == 1


def test_an_empty_month_still_knows_what_is_unresolved() -> None:
    """Nobody did anything in November; the request of August is as open as before."""
    counted = reviewed(troubled(), "2026-11")
    assert (counted.events, counted.created, counted.ended) == (0, 0, 0)
    assert (counted.carried_in, counted.open_at_end) == (1, {"unresolved": 1})
    assert counted.troubles.count == 1


def test_a_request_whose_beginning_is_gone_is_counted_all_the_same() -> None:
    """It may have been pruned, with an archive behind it; nobody is blamed for it."""
    happened = Happened()
    happened.request(1, "2026-09-01T09:00:00", opened(), step(86_400 * 31, Action.REQUEST_EXPIRED, reason="expired"))
    counted = review(OCTOBER, happened.stored()[2:], before=lambda _: ())
    assert (counted.carried_in, counted.outcomes) == (1, {"expired": 1})
    assert counted.by_requester == (Row(name=UNKNOWN, counts=(0, 1, 0)),)
    assert counted.expired.first[0].asked_at is None


# What was done to the bot and to the audit


@pytest.mark.parametrize(
    ("details", "changes"),
    [
        ({"changed": []}, []),
        ({"changed": ["APPROVERS"]}, [("APPROVERS", "", "")]),
        ({"changed": {"APPROVERS": {"before": "U1", "after": "U1,U2"}}}, [("APPROVERS", "U1", "U1,U2")]),
        ({"changed": [{"name": "APPROVERS", "from": ["U1"], "to": []}]}, [("APPROVERS", '["U1"]', "[]")]),
        ({"changed": ["NOTIFY"], "before": {"notify": "U1"}, "settings": {"notify": "U2"}}, [("NOTIFY", "U1", "U2")]),
        ({"changed": "all of it"}, [("all of it", "", "")]),
        ({"changed": [7, None]}, [("7", "", ""), ("", "", "")]),
        ({"changed": {"APPROVERS": None}}, [("APPROVERS", "", "")]),
        ({}, []),
    ],
)  # fmt: skip
def test_changed_settings_are_read_however_they_are_written(
    details: dict[str, Any], changes: list[tuple[str, str, str]]
) -> None:
    """A reviewer sees who could suddenly approve; other versions write it in other ways."""
    happened = Happened()
    happened.alone("2026-10-05T09:00:00", Action.BOT_STARTED, version="1.2.3", **details)
    counted = reviewed(happened)
    assert counted.starts == 1
    assert [(each.name, each.before, each.after) for each in counted.changes.first] == changes
    assert all(each.version == "1.2.3" for each in counted.changes.first)


def test_what_was_made_of_the_audit_is_listed() -> None:
    """Exports leave the house; a reconciliation that found something is marked; daily checkpoints are only counted."""
    happened = Happened()
    happened.alone("2026-10-01T00:00:00", Action.AUDIT_CHECKPOINTED)
    happened.alone("2026-10-02T00:00:00", Action.AUDIT_CHECKPOINTED)
    happened.alone(
        "2026-10-03T00:00:00", Action.AUDIT_VERIFIED, OPS, outcome=Outcome.FAILED, fault="event 3 is missing"
    )
    happened.alone(
        "2026-10-04T00:00:00", "audit.exported", OPS, rows=12, filter={"market": "KRW-BTC"}, files=["a", "b"]
    )
    happened.alone(
        "2026-10-05T00:00:00", Action.AUDIT_RECONCILED, OPS, outcome=Outcome.FAILED, unasked=1, findings=[FOUND]
    )
    happened.alone("2026-10-05T00:00:00", Action.EVIDENCE_PACKED, OPS, request=7)
    happened.alone("2026-10-06T00:00:00", Action.REPORT_MADE, OPS, month="2026-09")
    counted = reviewed(happened)
    assert counted.checkpoints == 2
    assert [(each.action, each.facts, each.is_notable) for each in counted.deeds.first] == [
        ("audit.verified", "fault=event 3 is missing", True),
        ("audit.exported", "files: 2, rows=12", False),
        ("audit.reconciled", "findings: 1, unasked=1", True),
        ("evidence.packed", "request=7", False),
        ("report.made", "month=2026-09", False),
    ]
    assert counted.failed_deeds == 2


@pytest.mark.parametrize(
    ("details", "differences"),
    [
        ({"canceled_on_exchange": 412, "findings": []}, []),
        ({"findings": [FOUND, "no object"]}, [("unasked", "exchange=canceled, order_uuid=00000000, recorded=nothing")]),
        ({"findings": "not a list"}, []),
    ],
)
def test_differences_from_the_exchange_are_listed(details: dict[str, Any], differences: list[tuple[str, str]]) -> None:
    """A cancel that nobody asked for here is what a reconciliation is made for."""
    happened = Happened()
    happened.alone("2026-10-05T00:00:00", Action.AUDIT_RECONCILED, OPS, **details)
    assert [(each.kind, each.facts) for each in reviewed(happened).differences.first] == differences


# Limits


def test_rankings_and_lists_end_somewhere_and_say_so() -> None:
    """A page of a thousand rows is not read; what is left out is counted."""
    happened = Happened()
    for number in range(1, 131):
        person = Actor(id=f"U{number:03}")
        at = f"2026-10-01T09:{number % 60:02}:00"
        happened.request(number, at, opened(), step(30, Action.REQUEST_EXPIRED, reason="expired"), by=person)
    counted = reviewed(happened)
    assert (len(counted.expired.first), counted.expired.count, counted.expired.left_out) == (LONGEST_LIST, 130, 30)
    assert len(counted.by_requester) == TOP + 1
    assert counted.by_requester[-1] == Row(name=OTHERS, counts=(110, 110, 0))


def test_names_are_told_apart_up_to_a_limit() -> None:
    """Whoever can make up names must not fill the memory; what is left over is counted all the same."""
    happened = Happened()
    happened.alone("2026-10-01T09:00:00", Action.COMMAND_REFUSED, EVE, reason="usage")
    (event,) = happened.stored()
    many = MOST_NAMES + 50
    events = (event._replace(actor=f"U{n}", actor_name="x", details=f'{{"reason": "r{n}"}}') for n in range(many))
    counted = review(OCTOBER, events, before=lambda _: ())
    assert counted.refused_commands.count == many
    assert counted.refused_commands.by_reason[-1] == Row(name=OTHERS, counts=(many - 100,))
    assert sum(count for *_, count in counted.refused_commands.by_person) == many
    assert len(counted.people) == MOST_NAMES


@pytest.mark.parametrize(
    ("details", "is_readable"),
    [
        ("", False),
        ("[]", False),
        ("{", False),
        ("null", False),
        ("[" * 100_000, False),
        ('{"reason": {"a": [1, null]}, "changed": {"a": {"b": []}}}', True),
        ('{"approvals": 7, "remaining_value": "NaN", "approvals_required": "two"}', True),
        ('{"remaining_value": "1e999999", "order": [], "changed": 7}', True),
    ],
)
def test_details_that_were_tampered_with_do_not_stop_the_count(details: str, *, is_readable: bool) -> None:
    """The page must be there to say that the chain does not verify."""
    happened = Happened()
    happened.request(1, "2026-10-01T09:00:00", opened(), step(30, APPROVED, BEN), *sent_and_canceled(30))
    happened.request(2, "2026-10-01T09:00:00", opened(), step(30, Action.REQUEST_REFUSED, reason="x"))
    happened.alone("2026-10-02T09:00:00", Action.BOT_STARTED)
    happened.alone("2026-10-02T09:00:00", Action.APPROVAL_REFUSED, EVE)
    happened.alone("2026-10-02T09:00:00", "audit.reconciled", EVE)
    stored = [event._replace(details=details) for event in happened.stored()]
    counted = review(OCTOBER, stored, before=lambda _: ())
    assert counted.outcomes == {"canceled": 1, "refused": 1}
    assert (counted.unreadable == 0) is is_readable


@pytest.mark.parametrize("depth", range(50, 1000, 50))
def test_details_may_be_nested_however_deeply(depth: int) -> None:
    """What can be read need not be what can be written."""
    happened = Happened()
    happened.alone("2026-10-02T09:00:00", Action.BOT_STARTED)
    happened.alone("2026-10-02T09:00:00", "audit.reconciled")
    details = '{"changed":' * depth + "1" + "}" * depth
    counted = review(OCTOBER, [event._replace(details=details) for event in happened.stored()], before=lambda _: ())
    assert counted.events == 2


# On any month


MOVES = [action for action in TRANSITIONS if action is not Action.REQUEST_CREATED]


@st.composite
def histories(draw: st.DrawFn) -> Happened:
    """Requests that walk through the states as they may, from August to December."""
    happened = Happened()
    for number in range(1, draw(st.integers(0, 12)) + 1):
        state, after_s, steps = State.REQUESTED, 0.0, []
        for _ in range(draw(st.integers(0, 8))):
            possible = [action for action in MOVES if state in TRANSITIONS[action][0]]
            if not possible:
                break
            action = draw(st.sampled_from(possible))
            after_s += draw(st.floats(0, 86_400 * 20))
            steps.append(step(after_s, action, draw(st.sampled_from([BEN, MINA, DANA])), verdict="open"))
            state = TRANSITIONS[action][1]
        at = datetime(2026, 8, 1, tzinfo=UTC) + timedelta(days=draw(st.integers(0, 100)))
        happened.request(
            number,
            at,
            *steps,
            by=draw(st.sampled_from([DANA, CARA])),
            market=draw(st.sampled_from(["KRW-BTC", "BTC-ETH", None])),
        )
    return happened


@given(histories(), st.sampled_from(["UTC", "Asia/Seoul", "America/New_York"]))
def test_the_totals_add_up(happened: Happened, zone: str) -> None:
    """Every request that was there is over or open at the end; every table is of the same requests."""
    stored = happened.stored()
    for name in ("2026-09", "2026-10", "2026-11"):
        counted = reviewed(happened, name, zone)
        assert counted.carried_in + counted.created == counted.ended + counted.open_in_all
        assert sum(counted.outcomes.values()) == counted.ended
        assert sum(day.canceled for day in counted.by_day) == counted.canceled
        assert sum(day.canceled + day.otherwise for day in counted.by_day) == counted.ended
        assert sum(row.counts[0] for row in counted.by_market) == counted.ended
        assert sum(row.counts[1] for row in counted.by_market) == counted.canceled
        assert sum(row.counts[0] for row in counted.by_requester) == counted.created
        assert sum(row.counts[1] for row in counted.by_requester) == counted.ended
        assert sum(row.counts[2] for row in counted.by_requester) == counted.canceled
        in_month = [e for e in stored if counted.month.begins_at <= e.occurred_at < counted.month.ends_at]
        assert counted.events == len(in_month)
        assert counted.ended == sum(TRANSITIONS[Action(e.action)][1] in ENDED_STATES for e in in_month)
        assert all(sum(wait.bins) == wait.count for wait in counted.waits)


def test_a_month_is_the_same_read_in_one_or_seen_from_the_next() -> None:
    """What is open at the end of a month, as far as it is known, is carried into the next one."""
    happened = troubled()
    assert reviewed(happened, "2026-09").open_in_all == reviewed(happened, "2026-10").carried_in == 2
