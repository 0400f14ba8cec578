"""The Home tab, with the real process: each test has a bot of its own, as long lists are cut."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from journey import CREW, GUEST, WITHIN_S, Journey, Mode, started
from postgresql import Postgresql

from bot.playground.demo import BEN, CARA, DANA, DESK, EMIL

KINDS: dict[str, tuple[Mode, str]] = {
    "http-sqlite": ("http", "sqlite"),
    "socket-postgresql": ("socket", "postgresql"),
    "http-postgresql": ("http", "postgresql"),
    "socket-sqlite": ("socket", "sqlite"),
}


def _with(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("journey", [KINDS[kind] for kind in kinds], ids=kinds, indirect=True)


@pytest.fixture
def journey(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journey]:
    """A bot of the kind that the test asks for."""
    mode, kind = request.param
    postgresql: Postgresql | None = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    with started(tmp_path, mode=mode, database_url=postgresql.create() if postgresql else None) as journey:
        yield journey
        assert not journey.complaints()
        assert journey.audit_fault() is None


WAITING = "Waiting for your approval"
ASKED = "What you asked for"
OUTCOMES = "Last outcomes"


@_with(*KINDS)
def test_the_home_tab_follows_a_request_from_the_asking_to_the_outcome(journey: Journey) -> None:
    """Who opens it sees what waits for them, what they asked for and what came of it, without opening it again."""
    answer = journey.slack.open_home(BEN.id, deliveries=3)
    assert [answer.ok, *(each.ok for each in answer.copies)] == [True] * 3
    journey.opens_home(DANA, CARA)
    journey.home_shows(CARA, "Nothing waits for your approval.", "You have no open requests.", "The bot: at work.")

    asked = journey.ask(reason="<!channel> wrong `price`")
    title = f"#{asked.id} Sell 0.01 BTC on KRW-BTC at 100,000,000 KRW"
    shown = journey.home_shows(BEN, WAITING, title, "Open the card", "Asked by @dana", "0 of 1 approvals", ASKED)
    assert "Reason: `<!channel> wrong 'price'`" in shown
    journey.home_shows(DANA, ASKED, title, "Waiting for approval, 0 of 1 approvals", OUTCOMES)
    published = [json.dumps(dict(call.arguments)) for call in journey.slack.calls("views.publish")]
    address = f"https://playground.slack.com/archives/{DESK}/p{asked.card.ts.replace('.', '')}"
    assert any(f"<{address}|Open the card>" in call for call in published)
    assert not any("<!channel>" in call for call in published)

    journey.press(BEN, asked, "approve")
    outcome = (OUTCOMES, title, "Canceled", "asked by @dana; approved by @ben", "Upbit: answered")
    for who in (BEN, DANA):
        assert title not in journey.home_shows(who, *outcome).partition(OUTCOMES)[0]
    assert f"#{asked.id} " not in journey.home(CARA)
    assert {call.outcome for call in journey.slack.calls("views.publish")} == {"ok"}


@_with("http-sqlite", "socket-postgresql")
def test_a_request_of_a_private_channel_is_on_the_homes_of_those_who_may_act_on_it_only(journey: Journey) -> None:
    """Who may approve must see what waits for them; nobody else is told what is asked behind a closed door."""
    journey.opens_home(DANA, BEN, CARA, EMIL)
    request_id = journey.record(f"{journey.exchange.place()} not for everyone", channel=CREW.id)
    for who in (BEN, EMIL):
        journey.home_shows(who, WAITING, f"#{request_id} ", "not for everyone")
    journey.home_shows(DANA, ASKED, f"#{request_id} ")
    journey.opens_home(CARA)
    drawn = len(journey.slack.calls("views.publish"))
    journey.slack.wait_for(lambda slack: len(slack.calls("views.publish")) > drawn, timeout_s=WITHIN_S)
    mine = [call for call in journey.slack.calls("views.publish") if call.arguments["user_id"] == CARA.id]
    assert mine
    assert "not for everyone" not in json.dumps([dict(call.arguments) for call in mine])


@_with("http-sqlite", "socket-postgresql")
def test_a_guest_of_another_workspace_finds_no_home(journey: Journey) -> None:
    """What is asked here is none of their business, and Slack's event is acknowledged all the same."""
    journey.opens_home(GUEST)
    journey.opens_home(EMIL)
    journey.home_shows(EMIL, WAITING)
    assert journey.slack.home(GUEST.id) is None


@_with("http-sqlite", "socket-postgresql")
def test_a_home_that_slack_does_not_take_is_drawn_later_and_delays_nothing(journey: Journey) -> None:
    """Slack limits calls and fails: a cancel and its card go on, and the page catches up."""
    journey.opens_home(DANA, BEN)
    journey.home_shows(DANA, WAITING)
    mood = journey.slack.set_mood("slow", method="views.publish", delay_s=30.0)
    asked = journey.ask()
    journey.slack.wait_for(lambda _: mood.met.is_set(), timeout_s=WITHIN_S)
    journey.press(BEN, asked, "approve")
    assert journey.verdict(asked).startswith("Canceled:")
    journey.shows(asked, "canceled")
    journey.slack.set_mood("ratelimited", method="views.publish", times=1, retry_after_s=1)
    journey.home_shows(DANA, OUTCOMES, f"#{asked.id} ", "Canceled")
    journey.slack.set_mood("http_500", method="views.publish", times=1)
    denied = journey.ask()
    journey.press(EMIL, denied, "deny")
    journey.home_shows(DANA, OUTCOMES, f"#{denied.id} ", "Denied, nothing was sent")


@pytest.mark.parametrize(("mode", "kind"), [("http", "sqlite"), ("socket", "postgresql")])
def test_homes_are_kept_up_after_the_process_was_killed(
    mode: Mode, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """People do not know of restarts: the page that they have open must not stay as it was."""
    database_url = request.getfixturevalue("postgresql").create() if kind == "postgresql" else None
    with started(tmp_path, mode=mode, database_url=database_url) as journey:
        journey.opens_home(DANA, BEN)
        asked = journey.ask()
        journey.home_shows(BEN, WAITING, f"#{asked.id} ", "Open the card")
        journey.bot.kill()
        journey.bring_forward(asked.id, "expires_at", "next_attempt_at")
        journey.free_homes()
        journey.bot.start()
        journey.bot.wait_until_ready()
        journey.home_shows(DANA, OUTCOMES, f"#{asked.id} ", "Expired, nothing was sent")
        journey.home_shows(BEN, "Nothing waits for your approval.")
        again = journey.ask()
        journey.home_shows(BEN, WAITING, f"#{again.id} ")
