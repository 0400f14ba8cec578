"""What Slack delivers: read the payload, call the workflow, which commits, then acknowledge.

A listener runs in the request's own thread and does nothing slow: what follows is the worker's.
"""

import logging
import re
import time
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final, Protocol

from slack_bolt import Ack, App, BoltResponse
from slack_bolt.authorization import AuthorizeResult

from bot.choosing import Choosing, Form
from bot.domain.audit import Actor, Reason
from bot.domain.cancel_request import CancelRequest, DecisionKind
from bot.domain.errors import CommitInDoubt, MessengerError, StoreError
from bot.domain.order import UUID_PATTERN
from bot.exporting import ExportCommand, WantedExport
from bot.inquiry import Inquiry
from bot.slack import messages, views
from bot.slack.notifier import Identity
from bot.slack.typed import MAX_REQUEST_ID_DIGITS, QUOTES, Question, Topic, parse_export, parse_question
from bot.workflow import CancelWorkflow, Click, Command, CommandAnswer

log = logging.getLogger(__name__)

COMMAND: Final = "/cancel"
KINDS: Final = {
    messages.ACTION_APPROVE: DecisionKind.APPROVE,
    messages.ACTION_DENY: DecisionKind.DENY,
    messages.ACTION_DENY_WITH_REASON: DecisionKind.DENY,
    messages.ACTION_WITHDRAW: DecisionKind.WITHDRAW,
}

FORMS: Final[Mapping[str, Callable[[CancelRequest], views.View]]] = {
    messages.ACTION_DENY_WITH_REASON: views.deny_form,
}
"""Buttons that decide nothing themselves: they open a form."""

FORM_KINDS: Final = {views.DENY_REASON: DecisionKind.DENY}
"""By callback_id: the forms that decide when they are submitted."""

MAX_TYPED_CHARS: Final = 4000
"""Of what was filled in; Slack itself takes 3,000. What is too long is refused, and the audit shows so much of it."""

PRIVATE_NAMES: Final = frozenset({"privategroup", "directmessage"})
GROUP_DM_PREFIX: Final = "mpdm-"

OPEN_WITHIN_S: Final = 1.2
"""A form is opened only where the database has answered by then: Slack takes up to 1.5 s more, of 3 s in all."""
MAX_EXTERNAL_ID_CHARS: Final = 255


class Afterwards(Protocol):
    """What happens after the ack, elsewhere."""

    def nudge(self, request_id: int | None = None, *, is_new: bool = False) -> None:
        """Something is due: at the exchange for this request, of which nothing has been decided yet if it is new."""
        ...

    def fill(self, number: int) -> None:
        """A form waits to be filled."""
        ...

    def tell_now(self, response_url: str, text: str) -> None:
        """Tell somebody what could not be written down."""
        ...


class Forms(Protocol):
    """The one thing that a listener asks of Slack itself, since a trigger_id lives 3 s."""

    def open_view(self, trigger_id: str, view: views.View) -> None:
        """Open a form before the person, within 1.5 s and without a second try. Raises CannotPost, TryLater."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What a person filled into a form, and which form it was."""

    callback_id: str
    private_metadata: str
    values: Mapping[str, str]  #: block_id -> the text, or the value of the option; only what was filled in
    actor: Actor
    team_id: str
    trigger_id: str | None


class Openings(Protocol):
    """Where it is written down that somebody looks at their Home."""

    def opened(self, *, person_id: str, team_id: str) -> None:
        """Raises StoreError."""
        ...


