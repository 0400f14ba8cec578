"""The Home tab: who sees what on it, in which words, whose is drawn anew and when, on both databases."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any, Final

import pytest
from builders import (
    APPROVER,
    POLICY,
    REQUESTER,
    SECOND,
    STRANGER,
    HandClock,
    at_once,
    create,
    create_pending,
    present,
    rows,
    walk,
)
from databases import migrated
from hypothesis import given, settings
from hypothesis import strategies as st
from slack_sdk.models.views import View as SlackView
from test_messages import (
    CASES,
    PENDING,
    SELL,
    SNAPSHOTS,
    assert_contained,
    check_snapshot,
    length,
    limited_texts,
    minutes,
    requests,
    texts_of,
)

from bot.database.engine import Database
from bot.database.homes import SqlHomes
from bot.database.store import LEASE, SqlStore
from bot.domain.answer import ExchangeHealth
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Action, Actor
from bot.domain.cancel_request import CancelRequest, DecisionKind, State
from bot.domain.errors import CannotPost, NothingDone, TryLater
from bot.domain.membership import UNREAD, Group, Membership
from bot.domain.order import Order
from bot.home import (
    KEPT_UP_FOR,
    MAX_ASKED,
    MAX_OUTCOMES,
    MAX_WAITING,
    READ_AT_MOST,
    REDRAW_GAP_S,
    SETTLE_S,
    TAKE_IN,
    Concerning,
    Health,
    Homes,
    HomeView,
    Listed,
    home_view,
    people_concerned,
)
from bot.playground.slack_blocks import view_faults
from bot.slack import messages, views

WELL: Final = Health(is_worker_alive=True, exchange=ExchangeHealth(answered_ago_s=12.0))
URL: Final = "https://desk.slack.com/"
WITH_CARD: Final[dict[str, Any]] = {"card_channel_id": "C0DESK", "card_ts": "1790000000.000100"}


def concerning(**found: tuple[CancelRequest, ...]) -> Concerning:
    nothing: dict[str, tuple[CancelRequest, ...]] = {"pending": (), "asked": (), "ended": ()}
    return Concerning(at=minutes(10), seq=7, **{**nothing, **found})


def seen_by(person: Actor, policy: ApprovalPolicy = POLICY, **found: tuple[CancelRequest, ...]) -> HomeView:
    return home_view(person, concerning(**found), policy=policy, health=WELL)


# --- What one person sees -------------------------------------------------------------------------------------------


def test_who_may_approve_sees_what_waits_for_them() -> None:
    """This is what the Home is for: nothing waits because nobody saw its card."""
    assert seen_by(APPROVER, pending=(PENDING,)).waiting == Listed(shown=(PENDING,))


@pytest.mark.parametrize(
    ("person", "changes", "policy"),
    [
        (REQUESTER, {}, POLICY),
        (STRANGER, {}, POLICY),
        (APPROVER, {}, replace(POLICY, approvers=frozenset({SECOND.id}))),
        (APPROVER, {"approvers": (SECOND.id,)}, POLICY),
        (replace(APPROVER, team_id="T0OTHER"), {}, POLICY),
        (APPROVER, {"team_id": "T0OTHER"}, POLICY),
        (APPROVER, {"approvals_required": 2, "decisions": CASES["approved"].decisions}, POLICY),
        (APPROVER, {"expires_at": minutes(10)}, POLICY),
        (APPROVER, {"state": State.REQUESTED}, POLICY),
    ],
    ids=["asked", "no approver", "not today", "not then", "guest", "elsewhere", "has approved", "expired", "not yet"],
)
def test_nobody_is_told_to_approve_what_they_may_not(
    person: Actor, changes: dict[str, Any], policy: ApprovalPolicy
) -> None:
    """The list asks the one policy that a click would meet: a row here whose click is refused would be a lie."""
    shown = seen_by(person, policy, pending=(replace(PENDING, **changes),))
    assert shown.waiting == Listed()


@pytest.mark.parametrize(
    ("groups", "waiting"),
    [
        ({"S0DESK": Group(members=frozenset({APPROVER.id}), read_at=minutes(10))}, (PENDING,)),
        ({"S0DESK": Group(members=frozenset({SECOND.id}), read_at=minutes(10))}, ()),
        ({"S0DESK": Group(error="ratelimited")}, ()),
    ],
    ids=["a member", "no member any more", "not known"],
)
def test_members_of_a_group_see_what_waits_while_they_are_in_it(
    groups: dict[str, Group], waiting: tuple[CancelRequest, ...]
) -> None:
    """The page asks with the membership of this minute, as the click would."""
    policy = replace(POLICY, approvers=frozenset({"S0DESK"}))
    seen = home_view(
        APPROVER, concerning(pending=(PENDING,)), policy=policy, membership=Membership(groups=groups), health=WELL
    )
    assert seen.waiting.shown == waiting


def test_a_request_of_a_private_place_is_shown_to_those_who_may_act_on_it_only() -> None:
    """What was asked behind a door must not be read on a page in front of it, whatever a query brings."""
    private = replace(PENDING, in_private=True)
    ended = replace(CASES["denied"], in_private=True)
    assert seen_by(APPROVER, pending=(private,), ended=(ended,)).waiting.shown == (private,)
    assert seen_by(REQUESTER, asked=(private,), ended=(ended,)).outcomes == (ended,)
    stranger = seen_by(STRANGER, pending=(private,), asked=(private,), ended=(ended,))
    assert (stranger.waiting, stranger.asked, stranger.outcomes) == (Listed(), Listed(), ())


def test_long_lists_are_cut_and_say_so() -> None:
    """Three hundred open requests must not hide how many there are, nor break Slack's limit."""
    many = tuple(replace(PENDING, id=number) for number in range(1, 301))
    shown = seen_by(APPROVER, pending=many, ended=tuple(replace(CASES["denied"], id=each.id) for each in many))
    assert (len(shown.waiting.shown), shown.waiting.more, shown.waiting.is_cut) == (MAX_WAITING, 280, False)
    assert len(shown.outcomes) == MAX_OUTCOMES
    endless = tuple(replace(PENDING, id=number) for number in range(1, READ_AT_MOST + 1))
    shown = seen_by(REQUESTER, asked=endless)
    assert shown.asked.is_cut
    words = json.dumps(views.home(shown, workspace_url=URL))
    assert f"and at least {READ_AT_MOST - MAX_ASKED} more" in words


