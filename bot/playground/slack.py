r"""A Slack workspace on loopback: HTTP and websockets, Slack's checks, limits, moods, and people who type and click.

    with SlackWorkspace() as slack:
        client = slack_sdk.WebClient("xoxb-playground", base_url=slack.api_url)
        slack.events_url = "http://127.0.0.1:3000/slack/events"  # left out: Socket Mode
        slack.command("U0DANA", "C0DESK", "9ca0…")
        card = slack.wait_for(lambda slack: slack.messages("C0DESK"))[0]
        slack.click("U0BEN", card, "approve")
        print("\n".join(slack.transcript()))

It knows nothing of the bot, so that it can catch the bot's faults.
"""

import dataclasses
import json
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from bot.playground.slack_board import Board, Installation
from bot.playground.slack_deliveries import COMMAND, INTERACTIVE, Deliveries, Payloads, action_of
from bot.playground.slack_moods import EVERY_METHOD, Mood, Moods
from bot.playground.slack_records import SLACK, Answer, Button, Call, Channel, Message, Person, View
from bot.playground.slack_server import LoopbackServer
from bot.playground.slack_socket import SocketMode
from bot.playground.slack_web_api import PostingPace, RefusedError, WebApi, checked_content, checked_view, new_view

T = TypeVar("T")

PEOPLE = (Person("U0DANA", "dana"), Person("U0BEN", "ben"), Person("U0CARA", "cara"))
CHANNELS = (Channel("C0DESK", "desk"),)
SCOPES = frozenset(
    {"commands", "chat:write", "chat:write.public", "usergroups:read", "users:read", "files:write", "im:write"}
)