class Exports(Protocol):
    """Where it is written down that somebody asks for an export of the audit."""

    def ask(self, command: ExportCommand, *, home_team: str) -> Reason | None:
        """Why there is none, or None. Raises StoreError."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Listeners:
    """The listeners and what they need. `identity` gives None until Slack has told who we are."""

    workflow: CancelWorkflow
    inquiry: Inquiry
    choosing: Choosing
    afterwards: Afterwards
    forms: Forms
    homes: Openings
    exports: Exports
    identity: Callable[[], Identity | None]
    max_open_requests: int
    channels: frozenset[str] = frozenset()  #: where `/cancel` may be typed; empty = anywhere
    approvals_channel: str = ""  #: where all cards go; empty = where `/cancel` was typed
    attention: Callable[[], AbstractContextManager[None]] = nullcontext  #: is paid to a person who waits
    monotonic: Callable[[], float] = time.monotonic

    def bolt_app(self, *, bot_token: str, signing_secret: str | None) -> App:
        """A Bolt app that asks Slack nothing on its own; without a signing secret, for Socket Mode only."""

        def authorize() -> AuthorizeResult:
            identity = self.identity()
            return AuthorizeResult(
                enterprise_id=None,
                team_id=identity.team_id if identity else None,
                bot_user_id=identity.bot_user_id if identity else None,
                bot_token=bot_token,
            )

        app = App(
            name="bot",
            signing_secret=signing_secret or "",
            request_verification_enabled=signing_secret is not None,
            authorize=authorize,
            process_before_response=True,
            token_verification_enabled=False,
        )
        app.command(COMMAND)(self.on_command)
        app.action(re.compile(".*", re.DOTALL))(self.on_click)
        app.view(re.compile(".*", re.DOTALL))(self.on_submission)
        app.event("app_home_opened")(self.on_home_opened)
        return app

    def on_command(self, ack: Ack, body: dict[str, Any]) -> None:
        with self.attention():
            said = self._answer(body)
        ack(text=said, response_type="ephemeral") if said else ack()

    def _answer(self, body: Mapping[str, Any]) -> str:
        """What the person is told privately; nothing where a form has opened."""
        began_at = self.monotonic()
        identity = self.identity()
        if identity is None:
            return messages.starting()
        command = parse_command(body)
        export = parse_export(_text(body, "text"), person_id=command.requester.id)
        if export is not None:
            return self._export(export.wanted, command, _text(body, "text"), identity)
        question = parse_question(_text(body, "text"), person_id=command.requester.id)
        if question is not None:
            if self.inquiry.refusal(command.requester, home_team=identity.team_id) is None and question.wanted:
                return self._tell(question, command, identity)
            command = replace(command, order_uuid=None, fault=Reason.NOT_A_QUESTION)
        if not command.reason and command.fault is Reason.USAGE:
            return self._open_choice(command, identity, began_at=began_at)
        try:
            answer = self.workflow.command(command, home_team=identity.team_id)
        except CommitInDoubt as error:
            log.error("command in doubt: %s", error)  # noqa: TRY400 - the cause is in it, a traceback says no more
            return messages.in_doubt()
        except StoreError as error:
            log.error("command not recorded: %s", error)  # noqa: TRY400
            return messages.nothing_was_done()
        if answer.request_id is not None:
            self.afterwards.nudge(answer.request_id, is_new=True)
            return messages.recorded(answer.request_id)
        return self._refused(answer, _text(body, "text"), identity)

    def _export(self, wanted: WantedExport | None, command: Command, text: str, identity: Identity) -> str:
        """Write down that somebody asks for the audit, or why they do not get it."""
        asked = ExportCommand(
            trigger_id=command.trigger_id,
            person=command.requester,
            team_id=command.team_id,
            channel_id=command.channel_id,
            text=text,
            wanted=wanted,
        )
        try:
            refusal = self.exports.ask(asked, home_team=identity.team_id)
        except StoreError as error:
            log.error("export not recorded: %s", error)  # noqa: TRY400
            return messages.export_in_doubt() if isinstance(error, CommitInDoubt) else messages.nothing_was_done()
        if refusal is None:
            self.afterwards.nudge()
            return messages.export_recorded()
        if refusal is Reason.NOT_A_QUESTION:
            return messages.export_not_understood(text)
        return self._refused(CommandAnswer(refusal=refusal), text, identity)

    def _open_choice(self, command: Command, identity: Identity, *, began_at: float) -> str:
        """Open the form to choose an order in, for whoever may ask; empty where Slack took it."""
        try:
            refusal = self.workflow.may_choose(command, home_team=identity.team_id)
        except StoreError as error:
            log.error("command not recorded: %s", error)  # noqa: TRY400
            return messages.nothing_was_done()
        if refusal is not None:
            return self._refused(CommandAnswer(refusal=refusal), "", identity)
        form = Form(
            id=f"{views.CHOOSE_ORDER}:{command.trigger_id}"[:MAX_EXTERNAL_ID_CHARS],
            trigger_id=command.trigger_id,
            channel_id=command.channel_id,
            in_private=command.in_private,
        )
        is_late = self.monotonic() - began_at > OPEN_WITHIN_S
        if is_late or not self.choosing.has_room() or not self.open_form(command.trigger_id, views.loading(form)):
            return messages.form_did_not_open()
        self.afterwards.fill(self.choosing.begin(form))
        return ""

    def _tell(self, question: Question, command: Command, identity: Identity) -> str:
        """What somebody asked about requests."""
        assert question.wanted is not None
        where = {"person_id": command.requester.id, "channel_id": command.channel_id}
        try:
            match question.topic:
                case Topic.HELP:
                    return messages.help_text()
                case Topic.STATUS:
                    return messages.status(
                        self.inquiry.status(question.wanted, **where), workspace_url=identity.team_url
                    )
                case Topic.OPEN | Topic.HISTORY:
                    return messages.listing(
                        self.inquiry.listing(question.wanted, **where), workspace_url=identity.team_url
                    )
        except StoreError as error:
            log.error("question not answered: %s", error)  # noqa: TRY400
            return messages.could_not_be_read()

    def _refused(self, answer: CommandAnswer, text: str, identity: Identity) -> str:
        assert answer.refusal is not None
        card = answer.open_request
        link = messages.card_link(card, identity.team_url) if card is not None else None
        return messages.command_refused(
            answer.refusal,
            open_request=card,
            link=link,
            text=text,
            limit=self.max_open_requests,
            channels=self.channels,
        )

    def on_click(self, ack: Ack, body: dict[str, Any]) -> BoltResponse | None:
        """Acknowledges what is written down. Otherwise Slack shows the person that the click failed, too."""
        with self.attention():
            return self._answer_click(ack, body)

    def _answer_click(self, ack: Ack, body: dict[str, Any]) -> BoltResponse | None:
        click = parse_click(body)
        form = FORMS.get(_text(_first_action(body), "action_id"))
        refusal: Reason | None = None
        try:
            if form is None:
                refusal = self.workflow.click(click)
            else:
                self._ask_why(click, form)
        except StoreError as error:
            log.error("click not recorded: %s", error)  # noqa: TRY400
            if click.response_url is not None:
                in_doubt = isinstance(error, CommitInDoubt)
                text = messages.in_doubt() if in_doubt else messages.nothing_was_done()
                self.afterwards.tell_now(click.response_url, text)
            return BoltResponse(status=HTTPStatus.SERVICE_UNAVAILABLE)
        may_be_sent = click.kind is DecisionKind.APPROVE and refusal is None
        self.afterwards.nudge(click.request_id if may_be_sent else None)
        ack()
        return None

    def _ask_why(self, click: Click, form: Callable[[CancelRequest], views.View]) -> None:
        """Open the form for who may decide; for nobody else. Raises StoreError."""
        answer = self.workflow.may_decide(click)
        if answer.refusal is not None or answer.request is None:
            return
        if not self.open_form(click.trigger_id or "", form(answer.request)):
            self.workflow.form_not_opened(click)

    def on_submission(self, ack: Ack, body: dict[str, Any]) -> None:
        """A form was submitted; the answer closes it, says in it what is wrong, or takes its place."""
        submission = parse_submission(body)
        with self.attention():
            answer = self._read_form(submission)
        ack(answer) if answer else ack()

    def _read_form(self, submission: Submission) -> dict[str, Any]:
        if submission.callback_id == views.CHOOSE_ORDER:
            return self._ask_for_chosen(submission)
        return self._decide(parse_form(submission))

    def _decide(self, click: Click) -> dict[str, Any]:
        """The decision that a form stands for, as by a button. A form that is not ours is refused in the same way."""
        try:
            answer = self.workflow.decide(click)
        except StoreError as error:
            log.error("form not recorded: %s", error)  # noqa: TRY400
            sentence = messages.in_doubt() if isinstance(error, CommitInDoubt) else messages.nothing_was_done()
            is_ours = click.kind is not None
            return (
                views.keep_open(views.REASON_INPUT, sentence) if is_ours else views.replace_with(views.told(sentence))
            )
        self.afterwards.nudge()
        if answer.refusal is None:
            return views.close()
        sentence = messages.click_refused(answer.refusal, answer.request)
        if answer.refusal in {Reason.NO_REASON, Reason.REASON_TOO_LONG}:
            return views.keep_open(views.REASON_INPUT, sentence)
        return views.replace_with(views.told(sentence))

    def _ask_for_chosen(self, submission: Submission) -> dict[str, Any]:
        """The same request as that of a typed command, and its answer in place of the form."""
        identity, command = self.identity(), parse_chosen(submission)
        if identity is None:
            return views.replace_with(views.told(messages.starting()))
        if command is None:
            return views.replace_with(views.told(messages.unknown_form()))
        try:
            answer = self.workflow.command(command, home_team=identity.team_id)
        except CommitInDoubt as error:
            log.error("command in doubt: %s", error)  # noqa: TRY400
            return views.replace_with(views.told(messages.in_doubt(), title="Not confirmed"))
        except StoreError as error:
            log.error("command not recorded: %s", error)  # noqa: TRY400
            return views.replace_with(views.told(messages.nothing_was_done()))
        if answer.request_id is not None:
            self.afterwards.nudge(answer.request_id, is_new=True)
            told = messages.recorded_from_form(answer.request_id, self.approvals_channel or command.channel_id)
            return views.replace_with(views.told(told, title="Recorded"))
        if answer.refusal is Reason.NOT_A_UUID and views.ORDER_BLOCK not in submission.values:
            return views.keep_open(views.UUID_BLOCK, messages.not_a_uuid_in_form())
        return views.replace_with(views.told(self._refused(answer, command.reason, identity)))

    def open_form(self, trigger_id: str, view: views.View) -> bool:
        """Whether Slack took it. It is asked once, so that the answer leaves in time."""
        try:
            self.forms.open_view(trigger_id, view)
        except MessengerError as error:
            log.warning("a form could not be opened: %s", error)
            return False
        return True

    def on_home_opened(self, ack: Ack, body: dict[str, Any]) -> BoltResponse | None:
        """Acknowledges what is written down; what is not, Slack delivers again.

        https://docs.slack.dev/reference/events/app_home_opened
        """
        event, team_id = _object(body, "event"), _text(body, "team_id")
        person_id = _text(event, "user")
        identity = self.identity()
        if identity is None:
            return BoltResponse(status=HTTPStatus.SERVICE_UNAVAILABLE)
        if _text(event, "tab") == "home" and team_id == identity.team_id and person_id:
            try:
                self.homes.opened(person_id=person_id, team_id=team_id)
            except StoreError as error:
                log.warning("the opening of a Home was not recorded: %s", error)
                return BoltResponse(status=HTTPStatus.SERVICE_UNAVAILABLE)
            self.afterwards.nudge()
        ack()
        return None


def parse_command(body: Mapping[str, Any]) -> Command:
    """The command of a slash command's payload: https://docs.slack.dev/interactivity/implementing-slash-commands."""
    order_uuid, reason, fault = parse_text(_text(body, "text"))
    team_id = _text(body, "team_id")
    return Command(
        trigger_id=_text(body, "trigger_id"),
        requester=Actor(id=_text(body, "user_id"), name=_text(body, "user_name"), team_id=team_id),
        team_id=team_id,
        channel_id=_text(body, "channel_id"),
        in_private=is_private(_text(body, "channel_id"), _text(body, "channel_name")),
        response_url=_text(body, "response_url") or None,
        order_uuid=order_uuid,
        reason=reason,
        fault=fault,
    )


