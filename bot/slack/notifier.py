"""Speaks to Slack: cards, summaries and private lines, with Slack's errors sorted into the two that matter."""

import logging
import threading
import uuid
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web import SlackResponse
from slack_sdk.webhook import WebhookClient

from bot.choosing import Choice, Form
from bot.domain.cancel_request import CancelRequest
from bot.domain.checkpoint import SignedCheckpoint
from bot.domain.errors import CannotPost, MessengerError, TryLater
from bot.exporting import Export, ExportFile
from bot.home import HomeView
from bot.slack import messages, views
from bot.slack.pace import Pace
from bot.workflow import Notice, NoticeKind, Posted

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 5
"""Per call; slack_sdk's own default of 30 s is as long as a lease."""

PERMANENT_ERRORS: Final = frozenset(
    {
        "cannot_dm_bot",
        "cant_update_message",
        "channel_not_found",
        "edit_window_closed",
        "invalid_blocks",
        "is_inactive",
        "is_archived",
        "message_not_found",
        "messages_tab_disabled",
        "msg_blocks_too_long",
        "msg_too_long",
        "no_text",
        "not_in_channel",
        "restricted_action",
        "restricted_action_non_threadable_channel",
        "restricted_action_read_only_channel",
        "restricted_action_thread_locked",
        "restricted_action_thread_only_channel",
        "thread_not_found",
        "user_disabled",
        "user_not_found",
        "user_not_in_channel",
    }
)
"""Asking again will not help. Any other word may be about Slack's state, or the token's, and passes.

https://docs.slack.dev/reference/methods/chat.postMessage
"""

HOME_ERRORS: Final = frozenset(
    {"invalid_arguments", "not_enabled", "user_disabled", "user_not_found", "view_too_large"}
)
"""Publishing this Home again will not help: https://docs.slack.dev/reference/methods/views.publish#errors"""

TOKEN_ERRORS: Final = frozenset({"account_inactive", "invalid_auth", "not_authed", "token_expired", "token_revoked"})
"""What `auth.test` says of a token that is no good: https://docs.slack.dev/reference/methods/auth.test"""

FILE_ERRORS: Final = PERMANENT_ERRORS | frozenset(
    {
        "access_denied",
        "file_upload_size_restricted",
        "file_uploads_disabled",
        "file_uploads_except_images_disabled",
        "missing_scope",
        "not_allowed_token_type",
        "posting_to_channel_denied",
        "slack_connect_file_upload_sharing_blocked",
        "storage_limit_reached",
    }
)
"""Sending this file again will not help: https://docs.slack.dev/reference/methods/files.completeUploadExternal"""

UPLOAD_TIMEOUT_S: Final = 30
"""For each wait while a file is sent; it is in nobody's way."""

NO_MESSAGE_TS: Final = "1.000001"
"""Older than Slack."""

VIEW_ERRORS: Final = frozenset({"invalid_arguments", "not_found", "view_not_found", "view_too_large"})
"""Asking again will not help: mostly the person has closed it. https://docs.slack.dev/reference/methods/views.update"""

OPEN_VIEW_TIMEOUT_S: Final = 1.5
"""A listener waits for this call, and Slack for the listener: 3 s in all, which is also how long a trigger_id lives."""

MAX_OPENING: Final = 8
"""Forms under way to Slack: where it is slow, the other threads go on taking clicks."""

OPENED_BEFORE: Final = "exchanged_trigger_id"
"""An earlier delivery of the same click has opened the view."""

