"""Who may do what, as a table: written by hand here, compared with the policy, and printed into docs/approvals.md.

After a rule was changed on purpose: `UPDATE_APPROVALS=1 pytest tests/test_approvals.py -n 0`, and read the diff.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from builders import APPROVER, HOME, ORDER_UUID, REQUESTER, SECOND, START, STRANGER

from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Actor, Reason
from bot.domain.cancel_request import CancelRequest, Decision, DecisionKind, State
from bot.domain.membership import Group, Membership
from bot.slack import messages

PAGE: Final = Path(__file__).parent.parent / "docs" / "approvals.md"
BEGIN: Final = "<!-- the table: written by tests/test_approvals.py -->"
END: Final = "<!-- the end of the table -->"

DESK: Final = "S0DESK"
BOSS: Final = Actor(id="U0BOSS", name="boss", team_id=HOME)
MEMBER: Final = Actor(id="U0MEMBER", name="member", team_id=HOME)
LEFT: Final = Actor(id="U0LEFT", name="left", team_id=HOME)
NEW: Final = Actor(id="U0NEW", name="new", team_id=HOME)

ACTORS: Final[Mapping[str, Actor]] = {
    "who asked": REQUESTER,
    "an approver": APPROVER,
    "a member of an approvers' group": MEMBER,
    "an approver of today, not on the card": NEW,
    "an approver of the card, not of today": LEFT,
    "anybody else": STRANGER,
    "somebody of another workspace": replace(APPROVER, team_id="T0OTHER"),
}

POLICY: Final = ApprovalPolicy(approvers=frozenset({APPROVER.id, SECOND.id, NEW.id, DESK}))
KNOWN: Final = Membership(groups={DESK: Group(members=frozenset({MEMBER.id}), read_at=START)})
UNKNOWN: Final = Membership(groups={DESK: Group(error="ratelimited")})


def request(**changes: Any) -> CancelRequest:
    """A request that waits for one approval."""
    fields: dict[str, Any] = {
        "id": 42,
        "order_uuid": ORDER_UUID,
        "state": State.PENDING,
        "requester": REQUESTER,
        "reason": "",
        "team_id": HOME,
        "channel_id": "C0DESK",
        "trigger_id": "trigger",
        "created_at": START,
        "opened_at": START,
        "approvers": tuple(sorted({APPROVER.id, SECOND.id, MEMBER.id, LEFT.id})),
        "expires_at": START + timedelta(minutes=30),
    }
    return CancelRequest(**{**fields, **changes})


APPROVED_ONCE: Final = request(
    approvals_required=2, decisions=(Decision(kind=DecisionKind.APPROVE, actor=APPROVER, decided_at=START),)
)
SELF: Final = replace(POLICY, self_approval=True, approvers=POLICY.approvers | {REQUESTER.id})

Situation = tuple[ApprovalPolicy, CancelRequest, Membership]

SITUATIONS: Final[Mapping[str, Situation]] = {
    "waiting for approval": (POLICY, request(), KNOWN),
    "who asked is an approver": (replace(SELF, self_approval=False), request(), KNOWN),
    "the same, with `SELF_APPROVAL=true`": (
        SELF,
        request(approvers=(*request().approvers, REQUESTER.id)),
        KNOWN,
    ),
    "one of two, the approver has approved": (POLICY, APPROVED_ONCE, KNOWN),
    "the group cannot be read": (POLICY, request(), UNKNOWN),
    "the order is still being read": (POLICY, request(state=State.REQUESTED, approvers=(), opened_at=None), KNOWN),
    "its time is over": (POLICY, request(expires_at=START), KNOWN),
    "approved, sent, or ended": (POLICY, request(state=State.APPROVED), KNOWN),
}

WORDS: Final[Mapping[str, Reason | None]] = {
    "yes": None,
    "own": Reason.OWN_REQUEST,
    "no": Reason.NOT_AN_APPROVER,
    "guest": Reason.OTHER_WORKSPACE,
    "theirs": Reason.NOT_THE_REQUESTER,
    "unknown": Reason.MEMBERSHIP_UNKNOWN,
    "again": Reason.ALREADY_APPROVED,
    "early": Reason.NOT_YET_PENDING,
    "over": Reason.EXPIRED,
    "late": Reason.ALREADY_DECIDED,
    "asker": Reason.NOT_A_REQUESTER,
    "many": Reason.TOO_MANY_OPEN_REQUESTS,
    "place": Reason.CHANNEL_NOT_ALLOWED,
}
"""What a word of the tables stands for: it counts, or why it does not."""

TABLE: Final[Mapping[str, Mapping[str, str]]] = {
    # situation -> what is pressed -> what comes of it for each of ACTORS, in their order
    "waiting for approval": {
        "approve": "no yes yes no no no guest",
        "deny": "no yes yes yes no no guest",
        "withdraw": "yes theirs theirs theirs theirs theirs guest",
    },
    "who asked is an approver": {
        "approve": "own yes yes no no no guest",
        "deny": "yes yes yes yes no no guest",
        "withdraw": "yes theirs theirs theirs theirs theirs guest",
    },
    "the same, with `SELF_APPROVAL=true`": {
        "approve": "yes yes yes no no no guest",
        "deny": "yes yes yes yes no no guest",
        "withdraw": "yes theirs theirs theirs theirs theirs guest",
    },
    "one of two, the approver has approved": {
        "approve": "no again yes no no no guest",
        "deny": "no yes yes yes no no guest",
        "withdraw": "yes theirs theirs theirs theirs theirs guest",
    },
    "the group cannot be read": {
        "approve": "no yes unknown no unknown no guest",
        "deny": "unknown yes unknown yes unknown unknown guest",
        "withdraw": "yes theirs theirs theirs theirs theirs guest",
    },
    "the order is still being read": {
        "approve": "no early early early no no guest",
        "deny": "no early early early no no guest",
        "withdraw": "early theirs theirs theirs theirs theirs guest",
    },
    "its time is over": {
        "approve": "no over over over no no guest",
        "deny": "no over over over no no guest",
        "withdraw": "over theirs theirs theirs theirs theirs guest",
    },
    "approved, sent, or ended": {
        "approve": "no late late late no no guest",
        "deny": "no late late late no no guest",
        "withdraw": "late theirs theirs theirs theirs theirs guest",
    },
}

ASKING: Final[Mapping[str, tuple[dict[str, Any], Membership, int, str]]] = {
    # what `REQUESTERS` says -> the policy, the groups, the open requests, and what comes of it for each of ACTORS
    "empty": ({}, KNOWN, 0, "yes yes yes yes yes yes guest"),
    "names who asked and the group": (
        {"requesters": frozenset({REQUESTER.id, DESK})},
        KNOWN,
        0,
        "yes asker yes asker asker asker guest",
    ),
    "the same, and the group cannot be read": (
        {"requesters": frozenset({REQUESTER.id, DESK})},
        UNKNOWN,
        0,
        "yes unknown unknown unknown unknown unknown guest",
    ),
    "empty, and `CHANNELS` does not name this channel": (
        {"channels": frozenset({"C0OTHER"})},
        KNOWN,
        0,
        "place place place place place place guest",
    ),
    "empty, and they have `MAX_OPEN_REQUESTS_PER_PERSON` open": ({}, KNOWN, 20, "many many many many many many guest"),
}

CELLS: Final = [
    (situation, action, person, outcome)
    for situation, rows in TABLE.items()
    for action, outcomes in rows.items()
    for person, outcome in zip(ACTORS, outcomes.split(), strict=True)
]
ASKING_CELLS: Final = [
    (said, person, outcome)
    for said, (*_, outcomes) in ASKING.items()
    for person, outcome in zip(ACTORS, outcomes.split(), strict=True)
]


def judged(situation: str, action: str, person: str) -> Reason | None:
    policy, asked, membership = SITUATIONS[situation]
    return policy.refusal(asked, ACTORS[person], DecisionKind(action), START, membership)


def judged_command(said: str, person: str) -> Reason | None:
    lists, membership, open_requests, _ = ASKING[said]
    policy = replace(POLICY, **lists)
    return policy.command_refusal(
        ACTORS[person],
        home_team=HOME,
        channel_id="C0DESK",
        open_requests=open_requests,
        membership=membership,
    )


@pytest.mark.parametrize(("situation", "action", "person", "outcome"), CELLS)
def test_the_policy_gives_to_each_what_the_table_says(situation: str, action: str, person: str, outcome: str) -> None:
    """Rule by action by person, by hand: a path that checks less than another one shows up as a cell."""
    assert judged(situation, action, person) is WORDS[outcome]


@pytest.mark.parametrize(("said", "person", "outcome"), ASKING_CELLS)
def test_the_policy_lets_those_ask_whom_the_table_names(said: str, person: str, outcome: str) -> None:
    """The same for the command."""
    assert judged_command(said, person) is WORDS[outcome]


def test_the_tables_are_whole() -> None:
    """A situation, a button or a kind of person that nobody thought of fails here first."""
    assert set(TABLE) == set(SITUATIONS)
    assert all(set(rows) == set(DecisionKind) for rows in TABLE.values())
    used = {outcome for *_, outcome in (*CELLS, *ASKING_CELLS)}
    assert used == set(WORDS)


# --- The page -------------------------------------------------------------------------------------------------------


def shown(reason: Reason | None) -> str:
    return "yes" if reason is None else f"`{reason}`"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def in_words(reason: Reason) -> str:
    """The line that people read for a reason, without names and times that are of the example."""
    if reason in {Reason.NOT_A_REQUESTER, Reason.CHANNEL_NOT_ALLOWED, Reason.TOO_MANY_OPEN_REQUESTS}:
        return messages.command_refused(reason, limit=20)
    example = {
        Reason.ALREADY_APPROVED: APPROVED_ONCE,
        Reason.ALREADY_DECIDED: replace(APPROVED_ONCE, state=State.APPROVED, approvals_required=1),
    }
    asked = example.get(reason, request())
    return re.sub(r" ?<!date[^>]*>", "", messages.click_refused(reason, replace(asked, approvers=())))


def printed() -> str:
    """The tables of the page, from the policy itself."""
    lines = ["### Pressing a button", "", line("situation", "button", *ACTORS), line(*["---"] * (len(ACTORS) + 2))]
    lines += [
        line(situation, action, *(shown(judged(situation, action, person)) for person in ACTORS))
        for situation, rows in TABLE.items()
        for action in rows
    ]
    lines += ["", "### Typing the command", "", line("`REQUESTERS`", *ACTORS), line(*["---"] * (len(ACTORS) + 1))]
    lines += [line(said, *(shown(judged_command(said, person)) for person in ACTORS)) for said in ASKING]
    lines += ["", "### What they are told", "", line("reason", "what they are told, privately"), line("---", "---")]
    lines += [line(f"`{reason}`", plain(in_words(reason))) for reason in WORDS.values() if reason is not None]
    return "\n".join(lines)


def plain(text: str) -> str:
    """Slack's markup as Markdown shows it."""
    return re.sub(r"<@(\w+)>", r"@\1", text).replace("@U0REQUESTER", "@dana").replace("|", "\\|")


def test_the_page_says_what_the_policy_does() -> None:
    """The document is printed from the function, so it cannot lie."""
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    if os.environ.get("UPDATE_APPROVALS"):
        page = f"{before}{BEGIN}\n\n{printed()}\n\n{END}{after}"
        PAGE.write_text(page, encoding="utf-8")
    assert page == f"{before}{BEGIN}\n\n{printed()}\n\n{END}{after}"