def parse_chosen(submission: Submission) -> Command | None:
    """The command that the form to choose an order in stands for; None where the form is not ours."""
    form = views.read_form(submission.private_metadata)
    if form is None:
        return None
    chosen = submission.values.get(views.ORDER_BLOCK) or submission.values.get(views.UUID_BLOCK, "")
    order_uuid = chosen.strip(QUOTES).lower()
    is_uuid = UUID_PATTERN.fullmatch(order_uuid) is not None
    return Command(
        trigger_id=form.trigger_id,
        requester=submission.actor,
        team_id=submission.team_id,
        channel_id=form.channel_id,
        in_private=form.in_private,
        response_url=None,
        order_uuid=order_uuid if is_uuid else None,
        reason=" ".join(submission.values.get(views.REASON_BLOCK, "").split()) if is_uuid else chosen,
        fault=None if is_uuid else Reason.NOT_A_UUID,
        from_form=True,
    )


def is_private(channel_id: str, channel_name: str) -> bool:
    """Whether not everybody of the workspace can read what is typed there; Slack keeps the names of such places back.

    What cannot be told counts as private. https://docs.slack.dev/interactivity/implementing-slash-commands
    """
    is_named = bool(channel_name) and channel_name not in PRIVATE_NAMES and not channel_name.startswith(GROUP_DM_PREFIX)
    return not (is_named and channel_id.startswith("C"))


