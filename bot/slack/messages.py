"""Every sentence and block that the bot shows. Pure: a function per sentence, no I/O, no clock.

What a person typed or the exchange sent never stands bare: it is escaped and cut, and stands in a code span
(`literal`), where Slack formats, links and mentions nothing; only words of a harmless shape (`BTC`, `KRW-BTC`) go
without.

https://docs.slack.dev/messaging/formatting-message-text
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from bot.choosing import Trouble
from bot.domain.approval import MAX_REASON_CHARS
from bot.domain.audit import Reason
from bot.domain.cancel_request import (
    VERDICT_STATES,
    CanceledBy,
    CancelRequest,
    Decision,
    DecisionKind,
    State,
    Verdict,
)
from bot.domain.checkpoint import SignedCheckpoint
from bot.domain.order import Order, OrderState
from bot.domain.quote import Distance, Side, distance
from bot.domain.tiers import remaining_value
from bot.exporting import MAX_BYTES, MAX_EVENTS, Export, ExportFile
from bot.inquiry import Listing, Status, Wanted
from bot.slack.typed import typed

ACTION_APPROVE: Final = "approve"
ACTION_DENY: Final = "deny"
ACTION_DENY_WITH_REASON: Final = "deny_with_reason"
ACTION_WITHDRAW: Final = "withdraw"
EVENT_TYPE: Final = "cancel_request"
CHECKPOINT_EVENT_TYPE: Final = "audit_checkpoint"

# Slack's limits: https://docs.slack.dev/reference/block-kit/blocks and …/composition-objects
HEADER_CHARS: Final = 150
SECTION_CHARS: Final = 3000
FIELDS: Final = 10  # fields of one section
CONFIRM_TITLE_CHARS: Final = 100
CONFIRM_CHARS: Final = 300
TEXT_CHARS: Final = 4000  # what Slack advises for `text`: https://docs.slack.dev/reference/methods/chat.postMessage

# Our own: what still reads well
REASON_CHARS: Final = 1000
WORD_CHARS: Final = 200
SAID_CHARS: Final = 300
NAMES_SHOWN: Final = 12
LEAST_PERCENT: Final = Decimal("0.01")
MOST_PERCENT: Final = 10_000

Block = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """What `chat.postMessage` and `chat.update` take; `text` is the notification and what a screen reader reads."""

    text: str
    blocks: list[Block]
    metadata: dict[str, Any] | None = None


# --- Small pieces ---------------------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """Text that can neither ping, link nor leave its place: one line, nothing invisible, no backtick.

    Controls, bidi overrides, zero-width characters and lone surrogates become �, so that a reader sees them.
    """
    one_line = " ".join(text.split())
    visible = "".join("\ufffd" if unicodedata.category(char) in _INVISIBLE else char for char in one_line)
    return visible.replace("`", "'").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co"})


def cut(text: str, limit: int) -> str:
    """The text within the limit, a mark where something is missing, and no escaped character cut in half."""
    if _size(text) <= limit:
        return text
    kept = text.encode("utf-16-le", "replace")[: 2 * (limit - 1)].decode("utf-16-le", "ignore")
    if kept.rfind("&") > kept.rfind(";"):
        kept = kept[: kept.rfind("&")]
    return kept.rstrip() + "…"


def _size(text: str) -> int:
    """The length with an emoji as two: Slack does not say how it counts them."""
    return len(text.encode("utf-16-le", "replace")) // 2


def literal(text: str, limit: int = WORD_CHARS) -> str:
    """Foreign text as it was typed or sent, in a code span."""
    return f"`{cut(escape(text), limit) or '(empty)'}`"


def word(text: str) -> str:
    """A foreign word, bare where its shape is harmless."""
    return text if _HARMLESS.fullmatch(text) else literal(text)


_HARMLESS: Final = re.compile(r"(?=.{1,40}\Z)[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*", re.ASCII)


def mention(user_id: str) -> str:
    """A person or a user group by id; an actor that is not in Slack (`cli:<login>`) by its own name."""
    if _PERSON.fullmatch(user_id):
        return f"<@{user_id}>"
    return f"<!subteam^{user_id}>" if _GROUP.fullmatch(user_id) else literal(user_id)


_PERSON: Final = re.compile(r"[UW][A-Z0-9]{1,30}", re.ASCII)
_GROUP: Final = re.compile(r"S[A-Z0-9]{1,30}", re.ASCII)


def channel(channel_id: str) -> str:
    """A channel by id; Slack has no name to show for a direct message (`D…`)."""
    if _CHANNEL.fullmatch(channel_id):
        return "this direct message" if channel_id.startswith("D") else f"<#{channel_id}>"
    return literal(channel_id)


_CHANNEL: Final = re.compile(r"[CDG][A-Z0-9]{1,30}", re.ASCII)


def when(moment: datetime) -> str:
    """The moment in the reader's own time zone, in UTC where a client cannot do that."""
    fallback = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"<!date^{int(moment.timestamp())}^{{date_short_pretty}} {{time}}|{fallback}>"


def _to_the_second(moment: datetime) -> str:
    fallback = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"<!date^{int(moment.timestamp())}^{{date_short_pretty}} {{time_secs}}|{fallback}>"


def amount(value: Decimal | None, currency: str) -> str:
    """Every digit there is, thousands separated, no trailing zeros, never 1E+8."""
    if value is None:
        return "not known"
    digits = format(value, ",f")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    digits = "0" if digits == "-0" else digits
    return f"{digits} {word(currency)}" if currency else digits


def permalink(workspace_url: str, channel_id: str, ts: str) -> str:
    """A message's address, from the `url` of auth.test; the same as chat.getPermalink gives, without asking."""
    return f"{workspace_url.rstrip('/')}/archives/{channel_id}/p{ts.replace('.', '')}"


def card_link(request: CancelRequest, workspace_url: str | None) -> str | None:
    """The card's address, None where it or the workspace's is not known."""
    if workspace_url is None or request.card_channel_id is None or request.card_ts is None:
        return None
    return permalink(workspace_url, request.card_channel_id, request.card_ts)


def linked(url: str | None, label: str) -> str:
    """The label, linked where there is an address that can be linked."""
    return f"<{url.replace('&', '&amp;')}|{label}>" if url and _URL.fullmatch(url) else label


_URL: Final = re.compile(r"https?://[^\s<>|`]{1,500}", re.ASCII)


