"""What people type to ask about requests: understood however it was pasted, and never guessed at."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.domain.event_filter import Filter
from bot.exporting import WantedExport
from bot.inquiry import Wanted
from bot.slack.listeners import clean, parse_text
from bot.slack.typed import ExportQuestion, Question, Topic, parse_export, parse_question, typed

UUID = "cdd92199-2897-4e14-9448-f923320408ad"
NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)


def asked(text: str) -> Question | None:
    return parse_question(clean(text), person_id="U0DANA")


def wanted(text: str) -> Wanted | None:
    question = asked(text)
    assert question is not None, text
    return question.wanted


@pytest.mark.parametrize(
    "text",
    ["", UUID, f"{UUID} open", f"{UUID} status please", "#42", "statuses", "all", "me", "- open", "１"],  # noqa: RUF001
)
def test_what_does_not_begin_like_a_question_is_none(text: str) -> None:
    """It is an order to be canceled, or a mistake that is explained; never a question by accident."""
    assert asked(text) is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("status #42", Wanted(request_id=42)),
        ("status 42", Wanted(request_id=42)),
        ("STATUS `#42`", Wanted(request_id=42)),
        (f"status {UUID}", Wanted(order_uuid=UUID)),
        (f"“Status” ‘{UUID.upper()}’", Wanted(order_uuid=UUID)),  # noqa: RUF001 - what a phone makes of quotes
        (f"status ```{UUID}```", Wanted(order_uuid=UUID)),
    ],
)
def test_a_status_is_of_one_request_or_one_order(text: str, meant: Wanted) -> None:
    """People paste the number from a card, or the uuid from Upbit."""
    assert asked(text) == Question(topic=Topic.STATUS, wanted=meant)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("", Wanted()),
        (f"{UUID}", Wanted(order_uuid=UUID)),
        ("#7", Wanted(request_id=7)),
        ("<@U0BEN|ben>", Wanted(requester_id="U0BEN")),
        ("<@W0BEN>", Wanted(requester_id="W0BEN")),
        ("<@U0BEN|Ben B. Okay>", Wanted(requester_id="U0BEN")),
        ("@U0BEN", Wanted(requester_id="U0BEN")),
        ("@ben", Wanted(requester_name="ben")),
        ("@ben_", Wanted(requester_name="ben_")),
        ("`@ben.b-2`", Wanted(requester_name="ben.b-2")),
        ("@가나", Wanted(requester_name="가나")),
        ("me", Wanted(requester_id="U0DANA")),
        ("krw-btc", Wanted(market="KRW-BTC")),
        ("since 2026-11-01", Wanted(since=NOVEMBER)),
        ("SINCE “2026-11-01”", Wanted(since=NOVEMBER)),
        ("before #31", Wanted(before=31)),
        (
            "KRW-BTC since 2026-11-01 <@U0BEN|ben> before 31",
            Wanted(market="KRW-BTC", since=NOVEMBER, requester_id="U0BEN", before=31),
        ),
        (f"{UUID} me", Wanted(order_uuid=UUID, requester_id="U0DANA")),
    ],
)
def test_filters_combine_in_any_order(words: str, meant: Wanted) -> None:
    """And mean the same for what is not over and for everything."""
    assert wanted(f"history {words}") == meant
    found = wanted(f"Open\n{words}")
    assert found is not None
    assert found.only_open


@pytest.mark.parametrize(
    "text",
    [
        "status",
        "status open",
        "status #42 #43",
        f"status #42 {UUID}",
        "status me",
        "status #0",
        "status #",
        "status -1",
        "status 1e3",
        f"status {'9' * 16}",
        "status ٣",
        "history since",
        "history since yesterday",
        "history since 2026-02-30",
        "history since 0000-01-01",
        "history since 2026-1-1",
        "history before",
        "history before me",
        "history KRW-BTC KRW-ETH",
        "history me @ben",
        "history @ben @U0BEN",
        "history @",
        "history @" + "x" * 81,
        "history KRW",
        "history KRW-",
        "history * ",
        "history drop table",
        "history since since",
        "history " + "me " * 40,
        "open sesame",
        f"open {UUID[:-1]}",
        "open <!channel>",
    ],
)
def test_what_is_not_understood_is_not_guessed_at(text: str) -> None:
    """An answer to another question than was asked misleads somebody about money."""
    assert wanted(text) is None


@pytest.mark.parametrize("text", ["help", "HELP", "`help`", "help me", "help status #42"])
def test_help_is_help_whatever_follows(text: str) -> None:
    """Who asks for help has not learned the grammar yet."""
    assert asked(text) == Question(topic=Topic.HELP, wanted=Wanted())


WORDS = st.sampled_from(
    ["status", "open", "history", "since", "before", "me", "#42", "@ben", "KRW-BTC", "2026-11-01", UUID, "<@U0BEN|ben>"]
)


@given(st.text() | st.lists(WORDS | st.text(max_size=5), max_size=8).map(" ".join))
def test_any_text_is_read(text: str) -> None:
    """Slack: the text can contain absolutely anything. And what is no question still is an order or a fault."""
    question = asked(text)
    if question is None:
        parse_text(clean(text))
    elif question.topic in {Topic.OPEN, Topic.HISTORY} and question.wanted is not None:
        again = typed(question.wanted).removeprefix("/cancel ")
        assert asked(again) == question


def test_the_next_page_is_asked_for_as_it_is_shown() -> None:
    """The command under an answer is copied as it stands."""
    everything = Wanted(order_uuid=UUID, requester_id="U0BEN", market="KRW-BTC", since=NOVEMBER, before=31)

    assert typed(everything) == f"/cancel history {UUID} @U0BEN KRW-BTC since 2026-11-01 before #31"
    assert typed(Wanted(only_open=True, before=31)) == "/cancel open before #31"
    assert typed(Wanted(requester_name="ben", request_id=7)) == "/cancel history #7 @ben"


def asked_export(text: str) -> ExportQuestion | None:
    return parse_export(clean(text), person_id="U0DANA")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("export", WantedExport()),
        ("EXPORT csv", WantedExport()),
        ("export jsonl #7", WantedExport(form="jsonl", selection=Filter(request_id=7))),
        (f"export `{UUID.upper()}`", WantedExport(selection=Filter(order_uuid=UUID))),
        ("export <@U0BEN|ben> krw-btc", WantedExport(selection=Filter(actor="U0BEN", market="KRW-BTC"))),
        ("export me", WantedExport(selection=Filter(actor="U0DANA"))),
        (
            "export since 2026-11-01 until 2026-12-01",
            WantedExport(selection=Filter(since=NOVEMBER, until=NOVEMBER.replace(month=12))),
        ),
        (
            "export action Approval.Refused outcome refused reason `own_request`",
            WantedExport(selection=Filter(action="approval.refused", outcome="refused", details_reason="own_request")),
        ),
        ("export own over 50000000", WantedExport(selection=Filter(own=True, over_krw=Decimal(50_000_000)))),
        ("export over `0.5`", WantedExport(selection=Filter(over_krw=Decimal("0.5")))),
    ],
)
def test_an_export_is_chosen_by_the_words_of_the_audit(text: str, meant: WantedExport) -> None:
    """The same filters as at the command line, however they were typed."""
    assert asked_export(text) == ExportQuestion(wanted=meant)


@pytest.mark.parametrize(
    "rest",
    [
        "everything",
        "csv jsonl",
        "me @U0BEN",
        "@ben",
        "before #7",
        "since",
        "since yesterday",
        "action",
        "action cancel",
        "outcome fine",
        "reason because",
        "#7 #8",
        "parquet",
        "own own",
        "over",
        "over much",
        "over -1",
        "over 50,000,000",
        "over 1e9",
        "me " * 30,
    ],
)
def test_an_export_that_is_not_understood_is_none(rest: str) -> None:
    """A word that was passed over would hand out more than was asked for."""
    assert asked_export(f"export {rest}") == ExportQuestion(wanted=None)


@pytest.mark.parametrize("text", ["", UUID, "exports", "status", f"{UUID} export", "history export"])
def test_what_does_not_begin_with_export_is_none(text: str) -> None:
    """An order's reason may hold the word."""
    assert asked_export(text) is None


@given(st.text())
def test_any_text_after_export_is_understood_or_not(text: str) -> None:
    """Slack lets anything through."""
    assert asked_export(f"export {text}") is not None
