"""The form and the questions, with the real process: over HTTP and Socket Mode, on SQLite and PostgreSQL."""

import re
from collections.abc import Iterator

import pytest
from journey import PRIVATE_WITHOUT_BOT, WITHIN_S, Asked, Journey, Mode, started
from postgresql import Postgresql

from bot.playground.demo import BEN, CARA, DANA, DESK
from bot.playground.exchange import Mood
from bot.playground.slack import SlackWorkspace
from bot.playground.slack_records import Person, View

KINDS: list[tuple[Mode, str]] = [
    ("http", "sqlite"),
    ("socket", "postgresql"),
    ("http", "postgresql"),
    ("socket", "sqlite"),
]


@pytest.fixture(scope="module", params=KINDS, ids=["-".join(kind) for kind in KINDS])
def journey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    mode, kind = request.param
    postgresql: Postgresql | None = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    url = postgresql.create() if postgresql else None
    with started(tmp_path_factory.mktemp(f"{mode}-{kind}"), mode=mode, database_url=url) as shared:
        yield shared
        assert shared.bot.stop() == 0
        assert not shared.complaints()
        assert shared.audit_fault() is None


def opened(journey: Journey, who: Person = DANA, *, channel: str = DESK) -> View:
    """The form that `/cancel` opens, once it no longer says *loading…*."""
    answer = journey.slack.command(who.id, channel, "")
    assert answer.ok
    assert answer.text == ""

    def is_filled(slack: SlackWorkspace) -> View | None:
        views = slack.views(who.id)
        return views[-1] if views and "loading…" not in "\n".join(slack.words(views[-1])) else None

    view = journey.slack.wait_for(is_filled, timeout_s=WITHIN_S)
    assert view is not None
    return view


def options_of(view: View) -> dict[str, str]:
    """Every option's value and its words."""
    (select,) = [block["element"] for block in view.blocks if block.get("block_id") == "order"]
    return {each["value"]: each["text"]["text"] for group in select["option_groups"] for each in group["options"]}


def said_in_form(journey: Journey, who: Person = DANA) -> str:
    """What the top form says now."""
    view = journey.slack.views(who.id)[-1]
    return "\n".join([view.title, *journey.slack.words(view)])


def recorded_in_form(journey: Journey) -> int:
    found = re.search(r"Recorded\nRequest #(\d+) is recorded; the order is being read\.", said_in_form(journey))
    assert found, said_in_form(journey)
    return int(found[1])


def ask(journey: Journey, question: str, who: Person = DANA, *, channel: str = DESK) -> str:
    """The private answer to a question."""
    answer = journey.slack.command(who.id, channel, question)
    assert answer.ok
    return answer.text


def test_an_order_among_three_hundred_is_chosen_and_canceled(journey: Journey) -> None:
    """Nobody has to look up a uuid; what follows is the same request, with the same card and the same approval."""
    placed = [journey.exchange.place(market=market) for market in ("KRW-BTC", "KRW-ETH", "BTC-XRP") for _ in range(100)]
    stop = journey.exchange.place(state="watch", price="95000000", volume="1")
    total = journey.exchange.place(side="bid", ord_type="price", price="1500000", volume=None)
    try:
        view = opened(journey)
        options = options_of(view)
        assert set(options) >= {*placed, stop, total}
        assert options[stop].startswith("KRW-BTC Sell 1 at 95,000,000 (stop) · ")
        assert options[total].startswith("KRW-BTC Buy for 1,500,000 in all · ")

        chosen = {"order": stop, "reason": "too far <!here> from\nthe market"}
        assert journey.slack.submit_view(DANA.id, view, chosen).ok
        request_id = recorded_in_form(journey)
        asked = Asked(id=request_id, uuid=stop, card=journey.card_of(request_id))
        assert "Reason: `too far <!here> from the market`" in journey.slack.words(asked.card)
        created = journey.audited(request_id, "request.created")
        assert (created["actor"], created["channel_id"], created["order_uuid"]) == (DANA.id, DESK, stop)

        journey.press(BEN, asked, "approve")
        assert journey.verdict(asked).startswith("Canceled: 1 of 1 BTC")
        assert stop not in options_of(opened(journey))
    finally:
        for uuid in [*placed, total]:
            journey.exchange.cancel_elsewhere(uuid)