def _listed(items: Iterable[str]) -> str:
    """The items once each, the first twelve of a long list."""
    unique = list(dict.fromkeys(items))
    more = len(unique) - NAMES_SHOWN
    return ", ".join(unique[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _people(user_ids: Iterable[str]) -> str:
    return _listed(mention(user_id) for user_id in user_ids)


def _approvals(count: int) -> str:
    return "1 approval" if count == 1 else f"{count} approvals"


def _typed_command(request: CancelRequest) -> str:
    return f"`/cancel {cut(escape(request.order_uuid), WORD_CHARS)}`"


# --- What /cancel answers at once, to the person who typed it -------------------------------------------------------


def usage() -> str:
    return (
        "Type `/cancel &lt;uuid&gt; [reason]` to ask for an order at Upbit to be canceled: the order's uuid, then, if "
        "you like, why. For example `/cancel cdd92199-2897-4e14-9448-f923320408ad wrong price`. The order is "
        "canceled only after somebody who may approve has agreed. `/cancel help` says what else you can ask."
    )


def command_refused(  # noqa: PLR0913 - each sentence has its facts
    reason: Reason,
    *,
    open_request: CancelRequest | None = None,
    link: str | None = None,
    text: str = "",
    limit: int | None = None,
    channels: Iterable[str] = (),
) -> str:
    """Why a command made no request. `text` is what was typed, `link` leads to the card of the open request.

    `channels` are those where it may be typed.
    """
    sentences = {
        Reason.USAGE: usage(),
        Reason.NOT_A_UUID: _not_a_uuid(text),
        Reason.NOT_A_QUESTION: _not_a_question(text),
        Reason.NOT_A_REQUESTER: _not_a_requester(),
        Reason.MEMBERSHIP_UNKNOWN: _unknown_requester(),
        Reason.OTHER_WORKSPACE: _from_another_workspace(),
        Reason.CHANNEL_NOT_ALLOWED: _channel_not_allowed(channels),
        Reason.ORDER_HAS_OPEN_REQUEST: _order_has_open_request(open_request, link),
        Reason.TOO_MANY_OPEN_REQUESTS: _too_many_open_requests(limit),
        Reason.NOT_AN_AUDITOR: _not_an_auditor(),
        Reason.EXPORT_WAITING: _export_waiting(),
    }
    return sentences.get(reason) or f"This was refused ({word(reason)}), and nothing was done. {_ASK_WHY}"


_ASK_WHY: Final = "Ask whoever runs this bot why."


def _not_a_uuid(text: str) -> str:
    typed = f"{literal(text, 100)} is" if text.strip() else "That is"
    return (
        f"{typed} not the uuid of an order, so nothing was done. A uuid looks like "
        "`cdd92199-2897-4e14-9448-f923320408ad`: copy it from Upbit and type `/cancel &lt;uuid&gt; [reason]`."
    )


def _not_a_question(text: str) -> str:
    return (
        f"{literal(text, 100)} was not understood, and nothing was done. Ask with {_QUESTIONS}; `/cancel help` says "
        "what each of them tells."
    )


_QUESTIONS: Final = (
    "`/cancel status &lt;uuid or #n&gt;`, `/cancel open`, or `/cancel history` with any of: a uuid, `#n`, `@user`, "
    "`me`, a market such as `KRW-BTC`, `since 2026-11-01`"
)


def _not_a_requester() -> str:
    return (
        "You may not ask for a cancel here, so nothing was done. Whoever runs this bot can add you to the people who "
        "may ask (`REQUESTERS`)."
    )


def _unknown_requester() -> str:
    return (
        "The bot could not read the user groups that say who may ask here, so it cannot tell whether you may. Nothing "
        f"was done. {_TRY_IN_A_MINUTE}"
    )


_TRY_IN_A_MINUTE: Final = "Try again in a minute; if it stays so, tell whoever runs this bot."


def _from_another_workspace() -> str:
    return (
        "This bot works for people of its own workspace only, and you belong to another one. Nothing was done; ask "
        "somebody of this workspace to type the command."
    )


def _channel_not_allowed(channels: Iterable[str]) -> str:
    places = _listed("a direct message" if each.startswith("D") else channel(each) for each in sorted(channels))
    where = f"in: {places}" if places else "in other channels"
    return f"`/cancel` may not be used here, so nothing was done. Type it {where} (`CHANNELS`)."


def _order_has_open_request(open_request: CancelRequest | None, link: str | None) -> str:
    if open_request is None:
        return "Somebody has already asked for this order, and that is still open. Nothing new was done; use its card."
    asked = f"{mention(open_request.requester.id)} has already asked for this order to be canceled"
    return f"{asked}: {linked(link, f'request #{open_request.id}')} is still open. Nothing new was done; use its card."


def _too_many_open_requests(limit: int | None) -> str:
    most = f"{limit} open requests, the most" if limit is not None else "as many open requests as"
    return f"You have {most} that one person may have. Nothing was done; try again when some of them have ended."


def recorded(request_id: int) -> str:
    return f"Request #{request_id} is recorded; reading the order…"


def nothing_was_done() -> str:
    return (
        "This could not be written down, so nothing was done. Try again in a minute; if it stays so, tell whoever "
        "runs this bot."
    )


def in_doubt() -> str:
    return "I could not confirm this; look at the card before you try again."


def starting() -> str:
    return "The bot is just starting, and nothing was done. Try again in a few seconds."


def unknown_button() -> str:
    return (
        "This version of the bot does not know that button, and nothing was done. Ask again with "
        "`/cancel &lt;uuid&gt;`, and use the buttons of the new card."
    )


def form_did_not_open() -> str:
    return (
        "The form could not be opened in time, and nothing was done; should it appear all the same, close it. Type "
        "`/cancel` again, or name the order yourself: `/cancel &lt;uuid&gt; [reason]`."
    )


def form_is_loading() -> str:
    return (
        "*loading…* The open orders are being read from Upbit. If nothing appears here within ten seconds or so, close "
        "this and type `/cancel` again, or name the order yourself: `/cancel &lt;uuid&gt; [reason]`."
    )


def no_open_orders() -> str:
    return (
        "There are no open orders at Upbit, so there is nothing to cancel. An order placed just now is here when you "
        "type `/cancel` again."
    )


def more_open_orders(count: int) -> str:
    return f"Only {count} orders are here. For any other one type `/cancel &lt;uuid&gt; [reason]`."


def orders_not_listed(trouble: Trouble) -> str:
    """Why the form offers no orders, and what to do instead."""
    why = {
        "away": "Upbit cannot be reached just now, so the open orders are not known.",
        "busy": "Upbit does not take more questions from the bot just now, so the open orders are not known.",
        "key_lacks_view": (
            "The bot's Upbit key may not read orders: it lacks the permission 주문조회 (View Orders), which whoever "
            "runs this bot can add at Upbit. Until then, cancel the order at Upbit by hand."
        ),
        "refused": "Upbit would not show the open orders. Tell whoever runs this bot.",
    }[trouble]
    step = " You can name the order here by its uuid; the bot reads it as soon as it can."
    return why if trouble == "key_lacks_view" else why + step


def not_a_uuid_in_form() -> str:
    """Plain text, under the input."""
    return (
        "That is not the uuid of an order. A uuid looks like cdd92199-2897-4e14-9448-f923320408ad: copy it from Upbit."
    )


def recorded_from_form(request_id: int, channel_id: str) -> str:
    return (
        f"Request #{request_id} is recorded; the order is being read. Its card comes to {channel(channel_id)}; if the "
        "request is refused instead, you are told privately."
    )


def unknown_form() -> str:
    return (
        "This version of the bot does not know that form, so what you filled in was not read, and nothing was done. "
        "Close it, and begin again from the card or with `/cancel`."
    )


def no_reason() -> str:
    return "Nothing was done yet: say why, or go back and press Deny, which needs no reason."


def reason_too_long() -> str:
    return f"Nothing was done yet: this is too long. Say it in at most {MAX_REASON_CHARS:,} characters."


def denying(request: CancelRequest) -> str:
    """What a form is about that asks why somebody denies."""
    order = request.order_now or request.order
    return (
        f"{mention(request.requester.id)} asks for {_what_is_canceled(order) if order else 'an order'} to be canceled. "
        f"Denying ends request #{request.id} at once, and nothing is sent to Upbit."
    )


# --- What questions are answered, to the person who asked -----------------------------------------------------------


def help_text() -> str:
    """Every way to type the command."""
    return (
        "*To ask for an order to be canceled*\n"
        "• `/cancel &lt;uuid&gt; [reason]`: the order's uuid at Upbit and, if you like, why. It is canceled only after "
        "enough people who may approve have agreed.\n"
        "*To ask about requests* (only you see the answer)\n"
        "• `/cancel status &lt;uuid or #n&gt;`: what has become of one request, and what comes next.\n"
        "• `/cancel open`: what is not over yet, the newest first.\n"
        "• `/cancel history`: all requests, the newest first. Narrow it down with a uuid, `#n`, `@user` (or `me`), "
        "a market such as `KRW-BTC`, `since 2026-11-01` (UTC), or several of these; `open` takes them, too.\n"
        "*To have the audit exported* (for the auditors of this bot)\n"
        "• `/cancel export`: all events, as a file in a direct message. Narrow it down as above (a person by their "
        "member ID, such as `@U0BEN`), or with `until 2026-12-01`, `action cancel.sent`, `outcome refused`, "
        "`reason own_request`, `over 50000000` (KRW), `own` (approved by who had asked); `jsonl` gives one JSON object "
        "a line instead of CSV.\n"
        "Requests from private channels and direct messages are shown only to those who asked, may approve or have "
        "decided, and to whoever types the question in that same place."
    )


def could_not_be_read() -> str:
    return (
        "The answer could not be read from the database just now; nothing was changed. Try again in a minute, and if "
        "it stays so, tell whoever runs this bot."
    )


def status(found: Status, *, workspace_url: str) -> str:
    """One request in plain words: what is true, what comes next, who did what and when, and where its card is."""
    request = found.request
    if request is None:
        return (
            "There is no such request that you may see. `/cancel history` lists those that you may; those from private "
            "channels are shown where they were made, and to the people they concern."
        )
    order = request.order_now or request.order
    facts = [(label, value) for name, label, value in _facts(order) if name in _ON_THE_CARD] if order else []
    others = Wanted(order_uuid=request.order_uuid)
    lines = [
        f"*Request #{request.id}:* {_STATE_WORDS[request.state]}",
        _story(request),
        f"*Next:* {_next(request)}",
        f"*Card:* {_where_the_card_is(request, workspace_url)}",
        f"*Asked by:* {mention(request.requester.id)} {when(request.created_at)}",
        *_approval_lines(request, is_new=False),
        f"*Order last seen:* {when(request.looked_at)}" if request.looked_at else "",
        f"*Order:* {_in_one_line(facts)}" if facts else f"*Order:* {literal(request.order_uuid)}, not read yet",
        f"*Reason:* {literal(request.reason, REASON_CHARS)}" if request.reason.strip() else "*Reason:* none given",
        f"This order was asked about before: `{escape(typed(others))}`" if found.has_others else "",
    ]
    return _fitting(lines, TEXT_CHARS)


def _where_the_card_is(request: CancelRequest, workspace_url: str) -> str:
    link = card_link(request, workspace_url)
    if link is not None:
        return linked(link, "open it") + f" in {channel(request.card_channel_id or '')}"
    return "none" if request.state in {State.REQUESTED, State.REFUSED} else "not posted yet"


def _next(request: CancelRequest) -> str:
    """What happens by itself, and what somebody has to do."""
    match request.state:
        case State.REQUESTED:
            return "the bot reads the order, and then asks for approval."
        case State.PENDING:
            missing = max(1, request.approvals_required - len(request.counted()))
            until = f" until {when(request.expires_at)}" if request.expires_at else ""
            return f"{_approvals(missing)} more{until}; otherwise it expires and nothing is sent."
        case State.APPROVED:
            return "the bot sends the cancel."
        case State.SENDING | State.ACCEPTED:
            return "the bot looks at the order until it is certain what happened."
        case State.UNRESOLVED:
            return "somebody looks at Upbit; the bot goes on looking as well."
        case _:
            return "nothing by itself, the request is over."


def listing(found: Listing, *, workspace_url: str) -> str:
    """Requests, a line each, and the command that shows the next ones."""
    more = found.next_page
    if not found.requests and more is None:
        return f"{_listing_title(found.wanted)}\nNone that you may see."
    room = TEXT_CHARS - LISTING_ENDS_CHARS - _size(_listing_title(found.wanted))
    lines: list[str] = []
    for request in found.requests:
        line = _listed_request(request, workspace_url)
        room -= _size(line) + len("\n")
        if room < 0:
            more = replace(found.wanted, before=found.requests[max(0, len(lines) - 1)].id)
            break
        lines.append(line)
    if not lines:
        lines = ["None that you may see among those looked through so far."]
    if more is not None:
        lines.append(f"For more, type `{cut(escape(typed(more)), LISTING_ENDS_CHARS - len('For more, type ``'))}`")
    return "\n".join([_listing_title(found.wanted), *lines])


LISTING_ENDS_CHARS: Final = 400


def _listing_title(wanted: Wanted) -> str:
    parts = [
        f"numbered #{wanted.request_id}" if wanted.request_id is not None else "",
        f"for order {literal(wanted.order_uuid)}" if wanted.order_uuid is not None else "",
        f"asked by {mention(wanted.requester_id)}" if wanted.requester_id is not None else "",
        f"asked by {literal('@' + wanted.requester_name)}" if wanted.requester_name is not None else "",
        f"on {word(wanted.market)}" if wanted.market is not None else "",
        f"since {wanted.since.date().isoformat()} UTC" if wanted.since is not None else "",
        f"before #{wanted.before}" if wanted.before is not None else "",
    ]
    what = "Requests that are not over" if wanted.only_open else "Requests"
    return f"*{' '.join([what, *filter(None, parts)])}*"


def _listed_request(request: CancelRequest, workspace_url: str) -> str:
    number = linked(card_link(request, workspace_url), f"#{request.id}")
    asked = f"{mention(request.requester.id)} {when(request.created_at)}"
    return f"• {number} *{_STATE_WORDS[request.state]}*: {what_in_short(request)}; asked by {asked}"


def order_in_a_line(order: Order) -> str:
    """An order in plain text, for a choice among several: market, side, what remains and the price, where known."""
    verb = {"ask": "Sell", "bid": "Buy"}.get(order.side, escape(order.side))
    remaining = order.volume if order.remaining_volume is None else order.remaining_volume
    if order.price is None:
        price = "at the market price" if order.ord_type == "market" else "price not told"
    elif order.price_is_total:
        price = f"for {amount(order.price, '')} in all"
    else:
        price = f"at {amount(order.price, '')}"
    volume = amount(remaining, "") if remaining is not None else ""
    if not volume and not order.price_is_total:
        volume = "(volume not told)"
    stop = "(stop)" if order.state == OrderState.WATCH else ""
    return " ".join(filter(None, [escape(order.market), verb, volume, price, stop]))


# --- Private notices ------------------------------------------------------------------------------------------------


def still_reading(request: CancelRequest) -> str:
    return (
        f"Upbit is slow: order {literal(request.order_uuid)} of request #{request.id} is still being read. Nothing "
        "has been sent. You need do nothing; if it takes much longer, the request is given up and you are told."
    )


def card_elsewhere(request: CancelRequest, *, link: str | None) -> str:
    """Where the card is, for who typed the command in another channel."""
    opened = f": {linked(link, 'open it')}" if link else ""
    return (
        f"The card of request #{request.id} is in {channel(request.card_goes_to)}{opened}. The approvers decide there, "
        "and its thread tells what comes of it. If you cannot see that channel, ask somebody in it to add you."
    )


def still_asking_who_may(request: CancelRequest) -> str:
    return (
        f"Slack has not told yet who may approve request #{request.id}: the bot is still reading the approvers' user "
        "groups. Nothing has been sent. You need do nothing; if it takes much longer, the request is given up and you "
        "are told."
    )


def request_refused(request: CancelRequest) -> str:
    """Why a request ended before anybody could approve it, and what to do.

    `request.cause` is a Reason or Upbit's error name; a word after a colon says more, `cannot_post:not_in_channel`.
    """
    why = _why_refused(request)
    return f"Request #{request.id} was refused, and nothing was sent to Upbit. {why}{_quoted(request)}"


def _quoted(request: CancelRequest) -> str:
    """Upbit's own sentence, where it said one."""
    return f" Upbit said: {literal(request.said, SAID_CHARS)}." if request.said else ""


def form_not_opened(request: CancelRequest | None) -> str:
    number = f" request #{request.id}" if request else ""
    return (
        f"Slack did not open the form for{number or ' this'}, so nothing was done. Press the button again; or press "
        "*Deny*, which denies at once and needs no form."
    )


def click_refused(reason: Reason, request: CancelRequest | None) -> str:
    """Why a click does not count. Who came too late is told who was first, and when."""
    if reason is Reason.UNKNOWN_FORM:
        return unknown_form()
    if request is None or reason is Reason.UNKNOWN_REQUEST:
        return _unknown_request()
    sentence = _CLICK_REFUSALS.get(reason)
    return sentence(request) if sentence else f"Your click on request #{request.id} did not count ({word(reason)})."


def _unknown_request() -> str:
    return (
        "The bot does not know the request of this card, so your click changed nothing. Ask again with "
        "`/cancel &lt;uuid&gt;`."
    )


def _not_an_approver(request: CancelRequest) -> str:
    return f"You may not decide request #{request.id}, so your click changed nothing. {_who_may(request)}"


def _unknown_approver(request: CancelRequest) -> str:
    return (
        f"The bot could not read the user groups that say who may decide request #{request.id}, so it cannot tell "
        f"whether you may. Your click changed nothing. {_TRY_IN_A_MINUTE}"
    )


def _own_request(request: CancelRequest) -> str:
    return (
        f"You asked for request #{request.id} yourself, so you may not approve it; you may still deny it. "
        f"{_who_may(request)}"
    )


def _not_the_requester(request: CancelRequest) -> str:
    return (
        f"Only {mention(request.requester.id)}, who asked for request #{request.id}, may withdraw it, so your click "
        "changed nothing. An approver can deny it."
    )


def _request_of_another_workspace(request: CancelRequest) -> str:
    return (
        f"Request #{request.id} belongs to another workspace than yours, so your click changed nothing. "
        f"{_who_may(request)}"
    )


def _not_yet_pending(request: CancelRequest) -> str:
    return (
        f"Request #{request.id} is not ready yet: its order is still being read. Your click changed nothing; try "
        "again when the card shows the order."
    )


def _expired_before_click(request: CancelRequest) -> str:
    at = f" {when(request.expires_at)}" if request.expires_at else ""
    return (
        f"Request #{request.id} expired{at}, before your click. Nothing was sent; to ask again, type "
        f"{_typed_command(request)}."
    )


def _who_may(request: CancelRequest) -> str:
    if not request.approvers:
        return "Ask whoever runs this bot who may."
    return f"It needs {_approvals(request.approvals_required)} of: {_people(request.approvers)}."


def _already_approved(request: CancelRequest) -> str:
    number = f"request #{request.id}"
    if request.state is not State.PENDING:
        return f"You had already approved {number}, and one person counts once. Now: {_STATE_WORDS[request.state]}."
    return (
        f"You have already approved {number}, and one person counts once: it has {_count(request)} approvals. You need "
        "do nothing; it waits for others. You may still deny it."
    )


def _already_decided(request: CancelRequest) -> str:
    number = f"request #{request.id}"
    if request.state is State.DENIED:
        return (
            f"{number.capitalize()} was already {_decided_by(request, DecisionKind.DENY)}. Your click changed nothing."
        )
    if request.state is State.WITHDRAWN:
        by = _decided_by(request, DecisionKind.WITHDRAW)
        return f"{number.capitalize()} was already {by}. Your click changed nothing, and nothing was sent."
    if request.state is State.SUPERSEDED:
        return f"{number.capitalize()} ended before your click: {_gone(request)}. Your click changed nothing."
    decided = _decided_by(request, DecisionKind.APPROVE)
    was = f"was already {decided}" if decided else "is no longer open for a decision"
    return f"{number.capitalize()} {was}. Your click changed nothing; now: {_STATE_WORDS[request.state]}."


_CLICK_REFUSALS: Final[Mapping[Reason, Callable[[CancelRequest], str]]] = {
    Reason.NOT_AN_APPROVER: _not_an_approver,
    Reason.MEMBERSHIP_UNKNOWN: _unknown_approver,
    Reason.OWN_REQUEST: _own_request,
    Reason.NOT_THE_REQUESTER: _not_the_requester,
    Reason.OTHER_WORKSPACE: _request_of_another_workspace,
    Reason.UNKNOWN_BUTTON: lambda _request: unknown_button(),
    Reason.NO_REASON: lambda _request: no_reason(),
    Reason.REASON_TOO_LONG: lambda _request: reason_too_long(),
    Reason.NOT_YET_PENDING: _not_yet_pending,
    Reason.EXPIRED: _expired_before_click,
    Reason.ALREADY_APPROVED: _already_approved,
    Reason.ALREADY_DECIDED: _already_decided,
}


def summary_elsewhere(request: CancelRequest, *, notify: Sequence[str] = ()) -> str:
    """The thread's message for one person, where it cannot be posted in the thread."""
    where = channel(request.card_channel_id or request.card_goes_to)
    message = thread_message(request, notify=notify)
    witness = witness_line(request)
    told = message.text.removesuffix(witness) if message else f"Now: {_STATE_WORDS[request.state]}."
    lines = f"This could not be posted in {where}, so you get it here.\n{told}".split("\n")
    return _fitting(lines, TEXT_CHARS, last=witness)


# --- The card -------------------------------------------------------------------------------------------------------


def card(request: CancelRequest, *, notify: Sequence[str], is_new: bool = False) -> Message:
    """The message in the channel, for the request as it is now. Only a pending one has buttons and calls `notify`."""
    headline = _headline(request)
    story = _story(request)
    order = request.order_now or request.order
    facts = [(label, value) for name, label, value in _facts(order) if name in _ON_THE_CARD] if order else []
    if order is None:
        facts = [("Order", literal(request.order_uuid))]
    reason = f"*Reason:* {literal(request.reason, REASON_CHARS)}" if request.reason.strip() else "*Reason:* none given"
    asked = f"*Asked by:* {mention(request.requester.id)} {when(request.created_at)}{_asked_elsewhere(request)}"
    lines = [asked, *_approval_lines(request, is_new=is_new)]
    if request.opened_at:
        lines.append(_market(request))
    if request.looked_at:
        lines.append(f"*Order last seen:* {when(request.looked_at)}")
    pending = request.state is State.PENDING
    if pending and request.unseen_since:
        lines.append(
            f"*Not seen since* {when(request.unseen_since)}: Upbit does not show the order now. Look for it there "
            "before you decide."
        )
    filled = _filled_since(request)
    if filled and not pending:
        lines.append(filled)
    moved = ""
    if pending and request.order_now != request.order:
        moved = "\n".join(filter(None, [filled, _changes(request)]))
    called = f"For your attention: {_people(notify)}" if pending and notify else ""

    blocks = [_header(headline), _section(story), *_fields(facts), _section(reason), _section("\n".join(lines))]
    if moved:
        blocks.append(_section(moved))
    if pending:
        blocks += [_buttons(request, order), _context(_what_buttons_do(request))]
    if called:
        blocks.append(_context(called))
    spoken = [headline, story, called, _in_one_line(facts), *lines, moved, reason]
    return Message(
        text=_fitting(spoken, TEXT_CHARS),
        blocks=blocks,
        metadata={"event_type": EVENT_TYPE, "event_payload": {"request_id": request.id}},
    )


_STATE_WORDS: Final[Mapping[State, str]] = {
    State.REQUESTED: "reading the order",
    State.PENDING: "waiting for approval",
    State.REFUSED: "refused, nothing was sent",
    State.APPROVED: "approved, about to be sent",
    State.DENIED: "denied, nothing was sent",
    State.WITHDRAWN: "withdrawn, nothing was sent",
    State.SUPERSEDED: "the order ended elsewhere, nothing was sent",
    State.EXPIRED: "expired, nothing was sent",
    State.LAPSED: "approved, but not sent in time",
    State.SENDING: "being sent, outcome not known yet",
    State.ACCEPTED: "accepted by Upbit, not canceled yet",
    State.REJECTED: "refused by Upbit",
    State.CANCELED: "canceled",
    State.FILLED: "filled before the cancel took effect",
    State.UNRESOLVED: "outcome not known yet, please look",
    State.FAILED: "not canceled, the order was still open",
    State.SETTLED: "settled by hand",
}

_ON_THE_CARD: Final = frozenset(
    {
        "market",
        "side",
        "ord_type",
        "price",
        "volume",
        "remaining_volume",
        "executed_volume",
        "locked",
        "created_at",
        "state",
        "identifier",
        "uuid",
    }
)


def _headline(request: CancelRequest) -> str:
    if request.state is State.PENDING:
        return f"Cancel this order? Request #{request.id}"
    return f"Cancel request #{request.id}: {_STATE_WORDS[request.state]}"


def _story(request: CancelRequest) -> str:
    """What happened last, or what happens next."""
    return _STORIES[request.state](request)


def _asked_elsewhere(request: CancelRequest) -> str:
    """Where the command was typed, if not where the card is."""
    if not request.is_card_elsewhere:
        return ""
    return " in a direct message" if request.channel_id.startswith("D") else f" in {channel(request.channel_id)}"


def _approval_lines(request: CancelRequest, *, is_new: bool) -> list[str]:
    """How far the approval is, or who decided and when.

    A name in a new message calls that person; one that an edit brings does not. So a new card counts the approvers,
    and the redrawn one names them: who may approve is not who is called.
    """
    lines: list[str] = []
    if request.state is State.PENDING:
        count = len(request.approvers)
        named = f"{count} approver" + ("s" if count != 1 else "") if is_new else _people(request.approvers)
        lines.append(f"*Approvals:* {_count(request)}, from any of {named or 'nobody'}")
        if rule := _rule(request):
            lines.append(f"*Needs {_approvals(request.approvals_required)}:* {rule}")
        if request.expires_at:
            lines.append(f"*Expires:* {when(request.expires_at)}")
    if decided := _decisions(request):
        lines.append(f"*Decided:* {decided}")
    return lines


def _market(request: CancelRequest) -> str:
    """How far the order is from the market, as it was when the request was opened."""
    quote, order = request.quote, request.order
    if quote is None or order is None:
        return "*Market:* market price not available when this was asked"
    at = f"*Market at {_to_the_second(quote.quoted_at)}, when this was asked:*"
    best = {Side.BID: f"best bid {amount(quote.bid, order.quote_currency)}"}
    best[Side.ASK] = f"best ask {amount(quote.ask, order.quote_currency)}"
    far = distance(order, quote)
    if far is None:
        return f"{at} {best[Side.BID]}, {best[Side.ASK]}"
    other = Side.ASK if far.side is Side.BID else Side.BID
    reached = ", so it may be filled at any moment" if far.is_reached and order.state == OrderState.WAIT else ""
    return f"{at} the order's price is {_how_far(far)} the {best[far.side]}{reached}; {best[other]}"


def _how_far(far: Distance) -> str:
    """`2.1 % below`, or `at`."""
    if not far.percent:
        return "at"
    where = "below" if far.percent < 0 else "above"
    percent = abs(far.percent)
    if percent < LEAST_PERCENT:
        return f"less than {LEAST_PERCENT} % {where}"
    if percent > MOST_PERCENT:
        return f"more than {MOST_PERCENT:,} % {where}"
    return f"{amount(percent.quantize(LEAST_PERCENT), '')} % {where}"


def _count(request: CancelRequest) -> str:
    return f"{len(request.counted())} of {request.approvals_required}"


def _rule(request: CancelRequest) -> str:
    """Why this order needs so many approvals; empty where every order needs as many."""
    rule = request.approval_rule
    if rule is None or (rule.market == "*" and rule.side is None):
        return ""
    orders = {"ask": "sells", "bid": "buys"}.get(rule.side or "", "orders")
    where = f" on {word(rule.market)}" if rule.market != "*" else ""
    if rule.over is None:
        return f"for {orders}{where}"
    order = request.order or request.order_now
    value = remaining_value(order) if order else None
    worth = (
        "what this one is worth is not known, so it counts as over that"
        if value is None
        else f"what remains of this one is worth {amount(value, rule.quote_currency)}"
    )
    return f"over {amount(rule.over, rule.quote_currency)}, for {orders}{where}; {worth}"


def _decisions(request: CancelRequest) -> str:
    return _listed(_decision(decision, request) for decision in request.decisions)


def _decided_by(request: CancelRequest, kind: DecisionKind) -> str:
    """`approved by @a <time>, by @b <time>`; empty if nobody did."""
    decided = request.counted() if kind is DecisionKind.APPROVE else request.decided(kind)
    told = [f"by {mention(each.actor.id)} {when(each.decided_at)}" for each in decided]
    return f"{_KIND_WORDS[kind]} {_listed(told)}" if told else ""


def _decision(decision: Decision, request: CancelRequest) -> str:
    told = f"{_KIND_WORDS[decision.kind]} by {mention(decision.actor.id)} {when(decision.decided_at)}"
    is_void = decision.kind is DecisionKind.APPROVE and decision.actor.id in request.not_counted
    return f"{told} (does not count: not known as an approver now)" if is_void else told


_KIND_WORDS: Final = {
    DecisionKind.APPROVE: "approved",
    DecisionKind.DENY: "denied",
    DecisionKind.WITHDRAW: "withdrawn",
}


def _buttons(request: CancelRequest, order: Order | None) -> Block:
    value = str(request.id)
    approve = {
        "type": "button",
        "action_id": ACTION_APPROVE,
        "value": value,
        "style": "primary",
        "text": _plain("Approve"),
        "confirm": {
            "title": _plain(cut(f"Approve request #{request.id}?", CONFIRM_TITLE_CHARS)),
            "text": _plain(cut(_confirmation(order), CONFIRM_CHARS)),
            "confirm": _plain("Yes, cancel the order"),
            "deny": _plain("Go back"),
            "style": "danger",
        },
    }
    deny = {"type": "button", "action_id": ACTION_DENY, "value": value, "text": _plain("Deny")}
    explain = {
        "type": "button",
        "action_id": ACTION_DENY_WITH_REASON,
        "value": value,
        "text": _plain("Deny with a reason…"),
    }
    # Slack shows a message's buttons to everyone alike, so the button itself says whose it is.
    withdraw = {"type": "button", "action_id": ACTION_WITHDRAW, "value": value, "text": _plain("Withdraw (who asked)")}
    return {"type": "actions", "elements": [approve, deny, explain, withdraw]}


def _confirmation(order: Order | None) -> str:
    if order is None:
        return "This cannot be undone."
    return (
        f"This cannot be undone. {_side(order)} on {word(order.market)}: Upbit is asked to cancel "
        f"{_what_is_left(order)}."
    )


def _what_is_canceled(order: Order) -> str:
    return f"{_what_is_left(order)} ({_side(order)} on {word(order.market)})"


def _what_is_left(order: Order) -> str:
    if order.remaining_volume is not None:
        return f"the remaining {amount(order.remaining_volume, order.base_currency)}"
    if order.volume is not None:
        return f"what remains of {amount(order.volume, order.base_currency)}"
    if order.price is not None and order.price_is_total:
        return f"what remains of the total of {amount(order.price, order.quote_currency)}"
    return "what remains of the order"


def _what_buttons_do(request: CancelRequest) -> str:
    missing = request.approvals_required - len(request.counted())
    approve = "sends the cancel to Upbit" if missing <= 1 else "counts as one approval"
    return (
        f"*Approve* asks once more, then {approve}. *Deny* ends the request at once; nothing is sent. *Deny with a "
        "reason…* asks why first, and shows it here. *Withdraw* ends the request, too, and is for "
        f"{mention(request.requester.id)} only."
    )


# --- The thread -----------------------------------------------------------------------------------------------------


def reminder(request: CancelRequest, *, may_still_approve: Sequence[str], notify: Sequence[str]) -> Message:
    """One line in the thread, half-way to the expiry. It calls those of `notify`; without any, who may still approve.

    Who has done their part is not called, nor who asked, unless they may approve it themselves.
    """
    missing = max(1, request.approvals_required - len(request.counted()))
    until = f" and expires {when(request.expires_at)}" if request.expires_at else ""
    waits = f"Request #{request.id} still needs {_approvals(missing)}{until}; see the card above."
    if notify:
        count = len(may_still_approve)
        may = f"{count} {'person' if count == 1 else 'people'} may still approve it."
        called = [each for each in notify if each in may_still_approve or not _has_done_their_part(request, each)]
        call = f" For your attention: {_people(called)}." if called else ""
    else:
        may, call = f"May still approve it: {_people(may_still_approve)}.", ""
    line = f"{waits} {may}{call}"
    return Message(text=line, blocks=[_section(line)])


def _has_done_their_part(request: CancelRequest, person_id: str) -> bool:
    return person_id == request.requester.id or request.has_approved(person_id)


def thread_message(request: CancelRequest, *, notify: Sequence[str]) -> Message | None:
    """The verdict, the people, the order summary, what changed, and the witness of the audit.

    None in a state that says nothing in the thread.
    """
    if request.state not in VERDICT_STATES:
        return None
    verdict = _story(request)
    people = _people_of(request, notify)
    order = request.order_now or request.order
    facts = [(label, value) for _, label, value in _facts(order)] if order else []
    changes = "\n".join(filter(None, [_filled_since(request), _changes(request)]))

    blocks = [_section(f"{verdict}\n{people}")]
    spoken = [verdict, people]
    if order:
        title = _summary_title(request)
        blocks += [_section(title), *_fields(facts)]
        spoken.append(f"{title}: {_in_one_line(facts)}")
    if changes:
        blocks.append(_section(changes))
        spoken.append(changes)
    witness = witness_line(request)
    if witness:
        blocks.append(_context(witness))
    return Message(text=_fitting(spoken, TEXT_CHARS, last=witness), blocks=blocks)


def witness_line(request: CancelRequest) -> str:
    """As `bot audit verify --witness` reads it; empty where an older version said the verdict."""
    return str(request.witness) if request.witness is not None else ""


_TROUBLE: Final = frozenset({State.LAPSED, State.REJECTED, State.UNRESOLVED, State.FAILED})


def _people_of(request: CancelRequest, notify: Sequence[str]) -> str:
    asked = f"Asked by {mention(request.requester.id)}"
    people = "; ".join(filter(None, [asked, _decisions(request)])) + "."
    called = f" For your attention: {_people(notify)}." if notify and request.state in _TROUBLE else ""
    return people + called


def _summary_title(request: CancelRequest) -> str:
    if request.order_now is None:
        return "*The order* when the request was opened"
    return f"*The order* as last seen{f' {when(request.looked_at)}' if request.looked_at else ''}"


def _changes(request: CancelRequest) -> str:
    """What a later look at the order showed; nothing is said where there was none."""
    before, now = request.order, request.order_now
    if before is None or now is None or not _seen_later(request):
        return ""
    old = {name: value for name, _, value in _facts(before)}
    lines = [
        f"• {label}: {old.get(name, 'not told')} → {value}"
        for name, label, value in _facts(now)
        if getattr(before, name) != getattr(now, name)
    ]
    if not lines:
        return "When last seen, nothing in the order had changed since the request was opened."
    return "\n".join(["*Changed since the request was opened:*", *lines])


def _filled_since(request: CancelRequest) -> str:
    """What the looks showed filled since the request was opened, before and after the approval; empty where nothing."""
    since = _filled_between(request.order, request.order_now)
    if not since or request.order is None:
        return ""
    currency = request.order.base_currency
    told = f"*{amount(since, currency)} filled since the request*"
    if request.order_approved is None:
        return f"{told}."
    before = _filled_between(request.order, request.order_approved)
    after = _filled_between(request.order_approved, request.order_now)
    if before is None or after is None:
        return f"{told}."
    if not before or not after:
        return f"{told}, all of it seen {'after' if after else 'before'} the approval."
    return f"{told}: {amount(before, currency)} seen before the approval, {amount(after, currency)} after it."


def _filled_between(earlier: Order | None, later: Order | None) -> Decimal | None:
    """None where a look does not tell it, or tells less than an earlier one."""
    if earlier is None or later is None or earlier.executed_volume is None or later.executed_volume is None:
        return None
    filled = later.executed_volume - earlier.executed_volume
    return filled if filled >= 0 else None


def _seen_later(request: CancelRequest) -> bool:
    if request.looked_at is None or request.opened_at is None:
        return request.order_now != request.order
    return request.looked_at > request.opened_at


# --- Checkpoints of the audit ----------------------------------------------------------------------------------------


def checkpoint(signed: SignedCheckpoint) -> Message:
    """A line to keep, as it is signed: copied into a file, it can be compared with the audit a year later."""
    made = signed.checkpoint
    last = f"its last event is #{made.seq}" if made.seq else "it has no event yet"
    text = f"*Checkpoint of the audit* {when(datetime.fromisoformat(made.at))}: {last}."
    how = "Do not delete this message. To compare the audit with it: copy the line into a file, then "
    how += "`bot audit verify --checkpoint FILE --public-key HEX`, with the public key that you noted yourself."
    return Message(
        text=text,
        blocks=[_section(text), _section(f"```{signed}```"), _context(how)],
        metadata={"event_type": CHECKPOINT_EVENT_TYPE, "event_payload": {"seq": made.seq, "hash": made.hash}},
    )


def broken_audit(fault: str) -> Message:
    """The bot signs no audit that does not verify; who keeps the checkpoints must hear why none comes."""
    text = (
        f"*The audit does not verify*, so no checkpoint was made: {escape(fault)}. Whoever runs this bot should run "
        "`bot audit verify`, keep a copy of the database as it is, and find out who has changed it."
    )
    return Message(text=text, blocks=[_section(text)])


# --- Exports of the audit --------------------------------------------------------------------------------------------


def export_recorded() -> str:
    """The answer to `/cancel export`."""
    return (
        "The export is recorded, and so are you as the one who asked. The file comes as a direct message from this "
        "bot; if it cannot be made, the reason comes instead."
    )


def export_not_understood(text: str) -> str:
    return (
        f"{literal(text, 100)} was not understood, and nothing was exported. Type `/cancel export`, and after it any "
        "of: `csv` or `jsonl`, a uuid, `#n`, a person by their member ID such as `@U0BEN`, `me`, a market such as "
        "`KRW-BTC`, `since 2026-11-01`, `until 2026-12-01`, `action cancel.sent`, `outcome refused`, "
        "`reason own_request`, `over 50000000`, `own`."
    )


def export_in_doubt() -> str:
    return (
        "The database did not confirm that the export is recorded. If no direct message from this bot comes within a "
        "few minutes, ask for it again."
    )


def _not_an_auditor() -> str:
    return (
        "You may not have the audit exported, so nothing was. Whoever runs this bot can add you to its auditors "
        "(`AUDITORS`); `/cancel history` shows the requests that you may see."
    )


def _export_waiting() -> str:
    return (
        "Your last export is still being made or sent, so this one was not recorded. Ask again when you have it, or "
        "know why not."
    )


def export_comment(export: Export, file: ExportFile) -> str:
    """What stands beside the file: what is in it, and how to prove that it is the one that was sent."""
    chosen = export.wanted.selection.to_json()
    which = ", ".join(f"{name} {literal(str(value), 100)}" for name, value in chosen.items()) or "nothing, all of them"
    return (
        f"*Export of the audit*, {file.events:,} events up to #{export.up_to_seq}; chosen by: {which}.\n"
        f"SHA-256 `{file.sha256}`, which the audit holds, too (`audit.exported`). The file may hold what was "
        "said in private channels: give it only to people who may read that."
    )


def no_export(fault: str) -> str:
    """Why there is no file, and what to do."""
    return f"*Your export of the audit was not made.* {_NO_EXPORT.get(fault) or _no_export(fault)}"


def _no_export(fault: str) -> str:
    return (
        f"Slack or the bot did not manage it ({word(fault)}). Ask again later, or have whoever runs this bot use "
        "`bot audit export`."
    )


_NO_EXPORT: Final = {
    "too_large": (
        f"More than {MAX_EVENTS:,} events or {MAX_BYTES // 1_000_000} MB are too many for Slack: narrow it down, with "
        "`since` and `until` for example, or have whoever runs this bot use `bot audit export`."
    ),
    "audit_altered": (
        "The audit holds something that the bot did not write. Whoever runs this bot should run `bot audit verify`."
    ),
    "no_event": "No event fits what you asked for.",
    "not_an_auditor": "You are not on `AUDITORS` any more.",
    "missing_scope": (
        "The Slack app may not send files: whoever runs this bot adds the scopes `files:write` and `im:write`, and "
        "installs the app again."
    ),
}


# --- The story of each state: what is known, and no more --------------------------------------------------------------


def _requested(request: CancelRequest) -> str:
    return f"{mention(request.requester.id)} asks for this order to be canceled; it is being read. Nothing was sent."


def _pending(request: CancelRequest) -> str:
    needed = _approvals(request.approvals_required)
    return (
        f"{mention(request.requester.id)} asks for this order at Upbit to be canceled. After {needed} the bot sends "
        "the cancel; until then nothing is sent."
    )


def _refused(request: CancelRequest) -> str:
    return f"Refused, and nothing was sent to Upbit. {_why_refused(request)}"


def _approved(request: CancelRequest) -> str:
    until = f", not later than {when(request.send_before)}" if request.send_before else ""
    if request.sends:
        return f"Approved. An earlier try showed no effect; the bot tries again{until}."
    return f"Approved. The bot sends the cancel to Upbit{until}."


def _denied(request: CancelRequest) -> str:
    denials = request.decided(DecisionKind.DENY)
    by = f" by {mention(denials[-1].actor.id)}" if denials else ""
    why = f" Their reason: {literal(denials[-1].reason, REASON_CHARS)}." if denials and denials[-1].reason else ""
    return f"*Denied*{by}: nothing was sent to Upbit.{why}"


def _withdrawn(request: CancelRequest) -> str:
    return f"*Withdrawn* by {mention(request.requester.id)}, who asked for it: nothing was sent to Upbit."


def _superseded(request: CancelRequest) -> str:
    order = request.order_now
    filled = ""
    if order is not None and order.executed_volume is not None:
        filled = f" {_filled_in_all(order)}"
    return f"*Superseded:* {_gone(request)} before enough people had approved, so nothing was sent to Upbit.{filled}"


def _gone(request: CancelRequest) -> str:
    """How the order ended without the bot."""
    is_done = request.order_now is not None and request.order_now.is_done
    return "the order was fully executed" if is_done else "the order was canceled elsewhere"


def _filled_in_all(order: Order) -> str:
    if not order.executed_volume:
        return "Nothing had been filled."
    return f"{amount(order.executed_volume, order.base_currency)} was executed."


def _expired(request: CancelRequest) -> str:
    by = f" by {when(request.expires_at)}" if request.expires_at else " in time"
    return (
        f"*Expired:* it had {_count(request)} approvals{by}, so nothing was sent to Upbit. If the order should still "
        f"be canceled, ask again: {_typed_command(request)}."
    )


def _lapsed(request: CancelRequest) -> str:
    at = f" by {when(request.send_before)}" if request.send_before else " in time"
    sent = "An earlier try showed no effect, and no other is made" if request.sends else "Nothing was sent to Upbit"
    return (
        f"*Not sent in time:* it was approved, but could not be sent{at}. {sent}. Look at the order; if it should "
        f"still be canceled, ask again: {_typed_command(request)}."
    )


def _sending(_request: CancelRequest) -> str:
    return "The cancel is being sent to Upbit; what came of it is not known yet."


def _accepted(request: CancelRequest) -> str:
    at = f" {when(request.accepted_at)}" if request.accepted_at else ""
    return f"Upbit accepted the cancel{at}. That is not canceled yet: the bot looks at the order until it is certain."


def _rejected(request: CancelRequest) -> str:
    meaning, step = _meaning_of(_cause(request)[1])
    return (
        f"*Refused by Upbit:* {meaning}{_quoted(request)} This request has not canceled the order. {step} "
        f"Then ask again: {_typed_command(request)}, or cancel the order at Upbit by hand."
    )


def _canceled(request: CancelRequest) -> str:
    return " ".join(filter(None, [_canceled_volume(request.order_now), _whose(request)]))


def _canceled_volume(order: Order | None) -> str:
    """How much was canceled, from the fields that tell it and no others.

    `remaining_volume` tells it; where it is absent, `volume - executed_volume` does, unless self-match prevention
    took a part.
    """
    if order is None:
        return "*Canceled.* How much had been filled is not known."
    canceled = order.remaining_volume
    if canceled is None and order.volume is not None and order.executed_volume is not None and not _prevented(order):
        canceled = order.volume - order.executed_volume
    filled = _filled_before(order)
    if canceled is None or canceled < 0:
        return f"*Canceled.* {filled[0].upper()}{filled[1:]}.{_prevented(order)}"
    total = "" if order.volume is None else f" of {amount(order.volume, order.base_currency)}"
    unit = "" if total else order.base_currency
    return f"*Canceled:* {amount(canceled, unit)}{total}; {filled}.{_prevented(order)}"


def _filled_before(order: Order) -> str:
    if order.executed_volume is None:
        return "how much had been filled is not known"
    if not order.executed_volume:
        return "nothing had been filled"
    return f"{amount(order.executed_volume, order.base_currency)} had been filled"


def _prevented(order: Order) -> str:
    """A sentence if self-match prevention (SMP) canceled a part; else empty."""
    if not order.prevented_volume:
        return ""
    prevented = amount(order.prevented_volume, order.base_currency)
    return f" Self-match prevention (SMP) at Upbit canceled {prevented}."


def _whose(request: CancelRequest) -> str:
    match request.canceled_by:
        case CanceledBy.THIS_REQUEST:
            at = f" {when(request.accepted_at)}" if request.accepted_at else ""
            return f"Upbit had accepted this request's cancel{at}."
        case CanceledBy.UNPROVEN if request.unanswered:
            return (
                "This request's cancel was sent, but its answer was lost, so it is not proven whether this cancel or "
                "another one did it."
            )
        case CanceledBy.UNPROVEN:
            return (
                "Upbit had refused this request's cancel, so most likely the order was canceled elsewhere; that is not "
                "proven."
            )
        case None:
            return ""


def _filled(request: CancelRequest) -> str:
    order = request.order_now
    if order is None or order.executed_volume is None:
        return "*Filled before the cancel took effect.* How much was executed is not known."
    executed = amount(order.executed_volume, order.base_currency)
    return f"*Filled before the cancel took effect:* {executed} was executed.{_prevented(order)}"


def _unresolved(request: CancelRequest) -> str:
    if request.accepted_at:
        known = (
            f"Upbit accepted the cancel {when(request.accepted_at)}, but whether the order is canceled is not certain."
        )
    else:
        at = f" {when(request.sent_at)}" if request.sent_at else ""
        known = f"the cancel was sent{at}, and what came of it is not certain."
    return (
        f"*Not known yet:* {known} Please look now: sign in at Upbit, find order {literal(request.order_uuid)} among "
        "the open orders, and if it is still there, cancel it by hand. The bot goes on looking, and says in the "
        "card's thread what it finds."
    )


def _failed(request: CancelRequest) -> str:
    seen = f" {when(request.looked_at)}" if request.looked_at else ""
    return (
        f"*Not canceled:* the order was still open at the latest look{seen}, long after the cancel was sent. Ask "
        f"again: {_typed_command(request)}, or cancel it at Upbit by hand."
    )


def _settled(request: CancelRequest) -> str:
    by = mention(request.settled_by) if request.settled_by else "somebody"
    found = _FOUND[request.settled_verdict] if request.settled_verdict else "what had happened"
    why = f" Their reason: {literal(request.settled_reason, REASON_CHARS)}." if request.settled_reason else ""
    step = f" Ask again: {_typed_command(request)}." if request.settled_verdict is Verdict.OPEN else ""
    return f"*Settled by hand:* {by} looked at Upbit and says: {found}.{why} The bot itself could not tell.{step}"


_FOUND: Final[Mapping[Verdict, str]] = {
    Verdict.CANCELED: "the order is canceled",
    Verdict.FILLED: "the order was filled",
    Verdict.OPEN: "the order is still open",
}

_STORIES: Final[Mapping[State, Callable[[CancelRequest], str]]] = {
    State.REQUESTED: _requested,
    State.PENDING: _pending,
    State.REFUSED: _refused,
    State.APPROVED: _approved,
    State.DENIED: _denied,
    State.WITHDRAWN: _withdrawn,
    State.SUPERSEDED: _superseded,
    State.EXPIRED: _expired,
    State.LAPSED: _lapsed,
    State.SENDING: _sending,
    State.ACCEPTED: _accepted,
    State.REJECTED: _rejected,
    State.CANCELED: _canceled,
    State.FILLED: _filled,
    State.UNRESOLVED: _unresolved,
    State.FAILED: _failed,
    State.SETTLED: _settled,
}


# --- Why it was refused ---------------------------------------------------------------------------------------------


def _cause(request: CancelRequest) -> tuple[Reason | None, str]:
    """The reason in `request.cause`, and the word of Slack or Upbit that is in it."""
    head, _, rest = (request.cause or "").partition(":")
    if head not in _REASONS:
        return None, request.cause or ""
    return _REASONS[head], rest.strip() or head


_REASONS: Final = {reason.value: reason for reason in Reason}


def _why_refused(request: CancelRequest) -> str:
    reason, cause = _cause(request)
    match reason:
        case Reason.CANNOT_POST:
            if request.is_card_elsewhere:
                return _cannot_post_elsewhere(request, cause)
            return _cannot_post(request.card_channel_id or request.channel_id, cause)
        case Reason.NOBODY_CAN_APPROVE:
            return (
                f"It needs {_approvals(request.approvals_required)}, and nobody may approve what you ask for. "
                "Ask whoever runs this bot to add approvers (`APPROVERS`)."
            )
        case Reason.TOO_FEW_APPROVERS:
            return _too_few_approvers(request)
        case Reason() if reason in _REFUSALS:
            return _REFUSALS[reason].format(uuid=literal(request.order_uuid), again=_typed_command(request))
        case _:
            meaning, step = _meaning_of(cause)
            return f"Upbit would not show the order: {meaning} {step}"


def _too_few_approvers(request: CancelRequest) -> str:
    rule = _rule(request)
    needs = f"{_approvals(request.approvals_required)}{f' ({rule})' if rule else ''}"
    count = len(request.approvers)
    there = f"only {count} {'person' if count == 1 else 'people'} may approve what you ask for"
    who = f": {_people(request.approvers)}" if request.approvers else ""
    return f"It needs {needs}, and {there}{who}. Ask whoever runs this bot to add approvers (`APPROVERS`)."


_REFUSALS: Final[Mapping[Reason, str]] = {
    Reason.ORDER_NOT_FOUND: "Upbit knows no order {uuid} of this account. Check the uuid at Upbit, and ask again.",
    Reason.ALREADY_DONE: "Order {uuid} is already fully executed, so there is nothing left to cancel.",
    Reason.ALREADY_CANCELED: "Order {uuid} is already canceled, so there is nothing left to do.",
    Reason.NOT_OPEN: (
        "Upbit shows order {uuid} in a state that this bot does not know, so it does not touch it. Look at the order "
        "at Upbit, and cancel it there by hand if need be."
    ),
    Reason.KEY_LACKS_VIEW: (
        "The bot's Upbit key may not read orders: it lacks the permission 주문조회 (View Orders). Whoever runs this "
        "bot can add it at Upbit; then ask again: {again}."
    ),
    Reason.MEMBERSHIP_UNKNOWN: (
        "Slack did not tell the bot who is in the user groups of those who may approve, so nobody could be asked. Try "
        "again in a minute: {again}. If it stays so, tell whoever runs this bot; if it cannot wait, cancel the order "
        "at Upbit by hand."
    ),
    Reason.EXCHANGE_UNREACHABLE: (
        "Upbit could not be reached for so long that the request was given up. Ask again later: {again}. If it "
        "cannot wait, cancel the order at Upbit by hand."
    ),
}


def _cannot_post(channel_id: str, error: str) -> str:
    """What to do about Slack's word: https://docs.slack.dev/reference/methods/chat.postMessage#errors."""
    place = channel(channel_id)
    if error in {"not_in_channel", "channel_not_found", Reason.CANNOT_POST}:
        return (
            f"The bot may not post in {place}. Type `/invite` there, choose this bot, and ask again; in a direct "
            "message between people that is not possible, so ask in a channel."
        )
    if error == "is_archived":
        return f"{place} is archived, so the card cannot be posted. Ask again in another channel."
    if error.startswith("restricted_action"):
        return f"Only some people may post in {place}, and the bot is none of them. Ask again in another channel."
    if error == "messages_tab_disabled":
        return "Messages to this bot are switched off. Ask again in a channel."
    return f"Slack refused the card in {place}: {literal(error)}. Ask again elsewhere, and tell whoever runs this bot."


def _cannot_post_elsewhere(request: CancelRequest, error: str) -> str:
    """The same for the channel where all cards go, into which who asked perhaps cannot look."""
    place = f"{channel(request.card_goes_to)}, where all cards go (`APPROVALS_CHANNEL`)"
    again = f"then ask again: {_typed_command(request)}"
    if error in {"not_in_channel", "channel_not_found", Reason.CANNOT_POST}:
        return (
            f"The bot may not post in {place}. Tell whoever runs this bot: somebody in that channel has to type "
            f"`/invite` there and choose this bot; {again}."
        )
    if error == "is_archived":
        fault = f"{place}, is archived"
    elif error.startswith("restricted_action"):
        fault = f"Only some people may post in {place}, and the bot is none of them"
    else:
        fault = f"Slack refused the card in {place}: {literal(error)}"
    return f"{fault}. Tell whoever runs this bot to name another channel, or to change this one; {again}."


_TELL: Final = "Tell whoever runs this bot."
_MISUNDERSTOOD: Final = ("Upbit could not make sense of what the bot sent.", _TELL)
_UNSIGNED: Final = ("Upbit could not verify the bot's signature.", "Whoever runs this bot should check its secret key.")
_ADDRESS: Final = (
    "the bot's key may not be used from the bot's address.",
    "Whoever runs this bot can add the address to the key at Upbit.",
)

#: Upbit's error name -> what it means, and the next step. https://global-docs.upbit.com/reference/rest-api-guide
_MEANINGS: Final[Mapping[str, tuple[str, str]]] = {
    "validation_error": _MISUNDERSTOOD,
    "invalid_parameter": _MISUNDERSTOOD,
    "bad_request": _MISUNDERSTOOD,
    "QUERY_PARAMETER_NOT_SUPPORTED": _MISUNDERSTOOD,
    "invalid_query_payload": _UNSIGNED,
    "jwt_verification": _UNSIGNED,
    "no_authorization_token": _UNSIGNED,
    "invalid_access_key": (
        "Upbit does not know the bot's access key.",
        "Whoever runs this bot should check its access key.",
    ),
    "expired_access_key": (
        "the bot's key at Upbit has expired.",
        "Whoever runs this bot should make a new key at Upbit.",
    ),
    "no_authorization_ip": _ADDRESS,
    "no_authorization_i_p": _ADDRESS,
    "nonce_used": ("Upbit had seen the bot's one-time token before.", "Look at the order at Upbit."),
    "out_of_scope": (
        "the bot's key lacks a permission.",
        "Whoever runs this bot should give the key 주문하기 (Make Orders) and 주문조회 (View Orders) at Upbit.",
    ),
    "order_not_found": ("Upbit says that it knows no such order.", "Look at the order at Upbit."),
    "too_many_requests": ("Upbit has had too many requests from the bot.", "Wait a minute."),
    "banned": ("Upbit has shut out the bot for a while, after too many requests.", "Wait some minutes."),
}


def _meaning_of(error_name: str) -> tuple[str, str]:
    """What Upbit's error name means, its own word for the operator, and the next step."""
    meaning, step = _MEANINGS.get(error_name, ("Upbit gave a reason that this bot does not know.", _TELL))
    name = f" ({literal(error_name, 100)})" if error_name else ""
    return f"{meaning.removesuffix('.')}{name}.", step


# --- The order in words ---------------------------------------------------------------------------------------------


def _facts(order: Order) -> list[tuple[str, str, str]]:
    """Field name, label and words for every field that is present."""
    return [
        (name, label if name != "price" else _price_label(order), in_words(order))
        for name, (label, in_words) in _WORDS.items()
        if getattr(order, name) is not None
    ]


def _price_label(order: Order) -> str:
    return "Total to spend" if order.price_is_total else "Price"


def _side(order: Order) -> str:
    verb = {"ask": "Sell", "bid": "Buy"}.get(order.side)
    currency = word(order.base_currency) if order.base_currency else ""
    return f"{verb or word(order.side)} {currency}".rstrip()


def _ord_type(order: Order) -> str:
    if order.ord_type == "market" and order.side == "ask":
        return "market sell by volume"
    return _ORD_TYPES.get(order.ord_type) or word(order.ord_type)


_ORD_TYPES: Final = {
    "limit": "limit",
    "price": "market buy by total",
    "market": "market",
    "best": "best available price",
}

_ORDER_STATES: Final[Mapping[str, str]] = {
    OrderState.WAIT: "open, resting in the book",
    OrderState.WATCH: "open, a stop order waiting for its trigger",
    OrderState.DONE: "fully executed",
    OrderState.CANCEL: "canceled",
}

_TIMES_IN_FORCE: Final = {
    "ioc": "immediate or cancel (IOC)",
    "fok": "fill or kill (FOK)",
    "post_only": "post only",
}

_SMP_TYPES: Final = {
    "reduce": "reduce the volume",
    "cancel_maker": "cancel the resting order (maker)",
    "cancel_taker": "cancel the incoming order (taker)",
}


def _placed(created_at: str) -> str:
    """Upbit's ISO time with offset in the reader's own time zone; anything else as it came."""
    try:
        moment = datetime.fromisoformat(created_at)
        return when(moment) if moment.tzinfo and moment.timestamp() >= 0 else literal(created_at)
    except (ValueError, OverflowError):
        return literal(created_at)


def _held_currency(order: Order) -> str:
    """What an order locks: a sell what it sells, a buy what it pays with."""
    return {"ask": order.base_currency, "bid": order.quote_currency}.get(order.side, "")


#: Every field of an order -> its label and its value in words, in the order in which a trader asks for them
_WORDS: Final[Mapping[str, tuple[str, Callable[[Order], str]]]] = {
    "market": ("Market", lambda order: word(order.market)),
    "side": ("Side", _side),
    "ord_type": ("Type", _ord_type),
    "price": ("Price", lambda order: amount(order.price, order.quote_currency)),
    "volume": ("Volume", lambda order: amount(order.volume, order.base_currency)),
    "remaining_volume": ("Remaining", lambda order: amount(order.remaining_volume, order.base_currency)),
    "executed_volume": ("Executed", lambda order: amount(order.executed_volume, order.base_currency)),
    "trades_count": ("Trades", lambda order: str(order.trades_count)),
    "state": ("State at Upbit", lambda order: _ORDER_STATES.get(order.state) or word(order.state)),
    "created_at": ("Placed", lambda order: _placed(order.created_at)),
    "locked": ("Locked", lambda order: amount(order.locked, _held_currency(order))),
    "reserved_fee": ("Fee reserved", lambda order: amount(order.reserved_fee, order.quote_currency)),
    "remaining_fee": ("Fee remaining", lambda order: amount(order.remaining_fee, order.quote_currency)),
    "paid_fee": ("Fee paid", lambda order: amount(order.paid_fee, order.quote_currency)),
    "time_in_force": (
        "Time in force",
        lambda order: _TIMES_IN_FORCE.get(order.time_in_force or "") or word(order.time_in_force or ""),
    ),
    "smp_type": (
        "Self-match prevention (SMP)",
        lambda order: _SMP_TYPES.get(order.smp_type or "") or word(order.smp_type or ""),
    ),
    "prevented_volume": ("Canceled by SMP", lambda order: amount(order.prevented_volume, order.base_currency)),
    "prevented_locked": ("Released by SMP", lambda order: amount(order.prevented_locked, _held_currency(order))),
    "identifier": ("Identifier", lambda order: literal(order.identifier or "")),
    "uuid": ("Uuid", lambda order: literal(order.uuid)),
}


def what_in_short(request: CancelRequest) -> str:
    """The order that a request is about, in one line."""
    order = request.order_now or request.order
    if order is None:
        return f"order {literal(request.order_uuid)}"
    return order_in_short(order, whole=request.ended_at is not None)


def order_in_short(order: Order, *, whole: bool = False) -> str:
    """What is left of the order, or the whole of it, in one line: `Sell 0.58 BTC on KRW-BTC at 95,000,000 KRW`."""
    side = {"ask": "Sell", "bid": "Buy"}.get(order.side) or word(order.side)
    volume = order.volume if whole or order.remaining_volume is None else order.remaining_volume
    base, quote = order.base_currency, order.quote_currency
    what = amount(volume, base) if volume is not None else word(base) if base else ""
    if order.price is None:
        price = "at the market price" if order.ord_type == "market" else "without a price"
    else:
        price = f"{'for' if order.price_is_total else 'at'} {amount(order.price, quote)}"
    return f"{side} {what} on {word(order.market)} {price}".replace("  ", " ")


def state_in_words(request: CancelRequest) -> str:
    return _STATE_WORDS[request.state]


# --- Blocks ---------------------------------------------------------------------------------------------------------


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text, "emoji": False}


def _mrkdwn(text: str) -> dict[str, Any]:
    """`verbatim` leaves plain text alone: no link and no mention but ours."""
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _header(text: str) -> Block:
    return {"type": "header", "text": _plain(cut(text, HEADER_CHARS))}


def _section(text: str) -> Block:
    return {"type": "section", "text": _mrkdwn(_fitting(text.split("\n"), SECTION_CHARS))}


def _context(text: str) -> Block:
    return {"type": "context", "elements": [_mrkdwn(text)]}


def _fields(facts: Sequence[tuple[str, str]]) -> list[Block]:
    fields = [_mrkdwn(f"*{label}*\n{value}") for label, value in facts]
    return [{"type": "section", "fields": fields[at : at + FIELDS]} for at in range(0, len(fields), FIELDS)]


def _in_one_line(facts: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{label}: {value}" for label, value in facts)


def _fitting(lines: Iterable[str], limit: int, *, last: str = "") -> str:
    """The lines that fit, whole, a mark where some are missing, and the last line whatever is missing before it."""
    kept: list[str] = []
    ending = [last] if last else []
    room = limit - len("\n…") - (_size(last) + len("\n") if last else 0)
    for line in filter(None, lines):
        room -= _size(line) + len("\n")
        if room < 0:
            return "\n".join([*kept, "…", *ending])
        kept.append(line)
    return "\n".join([*kept, *ending])
