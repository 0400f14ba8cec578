"""The notifier against a Slack workspace on loopback, with Slack's own refusals and moods."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from builders import at_once

from bot.audit.signing import Signer
from bot.choosing import Choice, Form
from bot.domain.answer import ExchangeHealth
from bot.domain.audit import Actor, Reason
from bot.domain.cancel_request import CancelRequest, Decision, DecisionKind, State
from bot.domain.checkpoint import Checkpoint, parse_checkpoints
from bot.domain.errors import CannotPost, MessengerError, TryLater
from bot.domain.order import Order
from bot.home import Health, HomeView, Listed
from bot.playground.slack import CHANNELS, PEOPLE, SlackWorkspace
from bot.playground.slack_records import Channel, Message
from bot.slack import views
from bot.slack.notifier import MAX_OPENING, OPEN_VIEW_TIMEOUT_S, PERMANENT_ERRORS, Identity, Notifier
from bot.workflow import Notice, NoticeKind

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
UUID = "cdd92199-2897-4e14-9448-f923320408ad"
PRIVATE = Channel("C0PRIVATE", "private", kind="private", members=frozenset({"U0DANA"}), has_bot=False)
CARDS = Channel("C0CARDS", "cards")

ORDER = Order(
    uuid=UUID,
    side="ask",
    ord_type="limit",
    state="wait",
    market="KRW-BTC",
    created_at="2026-11-23T08:30:00+00:00",
    price=Decimal(95_000_000),
    volume=Decimal(1),
    remaining_volume=Decimal(1),
    executed_volume=Decimal(0),
)

PENDING = CancelRequest(
    id=42,
    order_uuid=UUID,
    state=State.PENDING,
    requester=Actor(id="U0DANA", name="dana", team_id="T0PLAY"),
    reason="wrong price",
    team_id="T0PLAY",
    channel_id="C0DESK",
    trigger_id="trigger-42",
    created_at=NOW,
    order=ORDER,
    order_now=ORDER,
    looked_at=NOW,
    approvers=("U0BEN",),
    opened_at=NOW,
    expires_at=NOW.replace(hour=10),
)

DENIED = replace(
    PENDING,
    state=State.DENIED,
    decisions=(
        Decision(kind=DecisionKind.DENY, actor=Actor(id="U0BEN", name="ben", team_id="T0PLAY"), decided_at=NOW),
    ),
    ended_at=NOW,
)


class Time:
    def __init__(self) -> None:
        self.now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def workspace(clock: Time) -> Iterator[SlackWorkspace]:
    with SlackWorkspace(channels=[*CHANNELS, PRIVATE, CARDS], people=PEOPLE, now=clock) as opened:
        yield opened


@pytest.fixture
def notifier(workspace: SlackWorkspace) -> Notifier:
    return Notifier(token="xoxb-playground", api_url=workspace.api_url, notify=("U0CARA",))


def response_url(workspace: SlackWorkspace, *, user: str = "U0DANA", channel: str = "C0DESK") -> str:
    """One as a delivery of Slack's would bring it."""
    path = workspace._board.new_response_path(user=user, channel=channel, original_ts=None)
    return workspace.api_url.removesuffix("/api/") + path


def refused_click(**changes: object) -> Notice:
    notice = Notice(
        kind=NoticeKind.CLICK_REFUSED,
        reason=Reason.OWN_REQUEST,
        user_id="U0DANA",
        channel_id="C0DESK",
        request=PENDING,
    )
    return replace(notice, **changes)  # type: ignore[arg-type]


def posted(workspace: SlackWorkspace, notifier: Notifier) -> Message:
    channel, ts, _ = notifier.post_card(PENDING)
    card = workspace.message(channel, ts)
    assert card is not None
    return card


# Where the card goes


def test_a_card_is_posted_in_the_channel_that_was_frozen_with_the_request(
    workspace: SlackWorkspace, notifier: Notifier
) -> None:
    """Not where the command was typed; its thread is there, too."""
    elsewhere = replace(PENDING, approvals_channel_id="C0CARDS")
    channel, ts, _ = notifier.post_card(elsewhere)
    assert channel == "C0CARDS"
    ended = replace(elsewhere, state=State.DENIED, card_channel_id=channel, card_ts=ts)
    notifier.post_verdict(ended)
    assert workspace.thread("C0CARDS", ts)
    assert not workspace.messages("C0DESK")