@pytest.mark.parametrize("name", CASES)
def test_a_change_concerns_those_who_can_see_it(name: str) -> None:
    """Who asked, who may approve, who decided; and nobody else's Home is drawn for it."""
    decided = {each.actor.id for each in CASES[name].decisions}
    assert people_concerned(CASES[name]) == {REQUESTER.id, *CASES[name].approvers, *decided}


# --- In which words -------------------------------------------------------------------------------------------------


def busy() -> HomeView:
    waiting = (
        replace(PENDING, id=40, **WITH_CARD),
        replace(CASES["pending_one_of_two"], id=41, requester=SECOND, order_now=CASES["canceled_partly"].order_now),
        replace(CASES["pending_buy_by_total"], id=43, reason="<!here> *now* " + "x" * 3000, **WITH_CARD),
    )
    asked = (replace(CASES["sending"], id=39, **WITH_CARD), replace(CASES["requested"], id=44))
    outcomes = tuple(
        replace(CASES[name], id=number, ended_at=minutes(9 - number), **WITH_CARD)
        for number, name in enumerate(
            ("canceled_partly", "denied", "refused_already_done", "filled", "settled"), start=1
        )
    )
    return HomeView(
        person=APPROVER,
        drawn_at=minutes(10),
        waiting=Listed(shown=waiting, more=12),
        asked=Listed(shown=asked),
        outcomes=outcomes,
        health=WELL,
    )


