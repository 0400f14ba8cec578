"""The demo: the real bot as a process of its own, against a Slack workspace and an exchange on loopback.

play
├── BotProcess     `python -m bot run`, started, asked and stopped; for the tests too
├── _Conversation  what people do, and what must come of it
└── _Screen        what people read, with a card in full only once
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self

from bot.playground.exchange import Exchange, Key
from bot.playground.slack import SlackWorkspace
from bot.playground.slack_records import Answer, Message, Person

DANA: Final = Person("U0DANA", "dana")
BEN: Final = Person("U0BEN", "ben")
CARA: Final = Person("U0CARA", "cara")
EMIL: Final = Person("U0EMIL", "emil")
APPROVERS: Final = (DANA, BEN, EMIL)
DESK: Final = "C0DESK"
RULES: Final = {"APPROVAL_TIERS": "KRW-*:200000000=2, *=1", "REFRESH_SECONDS": "5"}
"""What the demo's bot is told beside what it needs."""

KEPT: Final = {"PATH", "PYTHONPATH", "TMPDIR"}
"""What the bot gets of our environment, beside what measures coverage."""

READY_WITHIN_S: Final = 20.0
ASK_AGAIN_AFTER_S: Final = 0.02
STOP_WITHIN_S: Final = 10.0
COMMAND_WITHIN_S: Final = 20.0
STEP_WITHIN_S: Final = 10.0

LOG_TAIL_LINES: Final = 20
LONG_MESSAGE_LINES: Final = 6
"""A message of more lines than this is a card or a summary."""
RULE_CHARS: Final = 100


# --- The bot as a process -------------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def playground_settings(slack: SlackWorkspace, exchange: Exchange, *, key: Key, socket_mode: bool) -> dict[str, str]:
    """Everything the bot must be told to work against this workspace and this exchange."""
    ours = slack.installation
    reached = {"SLACK_APP_TOKEN": ours.app_token} if socket_mode else {"SLACK_SIGNING_SECRET": ours.signing_secret}
    return reached | {
        "SLACK_BOT_TOKEN": ours.bot_token,
        "SLACK_API_URL": slack.api_url,
        "UPBIT_OPEN_API_ACCESS_KEY": key.access_key,
        "UPBIT_OPEN_API_SECRET_KEY": key.secret_key,
        "UPBIT_OPEN_API_SERVER_URL": exchange.url,
        "APPROVERS": ",".join(person.id for person in APPROVERS),
        "NOTIFY": BEN.id,
    }