class SlackWorkspace:
    """One workspace with one bot installed in it."""

    def __init__(  # noqa: PLR0913 (a workspace has this many things; each has a default)
        self,
        *,
        people: Iterable[Person] = PEOPLE,
        channels: Iterable[Channel] = CHANNELS,
        user_groups: Mapping[str, Collection[str]] | None = None,
        scopes: Collection[str] = SCOPES,
        bot_token: str = "xoxb-playground",
        app_token: str = "xapp-playground",
        signing_secret: str = "playground-signing-secret",
        team_id: str = "T0PLAY",
        team_domain: str = "playground",
        bot_user_id: str = "U0BOT",
        bot_name: str = "Cancel Bot",
        post_burst: int = 10,
        posts_per_s: float = 1.0,
        answer_within_s: float = 3.0,
        now: Callable[[], float] = time.time,
        choose: random.Random | None = None,
    ) -> None:
        installation = Installation(
            team_id=team_id,
            team_domain=team_domain,
            team_url=f"https://{team_domain}.slack.com/",
            bot_token=bot_token,
            app_token=app_token,
            signing_secret=signing_secret,
            app_id="A0PLAY",
            bot_id="B0PLAY",
            bot_user_id=bot_user_id,
        )
        bot = Person(bot_user_id, bot_name, is_bot=True)
        self._board = Board(installation=installation, people=[*people, bot], channels=channels, now=now)
        self._moods = Moods()
        self._socket_mode = SocketMode(
            app_id=installation.app_id, choose=choose or random.Random(), changed=self._board.changed
        )
        self._api = WebApi(
            self._board,
            moods=self._moods,
            pace=PostingPace(burst=post_burst, per_s=posts_per_s, now=now),
            scopes=scopes,
            user_groups=user_groups,
            socket_url=self._socket_mode.ticket_url,
            base_url=lambda: self._server.url,
        )
        self._server = LoopbackServer(self._api.answer, name="slack-web-api")
        self._deliveries = Deliveries(self._board, self._socket_mode, answer_within_s=answer_within_s)
        self._payloads = Payloads(self._board, base_url=lambda: self._server.url)
        self._stopped = False

    # its life

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        """Close everything; whoever still waits for an answer does not get one."""
        if not self._stopped:
            self._stopped = True
            self._moods.clear()
            self._socket_mode.stop()
            self._server.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # how to reach it and where it delivers

    @property
    def api_url(self) -> str:
        """The base URL for slack_sdk."""
        return f"{self._server.url}/api/"

    @property
    def events_url(self) -> str | None:
        """The bot's `/slack/events`; None delivers over Socket Mode."""
        return self._deliveries.events_url

    @events_url.setter
    def events_url(self, url: str | None) -> None:
        self._deliveries.events_url = url

    @property
    def installation(self) -> Installation:
        return self._board.installation

    @property
    def connections(self) -> int:
        """How many Socket Mode connections are open."""
        return self._socket_mode.connections

    def ask_to_reconnect(self, reason: str = "refresh_requested") -> None:
        """Send `disconnect` over every Socket Mode connection."""
        self._socket_mode.ask_to_reconnect(reason)

    def cut_connections(self) -> None:
        """Close every Socket Mode connection without a word."""
        self._socket_mode.cut()

    # what a test changes while it runs

    def change_person(self, user: str, **changes: Any) -> None:
        with self._board.changed:
            self._board.people[user] = dataclasses.replace(self._board.people[user], **changes)

    def change_channel(self, channel: str, **changes: Any) -> None:
        with self._board.changed:
            self._board.channels[channel] = dataclasses.replace(self._board.channels[channel], **changes)

    def set_user_group(self, group: str, members: Collection[str]) -> None:
        with self._board.changed:
            self._api.user_groups = {**(self._api.user_groups or {}), group: frozenset(members)}

    def remove_user_group(self, group: str) -> None:
        """Delete or disable it: Slack knows it no more, unless it is asked for disabled ones."""
        with self._board.changed:
            self._api.user_groups = {
                name: members for name, members in (self._api.user_groups or {}).items() if name != group
            }

    def set_scopes(self, scopes: Collection[str]) -> None:
        with self._board.changed:
            self._api.scopes = set(scopes)

    def set_messages_tab(self, *, enabled: bool) -> None:
        with self._board.changed:
            self._api.messages_tab_enabled = enabled

    def set_mood(
        self,
        mood: str,
        *,
        method: str = EVERY_METHOD,
        times: int | None = None,
        delay_s: float = 1.0,
        retry_after_s: int = 1,
    ) -> Mood:
        """Fail from now on, `times` calls long or until cleared; the moods are in `slack_moods`, or `error:<name>`.

        Wait for `.met` of what is returned to know that a call is in it; clearing a slow mood lets its calls go on.
        """
        return self._moods.set(mood, method=method, times=times, delay_s=delay_s, retry_after_s=retry_after_s)

    def clear_moods(self, method: str | None = None) -> None:
        self._moods.clear(method)

    # what people do

    def say(self, user: str, channel: str, text: str, *, thread_ts: str | None = None) -> Message:
        """A person writes a message."""
        return self._board.post(channel=channel, author=user, text=text, thread_ts=thread_ts)

    def command(  # noqa: PLR0913 (three of them are rarely given)
        self,
        user: str,
        channel: str,
        text: str,
        *,
        command: str = "/cancel",
        trigger_id: str | None = None,
        deliveries: int = 1,
    ) -> Answer:
        """Type a command; `deliveries` > 1 brings the same one several times, one after the other."""
        person, place = self._present(user), self._board.channels[channel]
        assert not self._board.is_guest(person), f"{person.name} is of another workspace and cannot run commands"
        assert place.kind == "public" or place.has_member(user), f"{person.name} is not in {place.name}"
        self._board.note(f"{self._board.place(channel)} · {person.name} types {command} {text}".rstrip())
        payload = self._payloads.command(person, place, command, text, trigger_id)
        answers = [
            self._heard(self._deliveries.send(COMMAND, [payload]), user, place, command) for _ in range(deliveries)
        ]
        return dataclasses.replace(answers[0], copies=tuple(answers[1:]))

    def click(
        self,
        user: str,
        place: Message | View,
        action_id: str,
        *,
        value: str | None = None,
        copies: int = 1,
    ) -> Answer:
        """Press a button of what is on the screen now; `copies` are pressed at the same time.

        A `value` chooses among buttons of the same action_id; one that is on no button is sent all the same: a forged
        click, or one that was on its way while the message changed.
        """
        person = self._present(user)
        current = self._on_screen(place)
        self._assert_sees(person, current)
        button = _button(current.buttons, action_id, value)
        if button is not None:
            action, label = action_of(button), f"[{button.text}]"
        else:
            assert value is not None, f"there is no button {action_id} on:\n" + "\n".join(self.words(current))
            action = {"type": "button", "action_id": action_id, "block_id": "forged", "value": value}
            label = f"a forged [{action_id}]"
        where = "the Home tab" if isinstance(current, View) else self._board.place(current.channel)
        self._board.note(f"{where} · {person.name} presses {label}" + (f" {copies} times" if copies > 1 else ""))
        answer = self._deliveries.send(
            INTERACTIVE, [self._payloads.click(person, current, action) for _ in range(copies)]
        )
        for each in (answer, *answer.copies):
            if not each.ok:
                self._board.note(f"{where} · {person.name} sees that the click failed: {each.status}")
        return answer

    def submit_view(self, user: str, view: View, values: Mapping[str, str | None]) -> Answer:
        """Fill in a modal (action_id -> text or option value) and submit it."""
        person = self._present(user)
        current = self._on_screen(view)
        assert isinstance(current, View)
        assert current.user == user, f"{person.name} does not have this dialog open"
        assert current.is_open, "the dialog is closed"
        state = _state(current, values)
        filled = ", ".join(f"{key}: {value}" for key, value in values.items())
        self._board.note(f'{person.name} submits the dialog "{current.title}" ({filled})')
        answer = self._deliveries.send(INTERACTIVE, [self._payloads.submission(person, current, state)])
        if not answer.ok:
            self._board.note(f'{person.name} sees in the dialog "{current.title}" that it failed: {answer.status}')
            return answer
        try:
            self._after_submission(current, json.loads(answer.body or "null") or {})
        except (ValueError, TypeError, KeyError, RefusedError) as error:
            self._board.note(f'{person.name} sees in the dialog "{current.title}" that it failed: {error}')
            return dataclasses.replace(answer, status="invalid_view_response", text=str(error))
        return answer

    def close_view(self, user: str, view: View) -> None:
        """Close a modal without submitting it; the bot hears nothing of it."""
        person, current = self._present(user), self._on_screen(view)
        assert isinstance(current, View)
        assert current.user == user, f"{person.name} does not have this dialog open"
        self._board.note(f'{person.name} closes the dialog "{current.title}"')
        self._board.show(dataclasses.replace(current, is_open=False))

    def open_home(self, user: str, *, tab: str = "home", deliveries: int = 1) -> Answer:
        """Open a tab of the bot's app; `deliveries` > 1 brings the same event several times, as Slack's retries do.

        An event that is not acknowledged is delivered once more at once.
        """
        person = self._present(user)
        self._board.note(f"{person.name} opens the {tab.capitalize()} tab")
        event = self._payloads.home_opened(person, tab)
        answers = [self._deliveries.send_event(event, retry=retry) for retry in range(deliveries)]
        if not answers[-1].ok:
            answers.append(self._deliveries.send_event(event, retry=len(answers)))
        return dataclasses.replace(answers[0], copies=tuple(answers[1:]))

    def sign(self, body: bytes, timestamp: int) -> str:
        """The value of X-Slack-Signature."""
        return self._deliveries.sign(body, timestamp)

    def signed_headers(self, body: bytes) -> dict[str, str]:
        """The headers with which Slack would send this body now."""
        return self._deliveries.signed_headers(body)

    def deliver_raw(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send anything to events_url, well signed or not; no person sees the answer."""
        return self._deliveries.post(headers, body)

    # what people see

    def messages(self, channel: str) -> list[Message]:
        """Everything posted for all in a channel, replies in threads included, oldest first."""
        return [each for each in self._board.messages() if each.channel == channel and not each.is_ephemeral]

    def message(self, channel: str, ts: str) -> Message | None:
        """One message as it is now."""
        return self._board.find(channel, ts)

    def thread(self, channel: str, ts: str) -> list[Message]:
        """The replies to a message, without it."""
        return [each for each in self.messages(channel) if each.thread_ts == ts]

    def ephemerals(self, user: str) -> list[Message]:
        """What only this person saw: answers to commands, ephemeral messages, what Slack itself told."""
        return [each for each in self._board.messages() if each.visible_to == user]

    def removed(self, channel: str) -> list[Message]:
        """Messages that were deleted; what they said is in `versions`."""
        return [each for each in self._board.removed() if each.channel == channel]

    def dms(self, user: str) -> list[Message]:
        """The direct messages between the bot and a person."""
        with self._board.changed:
            channels = [
                each.id
                for each in self._board.channels.values()
                if each.kind == "dm" and each.has_bot and each.has_member(user)
            ]
        return [message for channel in channels for message in self.messages(channel)]

    def dm_channel(self, user: str) -> str:
        """The id of the direct messages between the bot and a person."""
        return self._board.dm_with(user).id

    def views(self, user: str) -> list[View]:
        """The modals that are open before a person, the top one last."""
        return self._board.modals(user)

    def home(self, user: str) -> View | None:
        return self._board.home(user)

    def words(self, place: Message | View) -> list[str]:
        """A message or a view as the lines that a person reads."""
        return self._board.words(place.blocks, place.title if isinstance(place, View) else place.text)

    def transcript(self) -> list[str]:
        """Everything in its order, as lines: who, where, for whom, and what they read."""
        with self._board.changed:
            return list(self._board.transcript)

    def calls(self, method: str | None = None) -> list[Call]:
        """The bot's calls, oldest first; those of a response_url are called `response_url`."""
        with self._board.changed:
            return [call for call in self._board.calls if method in {None, call.method}]

    def wait_for(self, predicate: "Callable[[SlackWorkspace], T]", *, timeout_s: float = 5.0) -> T:
        """What the predicate returns once it is true; asked again whenever anything here changes.

        The workspace stands still while the predicate looks: it may read, but not type, click or wait for the bot.
        """
        with self._board.changed:
            result = self._board.changed.wait_for(lambda: predicate(self), timeout_s)
            assert result, f"not within {timeout_s} s; so far:\n" + "\n".join(self.transcript())
            return result

    # inside

    def _present(self, user: str) -> Person:
        person = self._board.people[user]
        assert not person.is_deactivated, f"{person.name} is deactivated"
        return person

    def _on_screen(self, place: Message | View) -> Message | View:
        if isinstance(place, View):
            return self._board.views.get(place.id, place)
        return self._board.find(place.channel, place.ts) or dataclasses.replace(place, blocks=())

    def _assert_sees(self, person: Person, place: Message | View) -> None:
        if isinstance(place, View):
            sees = place.user == person.id
        else:
            channel = self._board.channels[place.channel]
            sees = (channel.kind == "public" or channel.has_member(person.id)) and place.visible_to in {None, person.id}
        assert sees, f"{person.name} does not see this"

    def _heard(self, answer: Answer, user: str, place: Channel, command: str) -> Answer:
        """Show the person what their command was answered, or that it failed."""
        if answer.ok:
            try:
                return dataclasses.replace(answer, text=self._show(answer, user, place))
            except RefusedError as refused:
                answer = dataclasses.replace(answer, status="invalid_command_response", text=refused.error)
        text = f'{command} failed with the error "{answer.status}"'
        self._board.post(channel=place.id, author=SLACK, text=text, visible_to=user)
        return dataclasses.replace(answer, text=text)

    def _show(self, answer: Answer, user: str, place: Channel) -> str:
        said = _said(answer)
        if not said:
            return ""
        text, blocks = checked_content(said)
        shown = self._board.post(
            channel=place.id,
            author=self.installation.bot_user_id,
            text=text,
            blocks=blocks,
            visible_to=None if said.get("response_type") == "in_channel" else user,
        )
        return "\n".join(self.words(shown)) if blocks else text

    def _after_submission(self, view: View, response: Mapping[str, Any]) -> None:
        """https://docs.slack.dev/surfaces/modals#updating_response."""
        match response.get("response_action"):
            case None:
                self._board.show(dataclasses.replace(view, is_open=False))
            case "clear":
                for each in self._board.modals(view.user):
                    self._board.show(dataclasses.replace(each, is_open=False))
            case "errors":
                errors = dict(response["errors"])
                strangers = set(errors) - {block["block_id"] for block in view.blocks if block["type"] == "input"}
                if strangers or not errors:
                    raise RefusedError(f"errors name no input block: {sorted(strangers)}")
                self._board.show(dataclasses.replace(view, errors=errors))
            case "update":
                source = checked_view(response["view"])
                self._board.show(
                    new_view(self._board, view.user, source, view_id=view.id, previous_id=view.previous_id)
                )
            case "push":
                self._board.show(new_view(self._board, view.user, checked_view(response["view"]), previous_id=view.id))
            case other:
                raise RefusedError(f"no such response_action: {other}")


def _said(answer: Answer) -> dict[str, Any]:
    """The message in the answer to a command: JSON where it says so, else the text as it is."""
    if not answer.body.strip():
        return {}
    if answer.content_type != "application/json":
        return {"text": answer.body}
    try:
        said = json.loads(answer.body)
    except ValueError:
        raise RefusedError("invalid_json") from None
    return {"text": said} if isinstance(said, str) else dict(said)


def _button(buttons: Sequence[Button], action_id: str, value: str | None) -> Button | None:
    """The button meant, if it is there; among several alike the value decides."""
    found = [each for each in buttons if each.action_id == action_id and value in {None, each.value}]
    assert len(found) <= 1, f"several buttons are called {action_id}; say which value"
    return found[0] if found else None


def _state(view: View, values: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """What was filled in, as Slack says it; asserts what Slack asks of the person first."""
    inputs = {block["element"]["action_id"]: block for block in view.blocks if block["type"] == "input"}
    assert not set(values) - set(inputs), f"no such inputs: {set(values) - set(inputs)}"
    state: dict[str, dict[str, Any]] = {}
    for action_id, block in inputs.items():
        element = block["element"]
        value = values.get(action_id, element.get("initial_value"))
        assert value or block.get("optional"), f"{block['label']['text']} must be filled in"
        assert len(value or "") <= element.get("max_length", 3000), f"{block['label']['text']} is too long"
        state[block["block_id"]] = {action_id: {"type": element["type"], **_chosen(element, value)}}
    return state


def _chosen(element: Mapping[str, Any], value: str | None) -> dict[str, Any]:
    match element["type"]:
        case "static_select" | "radio_buttons":
            grouped = [option for group in element.get("option_groups", ()) for option in group["options"]]
            chosen = [option for option in [*element.get("options", ()), *grouped] if option["value"] == value]
            return {"selected_option": chosen[0] if chosen else None}
        case "checkboxes":
            return {"selected_options": [option for option in element["options"] if option["value"] == value]}
        case "users_select":
            return {"selected_user": value}
        case _:
            return {"value": value}