EMPTY: Final = HomeView(
    person=STRANGER,
    drawn_at=minutes(10),
    waiting=Listed(),
    asked=Listed(),
    outcomes=(),
    health=Health(is_worker_alive=True, exchange=ExchangeHealth()),
)
TROUBLES: Final = {
    "away": ExchangeHealth(answered_ago_s=300.0, failed_ago_s=2.0, cause="connect_timeout"),
    "never": ExchangeHealth(failed_ago_s=2.0, cause="no_authorization_ip"),
    "banned": ExchangeHealth(answered_ago_s=300.0, held_for_s=120.0, is_banned=True),
    "limited": ExchangeHealth(answered_ago_s=0.1, held_for_s=60.0),
    "limited_for_a_moment": ExchangeHealth(answered_ago_s=0.1, held_for_s=0.4),
}
HOMES: Final = {
    "home_busy": busy(),
    "home_empty": EMPTY,
    **{
        f"home_{name}": replace(EMPTY, health=Health(is_worker_alive=name != "away", exchange=exchange))
        for name, exchange in TROUBLES.items()
    },
}


def in_words(view: views.View) -> str:
    lines = []
    for block in view["blocks"]:
        match block:
            case {"type": "header", "text": {"text": text}}:
                lines.append(f"# {text}")
            case {"type": "section", "text": {"text": text}}:
                lines.append(text)
            case {"type": "context", "elements": [{"text": text}]}:
                lines.append(f"({text})")
            case {"type": "divider"}:
                lines.append("-----")
            case _:
                raise AssertionError(f"no words for {block}")
    return "\n\n".join(lines) + "\n"


@pytest.mark.parametrize("name", HOMES)
def test_each_home_reads_as_agreed(name: str) -> None:
    """Somebody who sees it for the first time must know what waits for them, and where to go."""
    check_snapshot(name, in_words(views.home(HOMES[name], workspace_url=URL)))


def test_no_snapshot_of_a_home_is_left_over() -> None:
    """A file that nothing writes any more would be read as a promise."""
    assert {path.stem for path in SNAPSHOTS.glob("home_*")} == set(HOMES)


def assert_takes(view: views.View) -> None:
    """As Slack would check it: its own models, the documented limits, and nothing foreign that is active."""
    assert view_faults(view) == []
    SlackView(**view).validate_json()
    blocks = [block for block in view["blocks"] if block["type"] != "divider"]
    assert 1 <= len(view["blocks"]) <= 100
    for element, limit in limited_texts(blocks):
        assert 1 <= length(element["text"]) <= limit
    for kind, text in texts_of(view["blocks"]):
        if kind == "mrkdwn":
            assert_contained(LINK.sub("", text))
    assert len(json.dumps(view)) <= 250_000


LINK: Final = re.compile(r"<https://desk\.slack\.com/archives/C0DESK/p1790000000000100\|Open the card>")


@pytest.mark.parametrize("name", HOMES)
def test_each_example_is_a_home_that_slack_takes(name: str) -> None:
    """A Home that Slack refuses stays as it was, and nobody knows."""
    assert_takes(views.home(HOMES[name], workspace_url=URL))
    assert_takes(views.home(HOMES[name], workspace_url=None))


@settings(max_examples=50, deadline=None)
@given(request=requests, cause=st.text(max_size=300), is_banned=st.booleans())
def test_the_longest_home_is_within_slacks_limits(request: CancelRequest, cause: str, is_banned: bool) -> None:  # noqa: FBT001 - hypothesis passes it by name
    """Every row at its longest, every list full, and whatever was typed or sent in them."""
    request = replace(request, **WITH_CARD)
    many = Listed(shown=(request,) * MAX_WAITING, more=10**6, is_cut=True)
    exchange = ExchangeHealth(answered_ago_s=1.0, failed_ago_s=0.5, cause=cause, held_for_s=9.0, is_banned=is_banned)
    view = HomeView(
        person=APPROVER,
        drawn_at=minutes(10),
        waiting=many,
        asked=many,
        outcomes=(request,) * MAX_OUTCOMES,
        health=Health(is_worker_alive=False, exchange=exchange),
    )
    assert_takes(views.home(view, workspace_url=URL))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "Sell 1 BTC on KRW-BTC at 95,000,000 KRW"),
        ({"side": "bid"}, "Buy 1 BTC on KRW-BTC at 95,000,000 KRW"),
        ({"ord_type": "market", "price": None}, "Sell 1 BTC on KRW-BTC at the market price"),
        ({"ord_type": "best", "price": None}, "Sell 1 BTC on KRW-BTC without a price"),
        ({"remaining_volume": None, "volume": None}, "Sell BTC on KRW-BTC at 95,000,000 KRW"),
        ({"side": "short <b>"}, "`short &lt;b&gt;` 1 BTC on KRW-BTC at 95,000,000 KRW"),
        ({"market": "odd"}, "Sell 1 on odd at 95,000,000 odd"),
    ],
)
def test_an_order_in_short_says_what_is_known_of_it(changes: dict[str, Any], says: str) -> None:
    """In a list one line must do, also for orders without a price or a volume."""
    assert messages.order_in_short(replace(SELL, **changes)) == says