def test_trouble_with_the_form_is_told_in_it(journey: Journey) -> None:
    """No orders, no permission, an exchange that says no: each in plain words, and a uuid still works."""
    view = opened(journey)
    assert "There are no open orders at Upbit" in said_in_form(journey)
    assert view.json.get("submit") is None

    journey.exchange.set_mood("GET /v1/orders/open", Mood.REFUSE, status=401, name="out_of_scope", times=1)
    opened(journey)
    assert "주문조회 (View Orders)" in said_in_form(journey)

    uuid = journey.exchange.place()
    journey.exchange.set_mood("GET /v1/orders/open", Mood.REFUSE, status=400, name="validation_error", times=1)
    view = opened(journey)
    assert "Upbit would not show the open orders." in said_in_form(journey)
    assert journey.slack.submit_view(DANA.id, view, {"order_uuid": "the big one"}).ok
    (error,) = journey.slack.views(DANA.id)[-1].errors.values()
    assert error.startswith("That is not the uuid of an order.")
    assert journey.slack.submit_view(DANA.id, view, {"order_uuid": f"`{uuid.upper()}`"}).ok
    request_id = recorded_in_form(journey)
    asked = Asked(id=request_id, uuid=uuid, card=journey.card_of(request_id))

    view = opened(journey)
    assert journey.slack.submit_view(DANA.id, view, {"order": uuid}).ok
    assert f"request #{request_id}" in said_in_form(journey)
    assert "Nothing new was done" in said_in_form(journey)
    journey.press(BEN, asked, "deny")
    journey.shows(asked, "denied, nothing was sent")


def test_a_form_that_slack_does_not_open_is_said_to_be(journey: Journey) -> None:
    """Silence would leave a trader before an empty screen."""
    journey.slack.set_mood("error:expired_trigger_id", method="views.open", times=1)

    assert ask(journey, "").startswith("The form could not be opened in time, and nothing was done")


def test_what_has_become_of_a_request_is_told_to_who_asks(journey: Journey) -> None:
    """In plain words, privately, with the way to its card."""
    uuid = journey.exchange.place(price="95000000", volume="1")
    asked = journey.ask(uuid=uuid, reason="wrong price")
    for question in (f"status #{asked.id}", f"status {uuid.upper()}"):
        said = ask(journey, question, CARA)
        assert f"Request #{asked.id}: waiting for approval" in said.replace("*", "")
        assert "1 approval more until" in said
        assert asked.card.ts.replace(".", "") in said
    assert f"#{asked.id}>" in ask(journey, "open", CARA)
    assert f"#{asked.id}>" in ask(journey, f"history krw-btc @{DANA.name} since 2020-01-01", CARA)
    assert f"#{asked.id}>" in ask(journey, "history me")
    assert f"#{asked.id}>" not in ask(journey, "history me", CARA)

    journey.press(BEN, asked, "deny")
    journey.shows(asked, "denied, nothing was sent")
    assert f"denied by <@{BEN.id}>" in ask(journey, f"status #{asked.id}", CARA)
    assert f"#{asked.id}>" not in ask(journey, "open", CARA)
    assert "`/cancel history`" in ask(journey, "help", CARA)
    assert "was not understood" in ask(journey, "status of everything", CARA)
    refused = [event for event in journey.events() if event["action"] == "command.refused"][-1]
    assert (refused["actor"], refused["details"]["reason"]) == (CARA.id, "not_a_question")


def test_what_was_asked_in_private_is_not_told_to_everybody(journey: Journey) -> None:
    """Those who may approve it see it anywhere, who is there sees it there, and nobody else that it exists."""
    request_id = journey.record(journey.exchange.place(), channel=PRIVATE_WITHOUT_BOT.id)
    journey.audited(request_id, "request.refused")

    for who, channel, is_told in (
        (DANA, DESK, True),
        (BEN, DESK, True),
        (BEN, PRIVATE_WITHOUT_BOT.id, True),
        (CARA, DESK, False),
    ):
        assert (f"Request #{request_id}:" in ask(journey, f"status #{request_id}", who, channel=channel)) == is_told
        assert (f"#{request_id} " in ask(journey, "history", who, channel=channel)) == is_told


def test_a_form_that_waits_for_upbit_delays_no_cancel(journey: Journey) -> None:
    """Lists are a convenience, a cancel is money: it has threads, connections and calls of its own."""
    asked = journey.ask()
    path = "GET /v1/orders/open"
    journey.exchange.set_mood(path, Mood.HANG)
    for _ in range(5):
        assert ask(journey, "") == ""
    journey.until_exchange(lambda exchange: any(each.path == "/v1/orders/open" for each in exchange.requests))
    journey.press(BEN, asked, "approve")
    assert journey.verdict(asked).startswith("Canceled:")
    journey.exchange.clear_moods(path)


def test_a_request_from_a_form_belongs_to_where_the_command_was_typed(journey: Journey) -> None:
    """The form floats above every channel; the card, and who may see the request, do not."""
    uuid = journey.exchange.place()
    view = opened(journey, channel=PRIVATE_WITHOUT_BOT.id)
    assert journey.slack.submit_view(DANA.id, view, {"order": uuid}).ok
    request_id = recorded_in_form(journey)
    assert "was refused, and nothing was sent" in journey.hears(DANA, f"Request #{request_id}", "`/invite`")
    row = journey.row(request_id)
    assert (row.channel_id, row.in_private) == (PRIVATE_WITHOUT_BOT.id, True)
    assert "no such request" in ask(journey, f"status #{request_id}", CARA)