CARD_NAMESPACE: Final = uuid.UUID("7f4c1c0e-3d0b-5f0c-9a51-2f4f6f1f8f5e")


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who the bot is in which workspace."""

    team_id: str
    team_url: str
    bot_user_id: str


class Notifier:
    """The Messenger of `bot.workflow`, the HomePublisher of `bot.home`, the CheckpointPoster of `bot.checkpointing`.

    And the ExportMessenger of `bot.exporting`.
    """

    def __init__(self, *, token: str, api_url: str, notify: Sequence[str], timeout_s: int = TIMEOUT_S) -> None:
        # No retry handlers: slack_sdk's would post twice when an answer is lost. The row's due time retries.
        self._client = WebClient(token=token, base_url=api_url, timeout=timeout_s, retry_handlers=[])
        # urllib takes a fraction of a second, whatever slack_sdk's annotation says.
        urgent: Any = OPEN_VIEW_TIMEOUT_S
        self._urgent_client = WebClient(token=token, base_url=api_url, timeout=urgent, retry_handlers=[])
        self._file_client = WebClient(token=token, base_url=api_url, timeout=UPLOAD_TIMEOUT_S, retry_handlers=[])
        self._opening = threading.BoundedSemaphore(MAX_OPENING)
        self._notify = tuple(notify)
        self._timeout_s = timeout_s
        self._pace = Pace()
        self._workspace_url: str | None = None  # until Slack has told it; links to cards need it

    def who_am_i(self) -> Identity:
        """Ask Slack whose token this is. Raises CannotPost (the token is no good), TryLater."""
        answer = call(self._client.auth_test, permanent=TOKEN_ERRORS)
        self._workspace_url = answer["url"]
        return Identity(team_id=answer["team_id"], team_url=answer["url"], bot_user_id=answer["user_id"])

    def post_card(self, request: CancelRequest) -> Posted:
        """Post the card where it goes. Raises CannotPost, TryLater."""
        card = messages.card(request, notify=self._notify, is_new=True)
        answer = self._call_in_turn(
            request.id,
            self._client.chat_postMessage,
            channel=request.card_goes_to,
            client_msg_id=str(uuid.uuid5(CARD_NAMESPACE, f"{request.team_id}:{request.trigger_id}")),
            **_content(card),
        )
        return self._posted(answer)

    def redraw_card(self, request: CancelRequest, *, channel_id: str, ts: str) -> None:
        """Raises CannotPost, TryLater."""
        card = messages.card(request, notify=self._notify)
        self._call_in_turn(request.id, self._client.chat_update, channel=channel_id, ts=ts, **_content(card))

    def post_verdict(self, request: CancelRequest) -> Posted:
        """Raises CannotPost, TryLater."""
        verdict = messages.thread_message(request, notify=self._notify)
        assert verdict is not None, f"state {request.state} has no words for the thread"
        assert request.card_channel_id is not None
        answer = self._call_in_turn(
            request.id,
            self._client.chat_postMessage,
            channel=request.card_channel_id,
            thread_ts=request.card_ts,
            **_content(verdict),
        )
        return self._posted(answer)

    def post_reminder(self, request: CancelRequest, *, may_still_approve: Sequence[str]) -> None:
        """Raises CannotPost, TryLater."""
        assert request.card_channel_id is not None
        reminder = messages.reminder(request, may_still_approve=may_still_approve, notify=self._notify)
        self._call_in_turn(
            request.id,
            self._client.chat_postMessage,
            channel=request.card_channel_id,
            thread_ts=request.card_ts,
            **_content(reminder),
        )

    def post_checkpoint(self, signed: SignedCheckpoint, *, channel_id: str) -> tuple[str, str]:
        """Raises CannotPost, TryLater."""
        answer = self._call_in_turn(
            signed.signature,
            self._client.chat_postMessage,
            channel=channel_id,
            client_msg_id=str(uuid.uuid5(CARD_NAMESPACE, signed.signature)),
            **_content(messages.checkpoint(signed)),
        )
        return answer["channel"], answer["ts"]

    def post_broken_audit(self, fault: str, *, channel_id: str) -> None:
        """Raises CannotPost, TryLater."""
        told = messages.broken_audit(fault)
        self._call_in_turn(fault, self._client.chat_postMessage, channel=channel_id, **_content(told))

    def send_export(self, export: Export, file: ExportFile) -> None:
        """Into the person's direct messages. Raises CannotPost, TryLater.

        https://docs.slack.dev/messaging/working-with-files#upload
        """
        opened = call(self._file_client.conversations_open, permanent=FILE_ERRORS, users=export.person.id)
        call(
            self._file_client.files_upload_v2,
            permanent=FILE_ERRORS,
            channel=opened["channel"]["id"],
            filename=export.file_name,
            title=export.file_name,
            content=file.content,
            initial_comment=messages.export_comment(export, file),
        )

    def tell_no_export(self, export: Export) -> None:
        """Raises CannotPost, TryLater."""
        told = messages.no_export(export.fault or "")
        call(self._client.chat_postMessage, channel=export.person.id, text=told, unfurl_links=False)

    def tell(self, notice: Notice) -> None:
        """By the response_url, else as an ephemeral message, else as a direct message. Raises CannotPost, TryLater."""
        text = self._line(notice)
        if notice.response_url is not None and self.respond(notice.response_url, text):
            return
        if notice.kind is not NoticeKind.VERDICT:
            try:
                call(self._client.chat_postEphemeral, channel=notice.channel_id, user=notice.user_id, text=text)
            except CannotPost as error:
                log.info("not told in the channel", extra={"error": error.error, "user": notice.user_id})
            else:
                return
        call(self._client.chat_postMessage, channel=notice.user_id, text=text, unfurl_links=False)

    def can_see_channel(self, channel_id: str) -> bool:
        """Whether Slack lets the bot know of the channel, which is all that it tells without a scope for more.

        Asked for a message that cannot be there: a channel that it sees answers `message_not_found`.
        https://docs.slack.dev/reference/methods/chat.getPermalink. Raises CannotPost, TryLater.
        """
        permanent = TOKEN_ERRORS | {"channel_not_found", "message_not_found"}
        try:
            call(self._client.chat_getPermalink, permanent=permanent, channel=channel_id, message_ts=NO_MESSAGE_TS)
        except CannotPost as error:
            if error.error in TOKEN_ERRORS:
                raise
            return error.error == "message_not_found"
        return True

    def _posted(self, answer: SlackResponse) -> Posted:
        channel_id, ts = answer["channel"], answer["ts"]
        link = None if self._workspace_url is None else messages.permalink(self._workspace_url, channel_id, ts)
        return Posted(channel_id=channel_id, ts=ts, permalink=link)

    def _card_link(self, request: CancelRequest) -> str | None:
        """The card's address, None where it or the workspace's is not known."""
        if self._workspace_url is None:
            with suppress(MessengerError):
                self.who_am_i()
        return messages.card_link(request, self._workspace_url)

    def open_view(self, trigger_id: str, view: dict[str, Any]) -> None:
        """Open a form before the person whose click or command this was, once. Raises CannotPost, TryLater."""
        if not self._opening.acquire(blocking=False):
            raise TryLater("too_many_forms", nothing_done=True)
        try:
            call(self._urgent_client.views_open, trigger_id=trigger_id, view=view)
        except TryLater as error:
            if error.cause != OPENED_BEFORE:
                raise
        finally:
            self._opening.release()

    def fill_form(self, form: Form, choice: Choice) -> None:
        """Show the choice in the form. Raises CannotPost (nobody has it open any more), TryLater."""
        self.update_view(form.id, views.choice(form, choice))

    def update_view(self, external_id: str, view: dict[str, Any]) -> None:
        """Put a view in place of the one that was opened under this id. Raises CannotPost, TryLater."""
        call(self._client.views_update, permanent=VIEW_ERRORS, external_id=external_id, view=view)

    def publish_home(self, view: HomeView) -> None:
        """Put this on the person's Home tab. Raises CannotPost, TryLater."""
        if self._workspace_url is None:
            raise TryLater("workspace_not_known_yet")
        content = views.home(view, workspace_url=self._workspace_url)
        try:
            call(self._client.views_publish, permanent=HOME_ERRORS, user_id=view.person.id, view=content)
        except CannotPost as error:
            log.warning("a Home cannot be drawn: %s", error.error, extra={"user": view.person.id})
            raise

    def _call_in_turn(
        self, who: Hashable, method: Callable[..., SlackResponse], *, channel: str, **arguments: Any
    ) -> SlackResponse:
        """A call to a channel that others call, too. Raises CannotPost, TryLater."""
        place = (method.__name__, channel)
        wait_s = self._pace.wait_s(place, who)
        if wait_s > 0:
            raise TryLater("not_our_turn", retry_after_s=wait_s, nothing_done=True)
        try:
            return call(method, channel=channel, **arguments)
        except TryLater as error:
            if error.retry_after_s:
                self._pace.limit(place, retry_after_s=error.retry_after_s)
            raise

    def respond(self, response_url: str, text: str) -> bool:
        """Answer privately by Slack's response_url; False if Slack takes it no more. Raises TryLater."""
        webhook = WebhookClient(response_url, timeout=self._timeout_s, retry_handlers=[])
        try:
            answer = webhook.send(text=text, response_type="ephemeral", replace_original=False)
        except (SlackClientError, OSError, ValueError) as error:
            raise TryLater(type(error).__name__) from None
        if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS or answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise TryLater(f"http_{answer.status_code}", retry_after_s=_retry_after_s(answer.headers))
        return answer.status_code == HTTPStatus.OK

    def _line(self, notice: Notice) -> str:
        request = notice.request
        match notice.kind:
            case NoticeKind.CLICK_REFUSED:
                assert notice.reason is not None
                return messages.click_refused(notice.reason, request)
            case NoticeKind.FORM_NOT_OPENED:
                return messages.form_not_opened(request)
            case NoticeKind.STILL_READING if request is not None:
                return messages.still_reading(request)
            case NoticeKind.STILL_ASKING_WHO_MAY if request is not None:
                return messages.still_asking_who_may(request)
            case NoticeKind.REQUEST_REFUSED if request is not None:
                return messages.request_refused(request)
            case NoticeKind.CARD_ELSEWHERE if request is not None:
                return messages.card_elsewhere(request, link=self._card_link(request))
            case NoticeKind.VERDICT if request is not None:
                return messages.summary_elsewhere(request, notify=self._notify)
            case _:
                raise CannotPost("nothing_to_say")