def test_a_buy_by_total_says_what_it_spends() -> None:
    """Its price is a total, and must not read as a price of one."""
    order: Order = present(CASES["pending_buy_by_total"].order)
    assert messages.order_in_short(order) == "Buy ETH on KRW-ETH for 1,500,000 KRW"


# --- Whose is due, on both databases --------------------------------------------------------------------------------


class Publisher:
    """A Slack that takes what it is told to take."""

    def __init__(self) -> None:
        self.published: list[HomeView] = []
        self.failure: CannotPost | TryLater | None = None

    def publish_home(self, view: HomeView) -> None:
        if self.failure is not None:
            raise self.failure
        self.published.append(view)

    def shown_to(self, person: Actor) -> list[HomeView]:
        return [view for view in self.published if view.person.id == person.id]


class Place:
    """Homes on a real database, whose clock the test moves; `round` does what the worker's loop does."""

    def __init__(self, url: str) -> None:
        self.clock = HandClock()
        self.database = Database(url, clock=self.clock)
        migrated(self.database)
        self.store = SqlStore(self.database)
        self.rows = SqlHomes(self.database)
        self.slack = Publisher()
        self.homes = self.restarted()

    def restarted(self, policy: ApprovalPolicy = POLICY) -> Homes:
        self.homes = Homes(
            store=self.rows,
            publisher=self.slack,
            policy=policy,
            membership=lambda: UNREAD,
            health=lambda: WELL,
            monotonic=self.seconds,
        )
        return self.homes

    def seconds(self) -> float:
        return self.clock.now.timestamp()

    def opens(self, *people: Actor) -> None:
        for person in people:
            self.homes.opened(person_id=person.id, team_id=person.team_id)

    def round(self, *, after_s: float = 0.0) -> list[str]:
        """Whose Homes were published in one round of the loop."""
        self.clock.advance(after_s)
        before = len(self.slack.published)
        for job_id in self.homes.due(limit=1000):
            again_s = self.homes.work(job_id)
            while again_s == 0.0:
                again_s = self.homes.work(job_id)
        return sorted(view.person.id for view in self.slack.published[before:])

    def settle(self, rounds: int = 8) -> list[str]:
        """Whose Homes were published within some seconds, once each."""
        return sorted({person_id for _ in range(rounds) for person_id in self.round(after_s=1.0)})


@pytest.fixture
def place(database_url: str) -> Iterator[Place]:
    opened = Place(database_url)
    yield opened
    opened.database.close()


def post_card(store: SqlStore, request_id: int) -> CancelRequest:
    with store.transaction(request_id) as tx:
        tx.change(**WITH_CARD)
    return present(store.read(request_id))


def decide(store: SqlStore, request_id: int, kind: DecisionKind, actor: Actor, action: Action) -> CancelRequest:
    """Decide in a way that ends the request."""
    with store.transaction(request_id) as tx:
        tx.decide(kind, actor)
        return tx.move(action, actor=actor, ended_at=tx.now)


def test_a_home_is_drawn_when_it_is_opened(place: Place) -> None:
    """The person is looking at it."""
    made = post_card(place.store, create_pending(place.store).id)
    place.opens(APPROVER)
    assert place.round() == [APPROVER.id]
    (view,) = place.slack.published
    assert (view.waiting.shown, view.asked.shown, view.outcomes) == ((made,), (), ())
    assert view.drawn_at == place.clock.now
    assert place.settle() == []