class BotProcess:
    """`python -m bot` in a folder of its own, with these settings and nothing else of our environment.

    `module` is another program with the same commands.
    """

    def __init__(self, *, folder: Path, settings: Mapping[str, str], module: str = "bot") -> None:
        self.port = free_port()
        self.log_path = folder / "bot.log"
        self._folder = folder
        self._program = (sys.executable, "-m", module)
        self._environment = {
            **{name: text for name, text in os.environ.items() if name in KEPT or name.startswith("COV")},
            "DATABASE_URL": f"sqlite:///{folder / 'cancels.db'}",
            "PORT": str(self.port),
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def events_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/slack/events"

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            # A session of its own, so that its children can be ended with it.
            self._process = subprocess.Popen(
                [*self._program, "run"],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self, *, timeout_s: float = READY_WITHIN_S) -> None:
        """Until `/readyz` answers 200. Raises TimeoutError, also where the process has ended."""
        assert self._process is not None
        pause = threading.Event()
        answered: tuple[int, str] | None = None
        for _ in range(round(timeout_s / ASK_AGAIN_AFTER_S)):
            answered = self.get("/readyz")
            if answered is not None and answered[0] == 200:  # noqa: PLR2004 - HTTP's OK
                return
            if self._process.poll() is not None:
                break
            pause.wait(ASK_AGAIN_AFTER_S)
        raise TimeoutError(f"the bot did not become ready; /readyz said {answered}")

    def get(self, path: str) -> tuple[int, str] | None:
        """Status and body of one of its health routes; None where nobody answers."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    def command(self, *arguments: str, settings: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run another command of the bot with the same settings, or with some of them changed."""
        return subprocess.run(
            [*self._program, *arguments],
            cwd=self._folder,
            env={**self._environment, **(settings or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_S,
            check=False,
        )

    def audit(self) -> list[dict[str, Any]]:
        """Every audit event, the oldest first. Raises ValueError."""
        listed = self.command("audit", "list", "--limit", "100000", "--format", "json")
        if listed.returncode != 0:
            raise ValueError(f"bot audit list: {listed.stderr}")
        return [json.loads(line) for line in reversed(listed.stdout.splitlines())]

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, *, timeout_s: float = STOP_WITHIN_S) -> int:
        """SIGTERM; the exit status. Raises TimeoutError."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the bot did not stop within {timeout_s} s") from None

    def kill(self) -> None:
        """SIGKILL to it and its children; nothing happens where they are gone."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and its children; nothing happens where they are gone."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    @property
    def serving_pid(self) -> int | None:
        """The process that serves, a child of the one that was started; None where it is not there yet."""
        if self._process is None:
            return None
        with suppress(OSError):
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            return int(children[0]) if children else None
        return None

    @property
    def memory_bytes(self) -> int:
        """What the process that serves holds in memory; 0 where there is none."""
        with suppress(OSError):
            resident_pages = Path(f"/proc/{self.serving_pid}/statm").read_text().split()[1]
            return int(resident_pages) * os.sysconf("SC_PAGE_SIZE")
        return 0

    def log(self) -> str:
        """What it has printed so far."""
        return self.log_path.read_text(encoding="utf-8") if self.log_path.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


# --- The play -------------------------------------------------------------------------------------------------------


def play(*, socket_mode: bool = False, write: Callable[[str], None] = print) -> int:
    """Play the main job and print it; 0 if everything came out as it must, else 1."""
    if socket_mode and find_spec("websockets") is None:
        write("Socket Mode needs the extra `playground`: pip install 'upbit-cancel-bot[playground]'")
        return 1
    key = Key()
    with (
        tempfile.TemporaryDirectory(prefix="cancel-bot-demo-") as folder,
        SlackWorkspace(people=(DANA, BEN, CARA, EMIL)) as slack,
        Exchange(keys=(key,)) as exchange,
        BotProcess(
            folder=Path(folder), settings=playground_settings(slack, exchange, key=key, socket_mode=socket_mode) | RULES
        ) as bot,
    ):
        if not socket_mode:
            slack.events_url = bot.events_url
        conversation = _Conversation(slack, exchange, bot, write)
        faults = conversation.play()
        if faults:
            write("\n".join(["", "This is wrong:", *(f"  ✗ {fault}" for fault in faults), "", "The bot's last lines:"]))
            write("\n".join(bot.log().splitlines()[-LOG_TAIL_LINES:]))
            return 1
        over = "over Socket Mode" if socket_mode else "over HTTP"
        write(f"\nAll came out as it must: {conversation.checked} things were checked, Slack was reached {over}.")
    return 0


class _Conversation:
    """What people do, in order; each step waits for what must come of it, and notes what did not."""

    def __init__(
        self, slack: SlackWorkspace, exchange: Exchange, bot: BotProcess, write: Callable[[str], None]
    ) -> None:
        self.checked = 0
        self._slack = slack
        self._exchange = exchange
        self._bot = bot
        self._write = write
        self._screen = _Screen(slack, write)
        self._faults: list[str] = []
        self._act = ""

    def play(self) -> list[str]:
        """What was wrong; empty if nothing was."""
        try:
            self._title("Starting the bot: python -m bot run")
            self._bot.wait_until_ready()
            self._slip()
            self._cancel()
            self._denial()
            self._race()
            self._large()
            self._withdrawal()
            self._moved()
            self._home()
            self._stop()
            self._audit()
        except (AssertionError, TimeoutError, ValueError, subprocess.TimeoutExpired) as error:
            self._screen.show()
            self._faults.append(f"{self._act}: {str(error).splitlines()[0].removesuffix('; so far:')}")
        return self._faults

    def _slip(self) -> None:
        self._title("dana mistypes")
        answer = self._slack.command(DANA.id, DESK, "my btc order")
        self._check("a wrong uuid is answered at once", "is not the uuid of an order" in answer.text)
        self._screen.show()

    def _cancel(self) -> None:
        self._title("dana asks for an order to be canceled of which 0.42 of 1 BTC is filled")
        uuid = self._exchange.place(volume="1")
        self._exchange.set_book("KRW-BTC", bid="97480000", ask="97500000")
        self._exchange.fill(uuid, "0.42")
        card = self._ask(1, f"{uuid} spread too wide")
        self._title("cara is no approver, and dana, who is one, may not approve her own request")
        self._refused_click(CARA, card, "You may not decide request #1")
        self._refused_click(DANA, card, "You asked for request #1 yourself")
        self._check("nothing is sent before an approval", not self._exchange.deletes())
        self._title("ben approves")
        self._slack.click(BEN.id, card, "approve")
        self._ended(card, "Cancel request #1: canceled", "Canceled: 0.58 of 1 BTC; 0.42 BTC had been filled.")
        self._check("the exchange got one DELETE", len(self._exchange.deletes(uuid)) == 1)
        self._check("the exchange shows the order canceled", self._exchange.order(uuid)["state"] == "cancel")

    def _denial(self) -> None:
        self._title("dana chooses another order in the form that /cancel alone opens, and ben denies with a reason")
        uuid = self._exchange.place(market="KRW-ETH", price="4000000", volume="2.5")
        card = self._choose(2, uuid)
        self._slack.click(BEN.id, card, "deny_with_reason")
        form = self._slack.wait_for(lambda slack: slack.views(BEN.id), timeout_s=STEP_WITHIN_S)[-1]
        self._screen.show()
        self._check("a form that is open has denied nothing", headline_of(self._slack, card).startswith("Cancel this"))
        self._slack.submit_view(BEN.id, form, {"reason": "the desk still wants it"})
        verdict = "Denied by @ben: nothing was sent to Upbit. Their reason: `the desk still wants it`."
        self._ended(card, "Cancel request #2: denied, nothing was sent", verdict)
        self._check("a denied request sends nothing", not self._exchange.deletes(uuid))
        self._check("the denied order stays open", self._exchange.order(uuid)["state"] == "wait")
        self._title("cara asks what has become of it")
        said = self._slack.command(CARA.id, DESK, "status #2").text
        self._screen.show()
        self._check("who asks is told who denied", f"denied by <@{BEN.id}>" in said)

    def _race(self) -> None:
        self._title("dana asks for a third order, and ben and emil press Approve at the same instant")
        uuid = self._exchange.place(market="KRW-XRP", side="bid", price="800", volume="1500")
        card = self._ask(3, f"{uuid} fat finger")
        for answer in press_at_once(self._slack, card, (BEN, "approve"), (EMIL, "approve")):
            self._check("both clicks are acknowledged", answer.ok)
        self._ended(card, "Cancel request #3: canceled", "Canceled: 1,500 of 1,500 XRP; nothing had been filled.")
        told = self._slack.wait_for(
            lambda slack: [*slack.ephemerals(BEN.id), *slack.ephemerals(EMIL.id)], timeout_s=STEP_WITHIN_S
        )
        self._screen.show()
        winner, loser = (EMIL, BEN) if told[0].visible_to == BEN.id else (BEN, EMIL)
        line = self._slack.words(told[0])[0]
        self._check(
            f"{loser.name} hears that {winner.name} was first",
            line.startswith(f"Request #3 was already approved by @{winner.name}"),
        )
        self._check("two clicks at once make one DELETE", len(self._exchange.deletes(uuid)) == 1)

    def _large(self) -> None:
        self._title("dana asks for a large order: over 200,000,000 KRW the rules want two approvals")
        uuid = self._exchange.place(price="100000000", volume="2.5")
        card = self._ask(4, f"{uuid} hedge is gone")
        lines = self._slack.words(card)
        self._check(
            "the card says how many, and why",
            any(line.startswith("Needs 2 approvals: over 200,000,000 KRW") for line in lines),
        )
        self._slack.click(BEN.id, card, "approve")
        self._slack.wait_for(lambda slack: "1 of 2" in "\n".join(_words(slack, card)), timeout_s=STEP_WITHIN_S)
        self._screen.show()
        self._check("one approval of two sends nothing", not self._exchange.deletes(uuid))
        self._slack.click(EMIL.id, card, "approve")
        self._ended(card, "Cancel request #4: canceled", "Canceled: 2.5 of 2.5 BTC; nothing had been filled.")
        self._check("two approvals make one DELETE", len(self._exchange.deletes(uuid)) == 1)

    def _withdrawal(self) -> None:
        self._title("dana changes her mind and withdraws")
        uuid = self._exchange.place()
        card = self._ask(5, uuid)
        self._slack.click(DANA.id, card, "withdraw")
        self._ended(card, "Cancel request #5: withdrawn, nothing was sent", "Withdrawn by @dana")
        self._check("a withdrawn request sends nothing", not self._exchange.deletes(uuid))

    def _moved(self) -> None:
        self._title("while people think, an order is filled: the bot looks again, and the request is over")
        uuid = self._exchange.place()
        card = self._ask(6, uuid)
        self._exchange.fill(uuid)
        self._ended(
            card,
            "Cancel request #6: the order ended elsewhere, nothing was sent",
            "Superseded: the order was fully executed",
        )
        self._check("a superseded request sends nothing", not self._exchange.deletes(uuid))

    def _home(self) -> None:
        self._title("dana opens the app's Home tab")
        self._check("the opening is acknowledged", self._slack.open_home(DANA.id).ok)
        home = self._slack.wait_for(lambda slack: slack.home(DANA.id), timeout_s=STEP_WITHIN_S)
        self._screen.show()
        assert home is not None
        shown = "\n".join(self._slack.words(home))
        outcomes = [shown.find(f"#{number} ") for number in (6, 5, 4, 3, 2, 1)]
        self._check("dana finds what came of her requests, the newest first", outcomes == sorted(outcomes))
        self._check("all of them are there", -1 not in outcomes)

    def _stop(self) -> None:
        self._title("Stopping the bot: SIGTERM")
        status = self._bot.stop()
        self._write(f"exit status {status}")
        self._check("the bot ends with status 0", status == 0)

    def _audit(self) -> None:
        self._title("The audit, the oldest first: bot audit list")
        events = self._bot.audit()
        for event in events:
            self._write(_audit_line(event))
        anywhere = {"approval.refused", "card.posted"}  # a click may come before the bot knows that Slack has the card
        told = [(event["request_id"], event["action"]) for event in events if event["action"] not in anywhere]
        ended = ["cancel.sent", "cancel.accepted", "order.canceled", "summary.posted"]
        opened, recorded = ["request.created", "request.opened"], ["approval.recorded", "request.approved"]
        approved = [*opened, "request.approved", *ended]
        denied = [*opened, "request.denied", "summary.posted"]
        self._check("the audit has the start of the bot", told[:1] == [(None, "bot.started")])
        self._check("the audit has the refused command", told[1:2] == [(None, "command.refused")])
        stories = {
            1: approved,
            2: denied,
            3: approved,
            4: [*opened, *recorded, *ended],
            5: [*opened, "request.withdrawn", "summary.posted"],
            6: [*opened, "request.superseded", "summary.posted"],
        }
        for number, actions in stories.items():
            found = [action for request_id, action in told if request_id == number]
            self._check(f"the audit tells request #{number} from its beginning to its end", found == actions)
        cards = sorted(event["request_id"] for event in events if event["action"] == "card.posted")
        self._check("the audit has every card, once", cards == sorted(stories))
        reasons = [event["reason"] for event in events if event["action"] == "request.denied"]
        self._check("the audit has why ben denied", reasons == ["the desk still wants it"])
        refusals = [event["details"]["reason"] for event in events if event["action"] == "approval.refused"]
        self._check(
            "the audit has every click that did not count",
            refusals == ["not_an_approver", "own_request", "already_decided"],
        )
        self._title("The audit proves itself: bot audit verify")
        verified = self._bot.command("audit", "verify")
        self._write((verified.stdout or verified.stderr).strip())
        self._check("the audit verifies", verified.returncode == 0)

    # What the steps share

    def _ask(self, request_id: int, text: str) -> Message:
        """Dana types the command; the card."""
        before = len(cards(self._slack))
        answer = self._slack.command(DANA.id, DESK, text)
        self._check(
            "a command is answered at once", answer.text == f"Request #{request_id} is recorded; reading the order…"
        )
        # The first edit names the approvers, so that posting the card does not call them all.
        card = self._slack.wait_for(
            lambda slack: [each for each in cards(slack)[before:] if each.versions], timeout_s=STEP_WITHIN_S
        )[0]
        self._screen.show()
        return card

    def _choose(self, request_id: int, uuid: str) -> Message:
        """Dana types the command without a uuid, and chooses in the form; the card."""
        before = len(cards(self._slack))
        self._check("a command without a uuid says nothing", self._slack.command(DANA.id, DESK, "").text == "")
        form = self._slack.wait_for(
            lambda slack: [each for each in slack.views(DANA.id) if "submit" in each.json], timeout_s=STEP_WITHIN_S
        )[-1]
        answer = self._slack.submit_view(DANA.id, form, {"order": uuid, "reason": "no longer needed"})
        self._check("a form is answered at once", answer.ok and f"Request #{request_id} is recorded" in answer.body)
        card = self._slack.wait_for(
            lambda slack: [each for each in cards(slack)[before:] if each.versions], timeout_s=STEP_WITHIN_S
        )[0]
        self._screen.show()
        return card

    def _refused_click(self, person: Person, card: Message, beginning: str) -> None:
        before = len(self._slack.ephemerals(person.id))
        self._slack.click(person.id, card, "approve")
        told = self._slack.wait_for(lambda slack: slack.ephemerals(person.id)[before:], timeout_s=STEP_WITHIN_S)
        self._screen.show()
        line = self._slack.words(told[0])[0]
        self._check(f"{person.name}'s click is refused: “{beginning}…”", line.startswith(beginning))

    def _ended(self, card: Message, headline: str, verdict: str) -> None:
        """The card says how it ended, and so does its thread."""
        thread = self._slack.wait_for(
            lambda slack: slack.thread(DESK, card.ts) if headline_of(slack, card) == headline else [],
            timeout_s=STEP_WITHIN_S,
        )
        self._screen.show()
        self._check(f"the thread says “{verdict}”", self._slack.words(thread[0])[0].startswith(verdict))
        shown = self._slack.message(DESK, card.ts)
        self._check("a card that has ended has no buttons", shown is not None and not shown.buttons)

    def _check(self, what: str, truth: bool) -> None:  # noqa: FBT001 - the one fact that is checked
        self.checked += 1
        if not truth:
            self._faults.append(f"not so: {what}")

    def _title(self, title: str) -> None:
        self._act = title
        self._write(f"\n── {title} ".ljust(RULE_CHARS, "─"))


class _Screen:
    """Prints what is new in the workspace: each kind of long message in full once, afterwards how it begins."""

    def __init__(self, slack: SlackWorkspace, write: Callable[[str], None]) -> None:
        self._slack = slack
        self._write = write
        self._shown = 0
        self._seen_in_full: set[str] = set()
        self._last_beginning: list[str] = []

    def show(self) -> None:
        lines = self._slack.transcript()
        told: list[list[str]] = []
        for line in lines[self._shown :]:
            if line.startswith(" "):
                told[-1].append(line)
            else:
                told.append([line])
        self._shown = len(lines)
        for head, *body in told:
            self._show(head, body)

    def _show(self, head: str, body: list[str]) -> None:
        if len(body) <= LONG_MESSAGE_LINES:
            self._write("\n".join([head, *body]))
            return
        beginning = body[:2]
        kind = "summary" if "thread" in head else "page" if "Home tab" in head else "card"
        if kind not in self._seen_in_full:
            self._seen_in_full.add(kind)
            self._write("\n".join([head, *body]))
        elif beginning != self._last_beginning:
            buttons = [line for line in body if line.startswith("    [")]
            self._write("\n".join([head, *beginning, *buttons, "    …"]))
        self._last_beginning = beginning


# --- What is looked for, in the demo and in the tests ---------------------------------------------------------------


def cards(slack: SlackWorkspace, channel: str = DESK) -> list[Message]:
    """Every card in the channel, the oldest first."""
    bot = slack.installation.bot_user_id
    return [each for each in slack.messages(channel) if each.author == bot and each.thread_ts is None]


def _words(slack: SlackWorkspace, card: Message) -> list[str]:
    """The card as it reads now."""
    shown = slack.message(DESK, card.ts)
    return slack.words(shown) if shown else []


def headline_of(slack: SlackWorkspace, card: Message) -> str:
    """The first line of the card as it is now."""
    current = slack.message(card.channel, card.ts)
    return slack.words(current)[0] if current else ""


def press_at_once(slack: SlackWorkspace, card: Message, *presses: tuple[Person, str]) -> list[Answer]:
    """Each person presses the button of that action_id, all at the same instant."""
    start = threading.Barrier(len(presses))
    values = {button.action_id: button.value for button in card.buttons}

    def press(person: Person, action_id: str) -> Answer:
        start.wait(STEP_WITHIN_S)
        # The value makes it a click also where the first one has already taken the buttons away.
        return slack.click(person.id, card, action_id, value=values[action_id])

    with ThreadPoolExecutor(max_workers=len(presses)) as fingers:
        return list(fingers.map(press, *zip(*presses, strict=True)))


def _audit_line(event: Mapping[str, Any]) -> str:
    """One event in one line of a terminal."""
    details = event["details"]
    columns = (
        f"{event['seq']:>3}",
        f"{event['occurred_at'][11:23]}",
        f"{'' if event['request_id'] is None else '#' + str(event['request_id']):<2}",
        f"{event['action']:<16}",
        f"{event['outcome']:<7}",
        f"{event['actor_name'] or event['actor']:<6}",
        details.get("reason") or (f"by={details['by']}" if "by" in details else ""),
    )
    return "  ".join(columns).rstrip()