def parse_text(text: str) -> tuple[str | None, str, Reason | None]:
    """The order's uuid and the reason in what was typed after `/cancel`; or no uuid, the text, and what is wrong."""
    words = text.split(maxsplit=2)
    if not words or (len(words) == 1 and words[0].lower() == "help"):
        return None, text, Reason.USAGE
    order_uuid = words[0].strip(QUOTES).lower()
    if not UUID_PATTERN.fullmatch(order_uuid):
        return None, text, Reason.NOT_A_UUID
    if len(words) > 1 and UUID_PATTERN.fullmatch(words[1].strip(QUOTES).lower()):
        return None, text, Reason.USAGE
    return order_uuid, " ".join(words[1:]), None


def parse_click(body: Mapping[str, Any]) -> Click:
    """The click of a block_actions payload: https://docs.slack.dev/reference/interaction-payloads/block_actions-payload.

    The request is the one whose id the button carries; nothing is read back from the message.
    """
    action = _first_action(body)
    container = _object(body, "container")
    return Click(
        kind=KINDS.get(_text(action, "action_id")),
        request_id=parse_request_id(_text(action, "value")),
        actor=_person(body),
        team_id=_text(_object(body, "team"), "id"),
        channel_id=_text(container, "channel_id") or _text(_object(body, "channel"), "id"),
        message_ts=_text(container, "message_ts") or None,
        response_url=_text(body, "response_url") or None,
        trigger_id=_text(body, "trigger_id") or None,
    )