def test_a_change_draws_the_homes_that_it_concerns_and_no_other(place: Place) -> None:
    """The requester, the approvers and who decided see it; strangers' pages rest."""
    place.opens(REQUESTER, APPROVER, STRANGER)
    place.settle()
    made = post_card(place.store, create_pending(place.store).id)
    assert place.settle() == [APPROVER.id, REQUESTER.id]
    assert place.slack.shown_to(APPROVER)[-1].waiting.shown == (made,)
    assert place.slack.shown_to(REQUESTER)[-1].asked.shown == (made,)

    denied = decide(place.store, made.id, DecisionKind.DENY, APPROVER, Action.REQUEST_DENIED)
    assert place.settle() == [APPROVER.id, REQUESTER.id]
    for person in (APPROVER, REQUESTER):
        view = place.slack.shown_to(person)[-1]
        assert (view.waiting.shown, view.asked.shown, view.outcomes) == ((), (), (denied,))


def test_what_does_not_show_draws_nothing(place: Place) -> None:
    """A refused click changes no page; a person who presses a hundred times must not use up Slack's calls."""
    made = post_card(place.store, create_pending(place.store).id)
    place.opens(REQUESTER, APPROVER)
    place.settle()
    with place.store.transaction(made.id) as tx:
        tx.record(Action.APPROVAL_REFUSED, actor=STRANGER)
    assert place.settle() == []


def test_nobody_who_has_not_opened_theirs_costs_a_call(place: Place) -> None:
    """Slack would take it, and nobody would ever look."""
    create_pending(place.store)
    assert place.homes.due(limit=10) == ()
    place.opens(STRANGER)
    assert place.settle() == [STRANGER.id]
    assert len(place.slack.published) == 1


def test_changes_that_follow_each_other_are_one_drawing(place: Place) -> None:
    """An approval, the sending and the verdict come within a second; one page at their end is enough."""
    made = post_card(place.store, create_pending(place.store).id)
    place.opens(REQUESTER)
    assert place.round() == [REQUESTER.id]
    moves = (Action.REQUEST_APPROVED, Action.CANCEL_SENT, Action.CANCEL_ACCEPTED)
    drawn = []
    for action in moves:
        walk(place.store, made.id, action)
        drawn += place.round(after_s=SETTLE_S / 2)
    assert drawn == []
    assert place.settle() == [REQUESTER.id]
    assert [view.asked.shown[0].state for view in place.slack.published] == [State.PENDING, State.ACCEPTED]


def test_a_busy_home_is_drawn_every_few_seconds_at_most(place: Place) -> None:
    """Slack limits the calls of all Homes together."""
    made = post_card(place.store, create_pending(place.store).id)
    place.opens(REQUESTER)
    drawn_at = []
    for _ in range(60):
        with place.store.transaction(made.id) as tx:
            tx.record(Action.ORDER_CHANGED, redraw=True)
        if place.round(after_s=0.5):
            drawn_at.append(place.clock.now)
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(drawn_at)]
    assert len(gaps) >= 5
    assert min(gaps) >= REDRAW_GAP_S


def test_who_opens_theirs_again_and_again_is_drawn_at_the_same_pace(place: Place) -> None:
    """Also where Slack delivers one opening several times."""
    drawn = []
    for _ in range(20):
        place.opens(REQUESTER)
        drawn += place.round(after_s=0.5)
    assert 2 <= len(drawn) <= 4
    assert rows(place.database, "SELECT count(*) FROM homes") == [(1,)]


def test_two_openings_at_once_are_one_home(place: Place) -> None:
    """Retries may come to two replicas together."""
    assert at_once(*[lambda: place.opens(APPROVER)] * 4) == [None] * 4
    assert rows(place.database, "SELECT user_id FROM homes") == [(APPROVER.id,)]


def test_a_link_that_is_not_there_yet_is_filled_in(place: Place) -> None:
    """The page may be drawn before the card is posted, and that the card is posted is no event."""
    made = create_pending(place.store)
    place.opens(APPROVER)
    assert place.round() == [APPROVER.id]
    assert place.slack.published[-1].waiting.shown[0].card_ts is None
    post_card(place.store, made.id)
    assert place.settle() == [APPROVER.id]
    assert place.slack.published[-1].waiting.shown[0].card_ts == WITH_CARD["card_ts"]
    assert place.settle(60) == []


