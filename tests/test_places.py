"""Where `/cancel` may be typed, where its card goes and what it says of the market, with the real process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from journey import PRIVATE_WITHOUT_BOT, Asked, Journey, Mode, started
from postgresql import Postgresql

from bot.playground.demo import BEN, CARA, DANA, DESK, EMIL, cards
from bot.playground.exchange import Mood
from bot.playground.slack_records import Channel

LOUNGE = Channel("C0LOUNGE", "lounge")
CARDS = Channel("C0CARDS", "cards", kind="private", members=frozenset({BEN.id, CARA.id, EMIL.id}))
"""Who asks is not in it, and cannot look inside."""
ARCHIVED = Channel("C0OLD", "old", is_archived=True)
READ_ONLY = Channel("C0NEWS", "news", is_read_only=True)

KINDS: dict[str, tuple[Mode, str]] = {
    "http-sqlite": ("http", "sqlite"),
    "socket-postgresql": ("socket", "postgresql"),
    "http-postgresql": ("http", "postgresql"),
    "socket-sqlite": ("socket", "sqlite"),
}


@pytest.fixture(scope="module", params=list(KINDS.values()), ids=list(KINDS))
def journey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    """A bot whose cards go to a private channel, and whose command is taken in the desk alone."""
    mode, kind = request.param
    postgresql: Postgresql | None = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    with started(
        tmp_path_factory.mktemp(f"{mode}-{kind}"),
        mode=mode,
        database_url=postgresql.create() if postgresql else None,
        settings={"CHANNELS": f"{DESK},{CARDS.id}", "APPROVALS_CHANNEL": CARDS.id},
        channels=(LOUNGE, CARDS),
    ) as shared:
        yield shared
        assert not shared.complaints()
        assert shared.audit_fault() is None


def ask(journey: Journey, *, channel: str = DESK) -> Asked:
    uuid = journey.exchange.place()
    request_id = journey.record(f"{uuid} wrong price", channel=channel)
    return Asked(id=request_id, uuid=uuid, card=journey.card_of(request_id, channel=CARDS.id))


def test_the_card_is_decided_in_the_approvals_channel_and_its_thread_tells_the_verdict(journey: Journey) -> None:
    """The desk asks, the approvers decide among themselves, and who asked knows where."""
    asked = ask(journey)
    shown = journey.slack.words(asked.card)
    told = journey.hears(DANA, f"The card of request #{asked.id} is in #{CARDS.name}")
    assert f"/archives/{CARDS.id}/p{asked.card.ts.replace('.', '')}" in told
    assert any(line.startswith("Asked by: @dana") and line.endswith(" in #desk") for line in shown)
    assert not cards(journey.slack)

    journey.press(BEN, asked, "approve")
    verdict = journey.verdict(asked)
    assert verdict.startswith("Canceled: ")
    assert "Asked by @dana" in verdict
    assert not journey.shows(asked, "canceled").buttons
    assert len(journey.exchange.deletes(asked.uuid)) == 1
    created = journey.audited(asked.id, "request.created")
    assert (created["channel_id"], created["details"]["approvals_channel_id"]) == (DESK, CARDS.id)
    assert journey.audited(asked.id, "request.approved")["channel_id"] == CARDS.id


def test_a_click_in_the_approvals_channel_is_refused_privately_there(journey: Journey) -> None:
    """Where the card is changes nothing about who may press its buttons."""
    asked = ask(journey)
    journey.forge(CARA, asked, "approve", value=str(asked.id))
    journey.hears(CARA, f"You may not decide request #{asked.id}")
    journey.press(EMIL, asked, "deny")
    assert journey.verdict(asked).startswith("Denied by @emil")
    assert not journey.exchange.deletes(asked.uuid)


def test_who_asks_in_the_approvals_channel_sees_the_card_appear(journey: Journey) -> None:
    """They are told nothing that they have before their eyes."""
    uuid = journey.exchange.place()
    request_id = journey.record(uuid, channel=CARDS.id, who=BEN)
    card = journey.card_of(request_id, channel=CARDS.id)
    asked = Asked(id=request_id, uuid=uuid, card=card)
    journey.press(EMIL, asked, "deny")
    journey.verdict(asked)
    told = [*journey.slack.ephemerals(BEN.id), *journey.slack.dms(BEN.id)]
    assert not any("The card of request" in line.text for line in told)


def test_a_command_typed_where_it_may_not_be_is_refused_with_the_channels_where_it_may(journey: Journey) -> None:
    """A lounge full of people is no place to cancel orders; the refusal is audited, and seen by one person alone."""
    before = len(journey.slack.messages(LOUNGE.id))
    uuid = journey.exchange.place()
    for text in (uuid, "my btc order", ""):
        answer = journey.slack.command(DANA.id, LOUNGE.id, text)
        assert f"nothing was done. Type it in: <#{CARDS.id}>, <#{DESK}> (`CHANNELS`)." in answer.text
    assert len(journey.slack.messages(LOUNGE.id)) == before
    refused = [event for event in journey.events() if event["channel_id"] == LOUNGE.id]
    assert [event["details"]["reason"] for event in refused] == ["channel_not_allowed"] * 3
    assert {(event["action"], event["actor"]) for event in refused} == {("command.refused", DANA.id)}
    assert all(uuid not in request.query for request in journey.exchange.requests)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (PRIVATE_WITHOUT_BOT, "somebody in that channel has to type `/invite`"),
        (ARCHIVED, "is archived. Tell whoever runs this bot to name another channel"),
        (READ_ONLY, "Only some people may post in"),
        (Channel("C0GONE", "gone"), "The bot may not post in"),
    ],
    ids=["not-a-member", "archived", "read-only", "gone"],
)
def test_an_approvals_channel_that_takes_no_card_leaves_nothing_pending(
    tmp_path: Path, place: Channel, says: str
) -> None:
    """Who asked can do nothing about that channel, so they are told whom to tell; the order may be asked for again."""
    known = [each for each in (ARCHIVED, READ_ONLY) if each == place]
    with started(tmp_path, settings={"APPROVALS_CHANNEL": place.id}, channels=known) as journey:
        uuid = journey.exchange.place()
        for _ in range(2):
            request_id = journey.record(uuid)
            told = journey.hears(DANA, f"Request #{request_id} was refused", "where all cards go (`APPROVALS_CHANNEL`)")
            assert says in told
            refused = journey.audited(request_id, "request.refused")
            assert refused["details"]["reason"] == "cannot_post"
            assert journey.state(request_id) == "refused"
        assert not journey.exchange.deletes(uuid)


def test_a_restart_with_another_approvals_channel_posts_no_second_card(tmp_path: Path) -> None:
    """The place was told when the command was typed; only what is asked for afterwards goes elsewhere."""
    with started(tmp_path, settings={"APPROVALS_CHANNEL": CARDS.id}, channels=(CARDS, LOUNGE)) as journey:
        journey.slack.set_mood("away")
        uuid = journey.exchange.place()
        request_id = journey.record(uuid)
        journey.audited(request_id, "request.opened")
        assert journey.bot.stop() == 0
        journey.bot._environment["APPROVALS_CHANNEL"] = LOUNGE.id
        journey.slack.clear_moods()
        journey.bot.start()
        journey.bot.wait_until_ready()
        asked = Asked(id=request_id, uuid=uuid, card=journey.card_of(request_id, channel=CARDS.id))
        journey.press(BEN, asked, "deny")
        journey.verdict(asked)
        assert not cards(journey.slack, LOUNGE.id)
        later = journey.record(journey.exchange.place())
        assert journey.card_of(later, channel=LOUNGE.id).buttons


# --- The market on the card ------------------------------------------------------------------------------------------


def test_a_card_shows_how_far_the_order_is_from_the_market(journey: Journey) -> None:
    """Who decides whether to cancel asks that first; the number carries its second, and the audit has it."""
    journey.exchange.set_book("KRW-BTC", bid="97900000", ask="98000000.5")

    def asked_with_a_price() -> Asked | None:
        asked = ask(journey)
        journey.press(EMIL, asked, "deny")
        is_priced = any(line.startswith("Market at ") for line in journey.slack.words(asked.card))
        return asked if is_priced else None  # a machine so busy that a second was not enough

    asked = journey.until(asked_with_a_price, timeout_s=1.0)
    (line,) = [line for line in journey.slack.words(asked.card) if line.startswith("Market at ")]
    assert line.endswith(
        "when this was asked: the order's price is 2.04 % above the best ask 98,000,000.5 KRW; best bid 97,900,000 KRW"
    )
    quote = journey.audited(asked.id, "request.opened")["details"]["quote"]
    assert (quote["bid"], quote["ask"]) == ("97900000", "98000000.5")
    seen = [request for request in journey.exchange.requests if request.path == "/v1/orderbook"]
    assert {request.query for request in seen} == {"markets=KRW-BTC"}
    assert not any("authorization" in request.headers for request in seen)
    shown = journey.shows(asked, "denied, nothing was sent")
    assert line in journey.slack.words(shown)


@pytest.mark.parametrize(
    ("mood", "cause"),
    [
        (Mood.HANG, "timeout"),
        (Mood.DROP_BEFORE, "connection_lost"),
        (Mood.HTML_200, "not_json"),
        (Mood.HTTP_500, "http_500"),
        (Mood.RATELIMITED_429, "too_many_requests"),
        (Mood.BANNED_418, "banned"),
    ],
)
def test_a_quotation_that_is_down_takes_the_price_from_the_card_and_nothing_else(
    tmp_path: Path, mood: Mood, cause: str
) -> None:
    """Nobody waits for it, and a ban by the quotation does not hold a cancel back."""
    with started(tmp_path, settings={}) as journey:
        journey.exchange.set_book("KRW-BTC", bid="97900000", ask="98000000")
        journey.exchange.set_mood("GET /v1/orderbook", mood, seconds=3600)
        first, second = journey.ask(), journey.ask()
        for asked in (first, second):
            assert "Market: market price not available when this was asked" in journey.slack.words(asked.card)
            journey.press(BEN, asked, "approve")
        for asked in (first, second):
            assert journey.verdict(asked).startswith("Canceled: ")
            assert journey.audited(asked.id, "cancel.sent")["details"]["attempt"] == 1
            assert "cancel.unsent" not in journey.actions(asked.id)
        opened = journey.audited(first.id, "request.opened")
        assert opened["details"]["quote"] == {"error": cause}
        assert not journey.complaints()