def parse_submission(body: Mapping[str, Any]) -> Submission:
    """A view_submission: https://docs.slack.dev/reference/interaction-payloads/view-interactions-payload."""
    view = _object(body, "view")
    inputs = _object(_object(view, "state"), "values")
    filled = {clean(block_id): _filled_in(_object(inputs, block_id)) for block_id in inputs}
    return Submission(
        callback_id=_text(view, "callback_id"),
        private_metadata=_text(view, "private_metadata"),
        values={block_id: value for block_id, value in filled.items() if value},
        actor=_person(body),
        team_id=_text(_object(body, "team"), "id"),
        trigger_id=_text(body, "trigger_id") or None,
    )


def parse_form(submission: Submission) -> Click:
    """The click that a submitted form stands for. It says nothing of a channel: the request knows its own."""
    return Click(
        kind=FORM_KINDS.get(submission.callback_id),
        request_id=parse_request_id(submission.private_metadata),
        actor=submission.actor,
        team_id=submission.team_id,
        channel_id="",
        message_ts=None,
        response_url=None,
        trigger_id=submission.trigger_id,
        is_form=True,
        reason=submission.values.get(views.REASON_INPUT, "")[:MAX_TYPED_CHARS],
    )


def _filled_in(elements: Mapping[str, Any]) -> str:
    """An input block holds one element, whose action_id says nothing more."""
    element = next((each for each in elements.values() if isinstance(each, dict)), {})
    return _text(element, "value") or _text(_object(element, "selected_option"), "value")


def parse_request_id(value: str) -> int | None:
    """The id that a button of ours carries, None for anything else."""
    is_id = value.isascii() and value.isdecimal() and len(value) <= MAX_REQUEST_ID_DIGITS and not value.startswith("0")
    return int(value) if is_id else None


def clean(text: str) -> str:
    """Text as every database takes it: no NUL, no lone surrogate; other controls become spaces."""
    if text.isprintable():
        return text.strip()
    return "".join(_clean_char(char) for char in text).strip()


def _clean_char(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cs":
        return "\ufffd"
    return " " if category == "Cc" else char


def _person(body: Mapping[str, Any]) -> Actor:
    """Who clicked or submitted. In a shared channel only the user's own team_id tells that somebody is a guest."""
    user = _object(body, "user")
    return Actor(
        id=_text(user, "id"),
        name=_text(user, "username") or _text(user, "name"),
        team_id=_text(user, "team_id"),
    )


def _first_action(body: Mapping[str, Any]) -> Mapping[str, Any]:
    actions = body.get("actions")
    first = actions[0] if isinstance(actions, list) and actions else {}
    return first if isinstance(first, dict) else {}


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def _text(body: Mapping[str, Any], name: str) -> str:
    """The field, clean; empty where it is no text."""
    value = body.get(name)
    return clean(value) if isinstance(value, str) else ""