def test_a_request_that_never_gets_a_card_is_looked_for_ever_more_seldom(place: Place) -> None:
    """Slack may refuse cards for long; the page must not be drawn every few seconds meanwhile."""
    create_pending(place.store)
    place.opens(APPROVER)
    drawn = [place.clock.now for _ in range(300) if place.round(after_s=1.0)]
    assert len(drawn) <= 10
    assert (drawn[-1] - drawn[-2]).total_seconds() >= 59


def test_what_happened_while_nobody_ran_is_drawn_after_the_restart(place: Place) -> None:
    """What a process has taken in is in its memory only; the next one takes every Home for old, once."""
    place.opens(REQUESTER, STRANGER)
    place.settle()
    made = post_card(place.store, create_pending(place.store).id)
    place.restarted()
    assert place.settle() == sorted([REQUESTER.id, STRANGER.id])
    assert place.slack.shown_to(REQUESTER)[-1].asked.shown == (made,)
    assert len(place.slack.published) == 4


def test_who_is_no_approver_any_more_is_shown_nothing_to_approve_after_the_restart(place: Place) -> None:
    """The lists change with a restart, and then nothing else need have happened."""
    made = post_card(place.store, create_pending(place.store).id)
    place.opens(APPROVER)
    place.settle()
    assert place.slack.published[-1].waiting.shown == (made,)
    place.restarted(replace(POLICY, approvers=frozenset({SECOND.id})))
    assert place.settle() == [APPROVER.id]
    assert not place.slack.published[-1].waiting.shown


def test_a_home_whose_drawer_died_is_drawn_by_the_next(place: Place) -> None:
    """Killed between the lease and the call: the person would see the old page until something else happens."""
    place.opens(APPROVER)
    (home_id,) = place.rows.due_homes(limit=10).ids
    assert place.rows.lease_home(home_id) is not None
    place.restarted()
    assert place.settle() == []
    place.clock.advance(LEASE.total_seconds())
    assert place.settle() == [APPROVER.id]


def test_two_replicas_draw_a_home_once(place: Place) -> None:
    """Both see that it is due; one takes it."""
    place.opens(APPROVER)
    (home_id,) = place.rows.due_homes(limit=10).ids
    leases = at_once(*[lambda: place.rows.lease_home(home_id)] * 4)
    assert sum(lease is not None for lease in leases) == 1


def test_a_second_replica_does_not_draw_again_what_is_shown(place: Place) -> None:
    """It takes in the same events a little later."""
    other = Homes(
        store=place.rows, publisher=place.slack, policy=POLICY, membership=lambda: UNREAD, health=lambda: WELL
    )
    place.opens(REQUESTER)
    place.settle()
    other.take_in()
    post_card(place.store, create_pending(place.store).id)
    assert place.settle() == [REQUESTER.id]
    drawn = len(place.slack.published)
    other.take_in()
    place.settle()
    assert len(place.slack.published) == drawn


def test_who_took_a_home_over_is_not_disturbed_by_who_lost_it(place: Place) -> None:
    """A call to Slack that hung ends after its lease; its release must not free the home of the next one."""
    place.opens(APPROVER)
    (home_id,) = place.rows.due_homes(limit=10).ids
    late = present(place.rows.lease_home(home_id))
    place.clock.advance(LEASE.total_seconds() + 1)
    assert place.rows.lease_home(home_id) is not None
    place.rows.release_home(late, shown_seq=1, due_in_s=0.0)
    place.rows.forget_home(late)
    assert rows(place.database, "SELECT shown_seq, leased_until IS NULL FROM homes")[0][0] == -1
    assert place.rows.lease_home(home_id) is None