def call(
    method: Callable[..., SlackResponse], *, permanent: frozenset[str] = PERMANENT_ERRORS, **arguments: Any
) -> SlackResponse:
    """One call of Slack's Web API. Raises CannotPost for the permanent errors, TryLater for any other."""
    try:
        return method(**arguments)
    except SlackApiError as error:
        raise _sorted(error, permanent=permanent) from None
    except (SlackClientError, OSError, ValueError) as error:
        raise TryLater(type(error).__name__) from None


def _content(message: messages.Message) -> dict[str, Any]:
    content = {"text": message.text, "blocks": message.blocks, "unfurl_links": False, "unfurl_media": False}
    return content if message.metadata is None else {**content, "metadata": message.metadata}


def _sorted(error: SlackApiError, *, permanent: frozenset[str]) -> CannotPost | TryLater:
    answer = error.response
    word = str(answer.get("error") or "unknown_error")
    if answer.status_code == HTTPStatus.OK and word in permanent:
        return CannotPost(word)
    is_limited = answer.status_code == HTTPStatus.TOO_MANY_REQUESTS
    return TryLater(word, retry_after_s=_retry_after_s(answer.headers), nothing_done=is_limited)


def _retry_after_s(headers: Any) -> float:
    told = next((value for name, value in headers.items() if name.lower() == "retry-after"), "0")
    told = told[0] if isinstance(told, list) else told
    return min(float(told), 3600.0) if str(told).isdecimal() else 0.0