def test_where_the_card_is_is_told_with_its_address(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """A process that has just started does not know the workspace's address yet: it asks, once."""
    there = replace(PENDING, approvals_channel_id="C0CARDS", card_channel_id="C0CARDS", card_ts="1790000000.000100")
    notice = Notice(kind=NoticeKind.CARD_ELSEWHERE, user_id="U0DANA", channel_id="C0DESK", request=there)
    for _ in range(2):
        notifier.tell(notice)
    first, second = workspace.ephemerals("U0DANA")
    assert "https://playground.slack.com/archives/C0CARDS/p1790000000000100" in first.text
    assert first.text == second.text
    assert first.channel == "C0DESK"
    assert [call.method for call in workspace.calls()].count("auth.test") == 1


def test_where_the_card_is_is_told_without_its_address_where_slack_does_not_say_who_we_are(
    workspace: SlackWorkspace, notifier: Notifier
) -> None:
    """The channel alone still leads there."""
    workspace.set_mood("error:internal_error", method="auth.test")
    there = replace(PENDING, approvals_channel_id="C0CARDS", card_channel_id="C0CARDS", card_ts="1790000000.000100")
    notifier.tell(Notice(kind=NoticeKind.CARD_ELSEWHERE, user_id="U0DANA", channel_id="C0DESK", request=there))
    (line,) = workspace.ephemerals("U0DANA")
    assert "<#C0CARDS>. The approvers decide there" in line.text


@pytest.mark.parametrize(("channel_id", "is_seen"), [("C0DESK", True), ("C0NOWHERE", False), (PRIVATE.id, False)])
def test_whether_the_bot_sees_a_channel_is_asked_without_posting(
    workspace: SlackWorkspace, notifier: Notifier, channel_id: str, *, is_seen: bool
) -> None:
    """`bot check` must not leave a message behind."""
    assert notifier.can_see_channel(channel_id) is is_seen
    assert [call.method for call in workspace.calls()] == ["chat.getPermalink"]


def test_whether_the_bot_sees_a_channel_needs_a_token_that_slack_takes(workspace: SlackWorkspace) -> None:
    """A wrong token says nothing about the channel."""
    stranger = Notifier(token="xoxb-somebody-else", api_url=workspace.api_url, notify=())
    with pytest.raises(CannotPost, match="invalid_auth"):
        stranger.can_see_channel("C0DESK")


# Who we are


def test_the_bot_learns_who_it_is(notifier: Notifier) -> None:
    """The team's id is what keeps people of other workspaces out."""
    assert notifier.who_am_i() == Identity(
        team_id="T0PLAY", team_url="https://playground.slack.com/", bot_user_id="U0BOT"
    )


@pytest.mark.parametrize("word", ["account_inactive", "invalid_auth", "not_authed", "token_expired", "token_revoked"])
def test_a_token_that_slack_does_not_take_is_told_apart(
    workspace: SlackWorkspace, notifier: Notifier, word: str
) -> None:
    """Only a person can mend it, and only if the word reaches them."""
    workspace.set_mood(f"error:{word}", method="auth.test")

    with pytest.raises(CannotPost, match=word):
        notifier.who_am_i()


def test_a_wrong_token_is_refused_by_slack_itself(workspace: SlackWorkspace) -> None:
    """Not a mood: this is what a slip in SLACK_BOT_TOKEN does."""
    stranger = Notifier(token="xoxb-somebody-else", api_url=workspace.api_url, notify=())

    with pytest.raises(CannotPost, match="invalid_auth"):
        stranger.who_am_i()


@pytest.mark.parametrize("mood", ["away", "http_500", "error:internal_error", "error:ratelimited", "ratelimited"])
def test_a_slack_that_is_away_passes(workspace: SlackWorkspace, notifier: Notifier, mood: str) -> None:
    """The bot starts while Slack has an outage, and asks again until it knows."""
    workspace.set_mood(mood, method="auth.test", times=1)

    with pytest.raises(TryLater):
        notifier.who_am_i()
    assert notifier.who_am_i().team_id == "T0PLAY"


# Errors, sorted


@pytest.mark.parametrize("word", sorted(PERMANENT_ERRORS))
def test_what_slack_will_refuse_again_is_not_tried_again(
    workspace: SlackWorkspace, notifier: Notifier, word: str
) -> None:
    """A card that can never be posted must end its request instead of keeping it pending for ever."""
    workspace.set_mood(f"error:{word}")

    with pytest.raises(CannotPost) as caught:
        notifier.post_card(PENDING)

    assert caught.value.error == word


@pytest.mark.parametrize(
    "word",
    ["internal_error", "fatal_error", "service_unavailable", "invalid_auth", "missing_scope", "a_word_of_next_year"],
)
def test_what_may_pass_is_tried_again(workspace: SlackWorkspace, notifier: Notifier, word: str) -> None:
    """A token that is being replaced, an outage, an unknown word: giving up would lose somebody's verdict."""
    workspace.set_mood(f"error:{word}")

    with pytest.raises(TryLater, match=word):
        notifier.post_card(PENDING)


@pytest.mark.parametrize("mood", ["away", "http_500", "drop_answer_after_doing", "fatal_error_after_doing"])
def test_a_call_that_breaks_is_tried_again_by_the_row_and_never_by_itself(
    workspace: SlackWorkspace, notifier: Notifier, mood: str
) -> None:
    """slack_sdk's own retries would post a second card within one call."""
    workspace.set_mood(mood, method="chat.postMessage", times=1)

    with pytest.raises(TryLater):
        notifier.post_card(PENDING)

    assert len(workspace.calls("chat.postMessage")) == 1


def test_a_slack_that_hangs_is_given_up_before_the_lease_ends(workspace: SlackWorkspace) -> None:
    """slack_sdk waits 30 s by default, as long as a lease: two would then draw the same card."""
    impatient = Notifier(token="xoxb-playground", api_url=workspace.api_url, notify=(), timeout_s=1)
    workspace.set_mood("slow", method="chat.postMessage", delay_s=60)

    with pytest.raises(TryLater):
        impatient.post_card(PENDING)

    workspace.clear_moods()


def test_slack_says_when_to_come_back(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """Who asks sooner is limited for longer."""
    workspace.set_mood("ratelimited", retry_after_s=17)

    with pytest.raises(TryLater) as caught:
        notifier.post_card(PENDING)

    assert caught.value.retry_after_s == 17.0


def test_an_absurd_time_to_wait_is_cut(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """A wrong header must not silence a card for a day."""
    workspace.set_mood("ratelimited", retry_after_s=10_000_000)

    with pytest.raises(TryLater) as caught:
        notifier.post_card(PENDING)

    assert caught.value.retry_after_s == 3600.0


@pytest.mark.parametrize("mood", ["error:invalid_auth", "away", "http_500", "ratelimited"])
def test_no_error_holds_the_token(workspace: SlackWorkspace, notifier: Notifier, mood: str) -> None:
    """slack_sdk's errors carry the request; ours go into the log."""
    workspace.set_mood(mood)

    with pytest.raises(MessengerError) as caught:
        notifier.post_card(PENDING)

    assert "xoxb" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


# The card and its thread


def test_a_card_is_posted_where_the_command_was_typed(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """With buttons that carry the request's id, which is all that a click is resolved by."""
    card = posted(workspace, notifier)

    assert card.channel == "C0DESK"
    assert [(button.action_id, button.value) for button in card.buttons] == [
        ("approve", "42"),
        ("deny", "42"),
        ("deny_with_reason", "42"),
        ("withdraw", "42"),
    ]
    assert card.metadata == {"event_type": "cancel_request", "event_payload": {"request_id": 42}}
    assert card.unfurl_links is False


def test_a_new_card_calls_those_who_are_to_be_called_and_nobody_else(
    workspace: SlackWorkspace, notifier: Notifier
) -> None:
    """Who may approve is not who is pinged: the approver's name comes with an edit, which pings nobody."""
    card = posted(workspace, notifier)
    assert "<@U0CARA>" in card.text
    assert "<@U0BEN>" not in card.text

    notifier.redraw_card(PENDING, channel_id=card.channel, ts=card.ts)

    redrawn = workspace.message(card.channel, card.ts)
    assert redrawn is not None
    assert "<@U0BEN>" in redrawn.text


def test_a_card_posted_twice_is_marked_as_the_same(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """A lost answer leads to a second post; where Slack looks at client_msg_id, it can tell."""
    first, second = posted(workspace, notifier), posted(workspace, notifier)

    assert first.client_msg_id == second.client_msg_id is not None


def test_two_requests_are_never_marked_as_the_same(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """Else Slack might drop the second card, and nobody could approve it."""
    first = posted(workspace, notifier)
    notifier.post_card(replace(PENDING, id=43, trigger_id="trigger-43"))

    second = workspace.messages("C0DESK")[-1]
    assert second.client_msg_id != first.client_msg_id


def test_redrawing_takes_the_buttons_away(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """A button that stays after the decision invites a click that means nothing."""
    card = posted(workspace, notifier)

    notifier.redraw_card(DENIED, channel_id=card.channel, ts=card.ts)

    redrawn = workspace.message(card.channel, card.ts)
    assert redrawn is not None
    assert redrawn.buttons == ()


def test_a_card_that_was_deleted_cannot_be_redrawn(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """Somebody tidied the channel: the decision does not depend on it."""
    with pytest.raises(CannotPost, match="message_not_found"):
        notifier.redraw_card(DENIED, channel_id="C0DESK", ts="1.000001")


def test_the_verdict_goes_into_the_cards_thread(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """Whoever reads the card finds what came of it under it."""
    card = posted(workspace, notifier)

    told = notifier.post_verdict(replace(DENIED, card_channel_id=card.channel, card_ts=card.ts))

    (verdict,) = workspace.thread(card.channel, card.ts)
    assert told == (card.channel, verdict.ts, None)
    assert "Denied" in verdict.text


def test_the_reminder_goes_into_the_cards_thread_as_one_line(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """Where the card is, and in a new message, which calls the people that it names."""
    card = posted(workspace, notifier)

    notifier.post_reminder(replace(PENDING, card_channel_id=card.channel, card_ts=card.ts), may_still_approve=["U0BEN"])

    (reply,) = workspace.thread(card.channel, card.ts)
    (line,) = workspace.words(reply)
    assert line.startswith("Request #42 still needs 1 approval and expires 2026-11-23 10:00 UTC")
    assert "<@U0CARA>" in reply.text


@pytest.mark.parametrize(
    ("mood", "surely"),
    [("ratelimited", True), ("http_500", False), ("away", False), ("fatal_error_after_doing", False)],
)
def test_only_a_rate_limit_surely_posted_nothing(
    workspace: SlackWorkspace, notifier: Notifier, mood: str, *, surely: bool
) -> None:
    """What may have been posted is not posted again where once is the most."""
    card = posted(workspace, notifier)
    reminded = replace(PENDING, card_channel_id=card.channel, card_ts=card.ts)
    workspace.set_mood(mood, method="chat.postMessage")

    with pytest.raises(TryLater) as caught:
        notifier.post_reminder(reminded, may_still_approve=["U0BEN"])
    assert caught.value.nothing_done is surely
    workspace.clear_moods()
    if surely:  # and the next one waits for its turn, without asking
        with pytest.raises(TryLater, match="not_our_turn") as caught:
            notifier.post_reminder(reminded, may_still_approve=["U0BEN"])
        assert caught.value.nothing_done


def test_a_verdict_without_a_card_is_refused(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """Then the workflow owes the requester a private line instead."""
    with pytest.raises(CannotPost, match="thread_not_found"):
        notifier.post_verdict(replace(DENIED, card_channel_id="C0DESK", card_ts="1.000001"))


# Private lines


def test_a_private_line_goes_through_the_response_url(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """It needs no membership: it reaches people in channels where the bot may not post."""
    notifier.tell(refused_click(response_url=response_url(workspace, channel=PRIVATE.id)))

    (told,) = workspace.ephemerals("U0DANA")
    assert told.channel == PRIVATE.id
    assert "you may not approve it" in told.text
    assert workspace.calls("chat.postEphemeral") == []


def test_a_private_line_does_not_replace_the_card(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """The response_url of a click belongs to the card: without care the refusal would take the card's place."""
    card = posted(workspace, notifier)
    path = workspace._board.new_response_path(user="U0DANA", channel=card.channel, original_ts=card.ts)

    notifier.tell(refused_click(response_url=workspace.api_url.removesuffix("/api/") + path))

    assert workspace.message(card.channel, card.ts) == card


def test_a_used_up_response_url_is_followed_by_an_ephemeral_message(
    workspace: SlackWorkspace, notifier: Notifier
) -> None:
    """Slack takes five answers."""
    url = response_url(workspace)
    for _ in range(5):
        assert notifier.respond(url, "again")
    assert not notifier.respond(url, "once too often")

    notifier.tell(refused_click(response_url=url))

    assert [call.outcome for call in workspace.calls("chat.postEphemeral")] == ["ok"]
    assert "you may not approve it" in workspace.ephemerals("U0DANA")[-1].text


def test_an_expired_response_url_is_followed_by_an_ephemeral_message(
    workspace: SlackWorkspace, notifier: Notifier, clock: Time
) -> None:
    """After an outage of half an hour the person is still told."""
    url = response_url(workspace)
    clock.now += 31 * 60

    notifier.tell(refused_click(response_url=url))

    assert [call.outcome for call in workspace.calls("chat.postEphemeral")] == ["ok"]


def test_where_the_bot_may_not_post_the_line_is_a_direct_message(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """The last way that is left, and no refusal is met with silence."""
    notifier.tell(refused_click(channel_id=PRIVATE.id))

    assert [call.outcome for call in workspace.calls("chat.postEphemeral")] == ["channel_not_found"]
    (told,) = workspace.dms("U0DANA")
    assert "you may not approve it" in told.text


def test_who_can_be_reached_in_no_way_is_given_up(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """Else the line would be tried until it expires, every minute."""
    workspace.set_messages_tab(enabled=False)

    with pytest.raises(CannotPost, match="messages_tab_disabled"):
        notifier.tell(refused_click(channel_id=PRIVATE.id))


@pytest.mark.parametrize("mood", ["away", "http_500", "ratelimited"])
def test_a_response_url_that_fails_for_now_is_tried_again(
    workspace: SlackWorkspace, notifier: Notifier, mood: str
) -> None:
    """An answer by another way now, and the same answer by the first way later, would be two."""
    workspace.set_mood(mood, method="response_url", times=1)
    notice = refused_click(response_url=response_url(workspace))

    with pytest.raises(TryLater):
        notifier.tell(notice)
    assert workspace.ephemerals("U0DANA") == []
    notifier.tell(notice)

    assert len(workspace.ephemerals("U0DANA")) == 1


def test_an_ephemeral_message_that_fails_for_now_is_no_direct_message(
    workspace: SlackWorkspace, notifier: Notifier
) -> None:
    """A passing error is a reason to wait, not to write elsewhere."""
    workspace.set_mood("error:internal_error", method="chat.postEphemeral")

    with pytest.raises(TryLater):
        notifier.tell(refused_click())

    assert workspace.dms("U0DANA") == []


def test_a_verdict_that_the_thread_does_not_take_is_a_direct_message(
    workspace: SlackWorkspace, notifier: Notifier
) -> None:
    """It is worth more than an ephemeral message, which is gone with the next reload."""
    told_in = replace(DENIED, card_channel_id="C0DESK", card_ts="1.000001")

    notifier.tell(Notice(kind=NoticeKind.VERDICT, user_id="U0DANA", channel_id="C0DESK", request=told_in))

    (told,) = workspace.dms("U0DANA")
    assert "Denied" in told.text
    assert workspace.calls("chat.postEphemeral") == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (NoticeKind.STILL_READING, "Upbit is slow"),
        (NoticeKind.REQUEST_REFUSED, "was refused, and nothing was sent"),
    ],
)
def test_each_kind_of_line_has_its_words(
    workspace: SlackWorkspace, notifier: Notifier, kind: NoticeKind, words: str
) -> None:
    """A kind without words would be a silence."""
    refused = replace(PENDING, state=State.REFUSED, cause=Reason.ORDER_NOT_FOUND.value)

    notifier.tell(Notice(kind=kind, user_id="U0DANA", channel_id="C0DESK", request=refused))

    assert words in workspace.ephemerals("U0DANA")[-1].text


@pytest.mark.parametrize("kind", [NoticeKind.STILL_READING, NoticeKind.REQUEST_REFUSED, NoticeKind.VERDICT])
def test_a_line_about_a_request_that_is_not_there_is_given_up(notifier: Notifier, kind: NoticeKind) -> None:
    """Nothing true can be said about it, and trying again would not help."""
    with pytest.raises(CannotPost):
        notifier.tell(Notice(kind=kind, user_id="U0DANA", channel_id="C0DESK"))


def test_a_click_on_an_unknown_request_is_answered(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """A card of another database still has buttons, and somebody presses them."""
    notifier.tell(refused_click(reason=Reason.UNKNOWN_REQUEST, request=None))

    assert "does not know the request" in workspace.ephemerals("U0DANA")[-1].text


# Forms


FORM = {"type": "modal", "title": {"type": "plain_text", "text": "A form"}, "blocks": [{"type": "divider"}]}


def test_a_form_opens_before_who_clicked(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """Whose trigger it is decides; and a delivery that comes twice opens it once and is no failure."""
    workspace.command("U0DANA", "C0DESK", "", trigger_id="trigger-1")

    notifier.open_view("trigger-1", FORM)
    notifier.open_view("trigger-1", FORM)

    assert [view.title for view in workspace.views("U0DANA")] == ["A form"]
    assert workspace.views("U0BEN") == []


def test_a_form_for_which_it_is_too_late_is_not_tried_again(
    workspace: SlackWorkspace, notifier: Notifier, clock: Time
) -> None:
    """A trigger lives 3 s; what is left then is to say so."""
    workspace.command("U0DANA", "C0DESK", "", trigger_id="trigger-1")
    clock.now += 3.0

    with pytest.raises(MessengerError, match="expired_trigger_id"):
        notifier.open_view("trigger-1", FORM)
    assert len(workspace.calls("views.open")) == 1


@pytest.mark.parametrize("mood", ["away", "http_500", "ratelimited", "drop_answer_after_doing", "error:ratelimited"])
def test_a_form_is_asked_for_once(workspace: SlackWorkspace, notifier: Notifier, mood: str) -> None:
    """A listener waits for it: there is no time for a second try."""
    workspace.command("U0DANA", "C0DESK", "", trigger_id="trigger-1")
    workspace.set_mood(mood, method="views.open")

    with pytest.raises(MessengerError):
        notifier.open_view("trigger-1", FORM)
    assert len(workspace.calls("views.open")) == 1


CHOOSING = Form(id="choose_order:trigger-1", trigger_id="trigger-1", channel_id="C0DESK", in_private=False)


def test_a_form_is_filled_by_the_id_that_we_gave_it(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """Also where the answer that would have told Slack's own id was lost."""
    workspace.command("U0DANA", "C0DESK", "", trigger_id="trigger-1")
    workspace.set_mood("drop_answer_after_doing", method="views.open", times=1)
    with pytest.raises(TryLater):
        notifier.open_view("trigger-1", views.loading(CHOOSING))
    notifier.fill_form(CHOOSING, Choice())

    (view,) = workspace.views("U0DANA")
    assert "There are no open orders at Upbit" in "\n".join(workspace.words(view))


def test_a_form_that_nobody_has_open_is_not_filled_for_ever(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """The person closed it; any other trouble of Slack's passes."""
    with pytest.raises(CannotPost):
        notifier.fill_form(CHOOSING, Choice())
    workspace.command("U0DANA", "C0DESK", "", trigger_id="trigger-1")
    notifier.open_view("trigger-1", views.loading(CHOOSING))
    workspace.set_mood("ratelimited", method="views.update", times=1)
    with pytest.raises(TryLater):
        notifier.fill_form(CHOOSING, Choice())
    notifier.fill_form(CHOOSING, Choice())


def test_a_slack_that_hangs_is_given_up_in_time_for_the_answer(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """Slack waits 3 s for the listener, which waits 1.5 s for Slack."""
    workspace.command("U0DANA", "C0DESK", "", trigger_id="trigger-1")
    workspace.set_mood("slow", method="views.open", delay_s=30.0)
    began = time.monotonic()

    with pytest.raises(TryLater):
        notifier.open_view("trigger-1", FORM)
    assert OPEN_VIEW_TIMEOUT_S <= time.monotonic() - began < 2.5


def test_slow_forms_leave_threads_for_clicks(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """Each form that Slack keeps waiting holds a thread of those that take approvals, too."""
    workspace.set_mood("slow", method="views.open", delay_s=30.0)

    def open_one() -> None:
        notifier.open_view("trigger-1", FORM)

    failures = at_once(*[open_one] * (MAX_OPENING + 1))

    assert [str(failure) for failure in failures].count("too_many_forms") == 1
    workspace.clear_moods()
    workspace.command("U0DANA", "C0DESK", "", trigger_id="trigger-2")
    notifier.open_view("trigger-2", FORM)
    assert len(workspace.views("U0DANA")) == 1


# The Home tab


def home_of(user_id: str) -> HomeView:
    return HomeView(
        person=Actor(id=user_id, team_id="T0PLAY"),
        drawn_at=datetime(2026, 11, 23, 9, 0, tzinfo=UTC),
        waiting=Listed(),
        asked=Listed(),
        outcomes=(),
        health=Health(is_worker_alive=True, exchange=ExchangeHealth()),
    )


def test_a_home_is_published_once_it_is_known_where_its_links_lead(
    workspace: SlackWorkspace, notifier: Notifier
) -> None:
    """Before Slack has told the workspace's address there is nothing to link to: it is drawn a moment later."""
    with pytest.raises(TryLater, match="not_known_yet"):
        notifier.publish_home(home_of("U0DANA"))
    notifier.who_am_i()
    notifier.publish_home(home_of("U0DANA"))
    shown = workspace.home("U0DANA")
    assert shown is not None
    assert workspace.words(shown)[0] == "Cancel requests"


@pytest.mark.parametrize("error", ["user_not_found", "not_enabled", "view_too_large", "invalid_arguments"])
def test_a_home_that_slack_will_refuse_again_is_told_apart(
    workspace: SlackWorkspace, notifier: Notifier, error: str
) -> None:
    """A person who is gone, or an app without a Home tab: asking every minute would help nobody."""
    notifier.who_am_i()
    workspace.set_mood(f"error:{error}", method="views.publish", times=1)
    with pytest.raises(CannotPost, match=error):
        notifier.publish_home(home_of("U0DANA"))


@pytest.mark.parametrize("mood", ["ratelimited", "http_500", "away", "error:account_inactive", "error:internal_error"])
def test_a_home_that_may_be_taken_later_is_tried_again(
    workspace: SlackWorkspace, notifier: Notifier, mood: str
) -> None:
    """Also where the app was uninstalled: it may be installed again within the minute."""
    notifier.who_am_i()
    workspace.set_mood(mood, method="views.publish", times=1, retry_after_s=7)
    with pytest.raises(TryLater) as caught:
        notifier.publish_home(home_of("U0DANA"))
    assert caught.value.retry_after_s == (7.0 if mood == "ratelimited" else 0.0)


# Checkpoints


SIGNED = Signer("11" * 32).sign(Checkpoint(seq=12, hash="9f" * 32, at="2026-11-23T09:00:00.000000Z"))


def test_a_checkpoint_can_be_copied_back_out_of_slack(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """An auditor has nothing else a year later; and a lost answer must not put two of them there."""
    channel, ts = notifier.post_checkpoint(SIGNED, channel_id="C0CARDS")
    notifier.post_checkpoint(SIGNED, channel_id="C0CARDS")
    message = workspace.message(channel, ts)
    assert message is not None
    assert parse_checkpoints(message.blocks[1]["text"]["text"]) == (SIGNED,)
    assert message.metadata == {"event_type": "audit_checkpoint", "event_payload": {"seq": 12, "hash": "9f" * 32}}
    ids = {call.arguments["client_msg_id"] for call in workspace.calls("chat.postMessage")}
    assert len(ids) == 1


def test_a_checkpoint_waits_for_its_turn_as_cards_do(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """Slack counts a channel's messages together: neither must drive the other out."""
    workspace.set_mood("ratelimited", method="chat.postMessage", times=1, retry_after_s=30)
    with pytest.raises(TryLater):
        notifier.post_card(replace(PENDING, approvals_channel_id="C0CARDS"))
    with pytest.raises(TryLater, match="not_our_turn"):
        notifier.post_checkpoint(SIGNED, channel_id="C0CARDS")
    with pytest.raises(TryLater, match="not_our_turn"):
        notifier.post_broken_audit("event 3 is missing", channel_id="C0CARDS")
    assert notifier.post_checkpoint(SIGNED, channel_id="C0DESK")[0] == "C0DESK"


def test_a_channel_without_the_bot_gets_no_checkpoint(workspace: SlackWorkspace, notifier: Notifier) -> None:
    """It says so, and the row keeps it."""
    with pytest.raises(CannotPost, match="channel_not_found"):
        notifier.post_checkpoint(SIGNED, channel_id="C0NOWHERE")
    notifier.post_broken_audit("event 3 is missing", channel_id="C0DESK")
    (told,) = workspace.messages("C0DESK")
    assert "event 3 is missing" in told.text