def test_what_happens_during_the_drawing_is_drawn_after_it(place: Place) -> None:
    """Read before, published after: the page would stay behind for good."""
    place.opens(REQUESTER)
    place.settle()
    made = create_pending(place.store)
    place.round(after_s=1.0)
    place.clock.advance(SETTLE_S + REDRAW_GAP_S)
    (home_id,) = place.rows.due_homes(limit=10).ids
    home = present(place.rows.lease_home(home_id))
    found = place.rows.concerning(REQUESTER.id, limit=10)
    decide(place.store, made.id, DecisionKind.WITHDRAW, REQUESTER, Action.REQUEST_WITHDRAWN)
    place.homes.work(TAKE_IN)
    place.rows.release_home(home, shown_seq=found.seq, due_in_s=None)
    assert place.round() == []
    assert place.settle() == [REQUESTER.id]
    assert [each.id for each in place.slack.published[-1].outcomes] == [made.id]


def test_a_home_that_nobody_opens_any_more_rests(place: Place) -> None:
    """People leave; their pages must not be drawn for ever. Who opens theirs again finds it fresh."""
    place.opens(REQUESTER)
    place.settle()
    place.clock.advance(KEPT_UP_FOR.total_seconds())
    made = post_card(place.store, create_pending(place.store).id)
    assert place.settle() == []
    place.opens(REQUESTER)
    assert place.settle() == [REQUESTER.id]
    assert place.slack.published[-1].asked.shown == (made,)


def test_a_home_that_became_due_and_old_is_not_drawn(place: Place) -> None:
    """It was due when Slack went away for a week."""
    place.opens(REQUESTER)
    (home_id,) = place.rows.due_homes(limit=10).ids
    place.clock.advance(KEPT_UP_FOR.total_seconds())
    assert place.rows.lease_home(home_id) is None
    assert place.rows.due_homes(limit=10).ids == ()


# --- When Slack does not take it ------------------------------------------------------------------------------------


def test_a_slack_that_is_away_is_tried_ever_more_seldom_and_then_shows_the_latest(place: Place) -> None:
    """A page is worth no storm of calls, and is not lost either."""
    place.slack.failure = TryLater("timeout")
    place.opens(REQUESTER)
    assert place.settle(120) == []
    assert 4 <= rows(place.database, "SELECT attempts FROM homes")[0][0] <= 8
    made = post_card(place.store, create_pending(place.store).id)
    place.slack.failure = None
    assert place.settle(120) == [REQUESTER.id]
    assert place.slack.published[-1].asked.shown == (made,)
    assert rows(place.database, "SELECT attempts, due_at FROM homes") == [(0, None)]


def test_a_rate_limit_holds_back_every_home(place: Place) -> None:
    """Slack counts the calls of a method for the whole workspace: the next Home would only prolong it."""
    place.opens(REQUESTER, APPROVER, SECOND)
    place.slack.failure = TryLater("ratelimited", retry_after_s=30.0)
    assert place.round() == []
    place.slack.failure = None
    assert rows(place.database, "SELECT sum(attempts) FROM homes") == [(1,)]
    assert place.homes.due(limit=10) == ()
    assert place.round(after_s=29.0) == []
    assert place.settle() == sorted([REQUESTER.id, APPROVER.id, SECOND.id])


def test_a_person_whom_slack_does_not_know_any_more_is_left_alone_until_they_come_back(place: Place) -> None:
    """Somebody who was deactivated must not be tried for ever; who opens their Home is there."""
    place.opens(APPROVER)
    place.slack.failure = CannotPost("user_not_found")
    assert place.settle() == []
    assert place.rows.due_homes(limit=10).is_any_kept_up is False
    place.slack.failure = None
    create_pending(place.store)
    assert place.settle() == []
    place.opens(APPROVER)
    assert place.settle() == [APPROVER.id]


def test_who_opens_theirs_while_slack_refuses_it_is_tried_once_more(place: Place) -> None:
    """The refusal was of an earlier try."""
    place.opens(APPROVER)
    (home_id,) = place.rows.due_homes(limit=10).ids
    home = present(place.rows.lease_home(home_id))
    place.opens(APPROVER)
    place.rows.forget_home(home)
    assert place.settle() == [APPROVER.id]


def test_a_database_that_fails_leaves_nothing_out(place: Place) -> None:
    """What was not taken in is taken in later; what was leased is drawn after its lease."""
    place.opens(REQUESTER)
    place.settle()
    post_card(place.store, create_pending(place.store).id)
    broken = replace_method(place.rows, "make_due")
    with pytest.raises(NothingDone):
        place.round(after_s=1.0)
    broken.restore()
    assert place.settle() == [REQUESTER.id]


class replace_method:  # noqa: N801 - reads as a verb
    """Let a method of the store fail until it is restored."""

    def __init__(self, store: SqlHomes, name: str) -> None:
        self._store, self._name = store, name

        def fail(*_args: object, **_more: object) -> None:
            raise NothingDone("the database is away")

        setattr(store, name, fail)

    def restore(self) -> None:
        delattr(self._store, self._name)


def test_a_clock_that_was_set_back_delays_no_home_for_long(place: Place) -> None:
    """Times in the rows would lie in the future for as long as the clock was wrong."""
    place.opens(REQUESTER)
    place.round()
    place.clock.advance(-3600)
    post_card(place.store, create_pending(place.store).id)
    assert place.settle() == [REQUESTER.id]
    place.opens(REQUESTER)
    assert place.settle() == [REQUESTER.id]


# --- What concerns one person, in SQL -------------------------------------------------------------------------------


def test_three_hundred_open_requests_are_counted_and_the_first_to_expire_come_first(place: Place) -> None:
    """The page stays a page, and what is urgent is on it."""
    made = [create_pending(place.store, requester=STRANGER) for _ in range(300)]
    soon = made[-1].id
    with place.store.transaction(soon) as tx:
        tx.change(expires_at=tx.now + timedelta(minutes=1))
    place.opens(APPROVER, STRANGER)
    place.round()
    waiting = place.slack.shown_to(APPROVER)[-1].waiting
    assert (len(waiting.shown), waiting.more, waiting.shown[0].id) == (MAX_WAITING, 300 - MAX_WAITING, soon)
    asked = place.slack.shown_to(STRANGER)[-1].asked
    assert (len(asked.shown), asked.more, asked.shown[0].id) == (MAX_ASKED, 300 - MAX_ASKED, soon)
    for view in place.slack.published:
        assert view_faults(views.home(view, workspace_url=URL)) == []


def test_outcomes_are_those_that_one_asked_for_or_decided_the_newest_first(place: Place) -> None:
    """An approver sees what came of what they approved, and nobody sees those of others."""
    denied = create_pending(place.store, requester=STRANGER)
    decide(place.store, denied.id, DecisionKind.DENY, APPROVER, Action.REQUEST_DENIED)
    place.clock.advance(60)
    mine = create_pending(place.store, requester=APPROVER)
    decide(place.store, mine.id, DecisionKind.WITHDRAW, APPROVER, Action.REQUEST_WITHDRAWN)
    place.clock.advance(60)
    other = create_pending(place.store)
    decide(place.store, other.id, DecisionKind.DENY, SECOND, Action.REQUEST_DENIED)

    def outcomes(person: Actor) -> list[int]:
        return [each.id for each in place.rows.concerning(person.id, limit=10).ended]

    assert outcomes(APPROVER) == [mine.id, denied.id]
    assert outcomes(SECOND) == [other.id]
    assert outcomes(STRANGER) == [denied.id]


def test_an_outcome_that_is_not_known_is_still_open_on_the_page(place: Place) -> None:
    """`unresolved` is no outcome: who asked must see that somebody has to look."""
    made = create_pending(place.store)
    walk(place.store, made.id, Action.REQUEST_APPROVED, Action.CANCEL_SENT, Action.OUTCOME_UNRESOLVED)
    found = place.rows.concerning(REQUESTER.id, limit=10)
    assert [each.state for each in found.asked] == [State.UNRESOLVED]
    assert found.ended == ()


def test_an_approver_is_found_by_the_whole_id(place: Place) -> None:
    """`U0` stands in `U0APPROVER` and `%` in everything."""
    create_pending(place.store)
    create(place.store)
    assert len(place.rows.concerning(APPROVER.id, limit=10).pending) == 1
    for other in ("U0", "APPROVER", "%", "_", "U0APPROVER,U0SECOND"):
        assert len(place.rows.concerning(other, limit=10).pending) == (1 if "," in other else 0)
