"""Plants bugs, one at a time, and shows that the tests notice: `make mutants`.

Each mutant is a change of the product that somebody could make in good faith. It is planted in a copy of the tree, and
the tests named with it must fail; where nothing is planted, the same tests must pass. Exits 1 if a mutant survives.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TIMEOUT_S: Final = 300
SOUND_TIMEOUT_S: Final = 900
"""All that is asked of mutants, once without any."""
AT_A_TIME: Final = 2


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A bug: in `file`, `right` becomes `wrong`. `tests` is what pytest is asked to run."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


WORKFLOW: Final = "bot/workflow.py"
STORE: Final = "bot/database/store.py"
LISTENERS: Final = "bot/slack/listeners.py"
TIERS: Final = "bot/domain/tiers.py"
APPROVAL: Final = "bot/domain/approval.py"

MUTANTS: Final = (
    Mutant(
        name="no guard in the UPDATE",
        file=STORE,
        right='cancel_requests.c.revision == bindparam("guarded_revision")',
        wrong='cancel_requests.c.revision >= bindparam("guarded_revision")',
        tests="tests/test_store.py -k sqlite",
    ),
    Mutant(
        name="a command that was rolled back with another is acknowledged",
        file="bot/database/together.py",
        right="            return error\n        return None\n",
        wrong="            del error\n        return None\n",
        tests="tests/test_together.py",
    ),
    Mutant(
        name="a command in doubt is written again",
        file="bot/database/together.py",
        right=" and not isinstance(error, CommitInDoubt)\n",
        wrong="\n",
        tests="tests/test_together.py",
    ),
    Mutant(
        name="effect before commit",
        file=WORKFLOW,
        right="        sending = tx.move(\n            Action.CANCEL_SENT,\n",
        wrong="        self._exchange.cancel_order(request.order_uuid, nonce=call.nonce)\n"
        "        sending = tx.move(\n            Action.CANCEL_SENT,\n",
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="sent although its announcement is in doubt",
        file=WORKFLOW,
        right="                self._keep(taken.lease)\n            raise\n        self._kept.pop",
        wrong="                self._keep(taken.lease)\n        self._kept.pop",
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="the time told before the lock is held",
        file="bot/database/engine.py",
        right='    locked = query.cte("locked")\n    return select(locked, ',
        wrong="    return query.add_columns(",
        tests="tests/test_engine.py -k 'clock or lock'",
    ),
    Mutant(
        name="a lease that is not written",
        file=STORE,
        right="            if values:\n                connection.execute(_BY_ID",
        wrong="            if not values:\n                connection.execute(_BY_ID",
        tests="tests/test_store.py tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="no look before a conclusion",
        file=WORKFLOW,
        right="                case Accepted(order=order):\n                    moved = tx.move(\n"
        "                        Action.CANCEL_ACCEPTED,\n",
        wrong="                case Accepted(order=order):\n                    moved = tx.move(\n"
        "                        Action.ORDER_CANCELED,\n",
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="refused read as failed",
        file=WORKFLOW,
        right="case Refused(proves_nothing_happened=True, name=name) if request.unanswered == 1:",
        wrong="case Refused(name=name):",
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="a certain refusal after a lost answer read as failed",
        file=WORKFLOW,
        right="case Refused(proves_nothing_happened=True, name=name) if request.unanswered == 1:",
        wrong="case Refused(proves_nothing_happened=True, name=name):",
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="time-out read as failed",
        file=WORKFLOW,
        right="                case Unknown(cause=cause):\n",
        wrong="                case Unknown(cause=cause) if cause:\n"
        "                    return Step(request=self._move_to_rejected(tx, cause, details), due_in_s=None)\n"
        "                case Unknown(cause=cause):\n",
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="time-out answered by sending again at once",
        file=WORKFLOW,
        right="LOST_ANSWER_SETTLES_AFTER: Final = timedelta(seconds=6)",
        wrong="LOST_ANSWER_SETTLES_AFTER: Final = timedelta(seconds=0)",
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="no lease",
        file=STORE,
        right="is_nobodys = leased_until is None or leased_until <= now",
        wrong="is_nobodys = leased_until is None or leased_until is not None",
        tests="tests/test_store.py tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="no fence",
        file=STORE,
        right="if request is None or request.fence != lease.fence:",
        wrong="if request is None:",
        tests="tests/test_store.py tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="head not serialised",
        file="bot/database/chain.py",
        right="select(audit_head).with_for_update()",
        wrong="select(audit_head)",
        tests="tests/test_store.py -k postgresql",
    ),
    Mutant(
        name="audit outside the transaction",
        file="bot/database/chain.py",
        right="            self._connection.execute(_APPEND",
        wrong="            self._connection.commit()\n            self._connection.execute(_APPEND",
        tests="tests/test_store.py",
    ),
    Mutant(
        name="no check of the person's workspace",
        file=APPROVAL,
        right="        if actor.team_id != request.team_id:\n",
        wrong="        if not actor.id:\n",
        tests="tests/test_domain.py tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="the clicker's workspace taken from the channel's",
        file=LISTENERS,
        right='team_id=_text(user, "team_id")',
        wrong='team_id=_text(_object(body, "team"), "id")',
        tests="tests/test_listeners.py",
    ),
    Mutant(
        name="today's allowlist not checked at the decision",
        file=APPROVAL,
        right="        if actor.id in membership.people(self.approvers):\n",
        wrong="        if actor.id in {*membership.people(self.approvers), *request.approvers}:\n",
        tests="tests/test_domain.py tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="who asked may approve",
        file=APPROVAL,
        right="if actor.id == request.requester.id and not self.self_approval:",
        wrong="if actor.id == request.requester.id and self.self_approval:",
        tests="tests/test_domain.py tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="the first approval is enough",
        file=WORKFLOW,
        right="        if self._policy.is_enough(request, membership):\n",
        wrong="        if request.has_approved(click.actor.id):\n",
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="earlier approvals not asked again at the last one",
        file=APPROVAL,
        right="            if self._decision_bar(request, each.actor, each.kind, membership) is None\n            and ",
        wrong="            if ",
        tests="tests/test_domain.py tests/test_workflow.py -k 'lists_of_the_day or was_taken_off'",
    ),
    Mutant(
        name="a second click of one person is an approval",
        file=APPROVAL,
        right="is_repeated = request.has_approved(actor.id) and not self.is_enough(request, membership)",
        wrong="is_repeated = False",
        tests="tests/test_domain.py tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="a second approval by the same person counts twice",
        file=WORKFLOW,
        right="            return self._refuse_click(tx, click, refusal, membership)\n",
        wrong="            if refusal is Reason.ALREADY_APPROVED:\n"
        "                send_before = tx.now + self._send_within\n"
        "                tx.move(Action.REQUEST_APPROVED, actor=click.actor, due_in_s=0, send_before=send_before)\n"
        "                return None\n"
        "            return self._refuse_click(tx, click, refusal, membership)\n",
        tests="tests/test_workflow.py -k one_person_never_counts_twice",
    ),
    Mutant(
        name="who asked is counted among those who could approve",
        file=APPROVAL,
        right="        barred = frozenset() if self.self_approval else frozenset({requester.id})\n",
        wrong="        barred: frozenset[str] = frozenset()\n",
        tests="tests/test_domain.py -k too_few_could_approve",
    ),
    Mutant(
        name="who asked counts as one of two",
        file=APPROVAL,
        right="        return self._approval_bar(request, actor) or (",
        wrong="        is_second = bool(request.decided(DecisionKind.APPROVE))\n"
        "        if is_second and actor.id == request.requester.id:\n"
        "            return None\n"
        "        return self._approval_bar(request, actor) or (",
        tests="tests/test_workflow.py -k who_asked_is_not_one_of_two",
    ),
    Mutant(
        name="a denial after a first approval is ignored",
        file=APPROVAL,
        right="        if kind is not DecisionKind.APPROVE:\n            return None\n",
        wrong="        if kind is DecisionKind.DENY and request.decided(DecisionKind.APPROVE):\n"
        "            return Reason.ALREADY_DECIDED\n"
        "        if kind is not DecisionKind.APPROVE:\n            return None\n",
        tests="tests/test_workflow.py -k one_denial_ends_it",
    ),
    Mutant(
        name="what a request needs is not frozen",
        file=APPROVAL,
        right="        return len(self.counting(request, membership)) >= request.approvals_required\n",
        wrong="        order = request.order_now or request.order\n"
        "        needed = self.requirement(order).approvals if order else request.approvals_required\n"
        "        return len(self.counting(request, membership)) >= needed\n",
        tests="tests/test_workflow.py -k what_a_request_needs_is_frozen",
    ),
    Mutant(
        name="superseded by what a list says, without a look",
        file=WORKFLOW,
        right="        looked = 0\n        for request_id in others[:REFRESH_LOOKS]:\n",
        wrong="        for each in watched:\n"
        "            listed = seen.get(each.order_uuid)\n"
        "            if listed is not None and not listed.is_open:\n"
        "                with self._store.transaction(each.request_id) as tx:\n"
        "                    tx.move(Action.REQUEST_SUPERSEDED, order_now=listed, ended_at=tx.now)\n"
        "        looked = 0\n        for request_id in others[:REFRESH_LOOKS]:\n",
        tests="tests/test_workflow.py -k a_list_that_lies",
    ),
    Mutant(
        name="a form decides without the policy",
        file=WORKFLOW,
        right="        refusal = self._click_refusal(tx, click, membership)\n"
        "        if refusal is not None and _is_repeated(",
        wrong="        refusal = None if click.is_form else self._click_refusal(tx, click, membership)\n"
        "        if refusal is not None and _is_repeated(",
        tests="tests/test_decision_forms.py -k 'not postgresql'",
    ),
    Mutant(
        name="a form opens for everybody",
        file=LISTENERS,
        right="        if answer.refusal is not None or answer.request is None:\n",
        wrong="        if answer.request is None:\n",
        tests="tests/test_listeners.py",
    ),
    Mutant(
        name="a form that was delivered again is refused",
        file=WORKFLOW,
        right="        if refusal is not None and _is_repeated(tx.request, click):\n",
        wrong="        if refusal is None and _is_repeated(tx.request, click):\n",
        tests="tests/test_decision_forms.py -k 'not postgresql'",
    ),
    Mutant(
        name="a reminder whose answer was lost is posted again",
        file=WORKFLOW,
        right="            if error.nothing_done:\n",
        wrong="            if error.cause:\n",
        tests="tests/test_reminder.py -k 'not postgresql'",
    ),
    Mutant(
        name="who stood still reminds once more",
        file=STORE,
        right='    notices.c.fence == bindparam("kept_fence"), notices.c.next_attempt_at.is_not(None)\n',
        wrong='    notices.c.fence >= bindparam("kept_fence")\n',
        tests="tests/test_reminder.py -k 'not postgresql'",
    ),
    Mutant(
        name="what is not known counts as small",
        file=TIERS,
        right="return self.over is None or value is None or value > self.over",
        wrong="return self.over is None or (value is not None and value > self.over)",
        tests="tests/test_tiers.py -k 'not postgresql'",
    ),
    Mutant(
        name="coins taken for money",
        file=TIERS,
        right='        return locked if order.side == "bid" else None\n',
        wrong="        return locked\n",
        tests="tests/test_tiers.py -k 'not postgresql'",
    ),
    Mutant(
        name="ack before commit",
        file=LISTENERS,
        right="        said = self._answer(body)\n        ack(",
        wrong="        said = messages.recorded(1)\n        ack(text=said)\n        self._answer(body)\n        ack(",
        tests="tests/test_listeners.py",
    ),
    Mutant(
        name="told before sent",
        file=WORKFLOW,
        right="        try:\n            posted = self._messenger.post_verdict(request)\n",
        wrong="        with self._store.transaction(request.id) as tx:\n"
        "            self._record_said(tx, request)\n"
        "        try:\n            posted = self._messenger.post_verdict(request)\n",
        tests="tests/test_workflow.py tests/test_random_histories.py -k 'not postgresql'",
    ),
    Mutant(
        name="several open requests for one order",
        file="migrations/versions/0001_requests_and_audit.py",
        right='"cancel_requests", "order_uuid", OPEN, unique=True)',
        wrong='"cancel_requests", "order_uuid", OPEN, unique=False)',
        tests="tests/test_store.py tests/test_migrations.py -k 'not postgresql'",
    ),
    Mutant(
        name="a stalled process sends late",
        file=WORKFLOW,
        right="        if self._monotonic() > announced.not_after:\n",
        wrong="        if self._monotonic() < 0:\n",
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="a wake-up is lost",
        file=STORE,
        right="            if row.revision != seen_revision:\n",
        wrong="            if row.revision < seen_revision:\n",
        tests="tests/test_store.py -k 'not postgresql'",
    ),
    Mutant(
        name="every cancel is ours",
        file="bot/domain/cancel_request.py",
        right="        return CanceledBy.UNPROVEN if self.accepted_at is None else CanceledBy.THIS_REQUEST\n",
        wrong="        return CanceledBy.THIS_REQUEST\n",
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="one look is enough for failed",
        file=WORKFLOW,
        right="FAILED_AFTER_LOOKS: Final = 3",
        wrong="FAILED_AFTER_LOOKS: Final = 0",
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="a clock that was set back is not noticed",
        file=STORE,
        right="        if now < told - CLOCK_TOLERANCE:\n",
        wrong="        if now < told and now > told:\n",
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="a card that was drawn late stays",
        file=STORE,
        right='{names.due: now, "card_shown_revision": -1}',
        wrong='{"card_shown_revision": -1}',
        tests="tests/test_workflow.py -k 'not postgresql'",
    ),
    Mutant(
        name="a click that was not written down is acknowledged",
        file=LISTENERS,
        right="                self.afterwards.tell_now(click.response_url, text)\n            return BoltResponse(",
        wrong="                self.afterwards.tell_now(click.response_url, text)\n"
        "            return ack() or BoltResponse(",
        tests="tests/test_listeners.py",
    ),
    Mutant(
        name="looks take every call of the second",
        file="bot/upbit/client.py",
        right="RESERVED_FOR_CANCELS: Final = 10",
        wrong="RESERVED_FOR_CANCELS: Final = 1",
        tests="tests/test_upbit_client.py",
    ),
    Mutant(
        name="not sent where bytes have left",
        file="bot/upbit/client.py",
        right="        if not attempt.written:\n            self._fared.badly(",
        wrong="        if reply.status is None:\n            self._fared.badly(",
        tests="tests/test_upbit_client.py",
    ),
)


def do_tests_fail(tests: str, mutant: Mutant | None) -> bool:
    """Whether these tests fail in a copy of the tree, in which the bug is planted, if any. Raises LookupError."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.db*"))
        if mutant is not None:
            _plant(mutant, tree)
        return _fail(tests, tree, timeout_s=TIMEOUT_S if mutant is not None else SOUND_TIMEOUT_S)


def _plant(mutant: Mutant, tree: Path) -> None:
    target = tree / mutant.file
    target.write_text(planted(mutant, target.read_text(encoding="utf-8")), encoding="utf-8")


def planted(mutant: Mutant, source: str) -> str:
    """The source with the bug in it. Raises LookupError where the code that it changes is not there exactly once."""
    places = source.count(mutant.right)
    if places != 1:
        raise LookupError(f"{mutant.name}: the code it changes stands {places} times in {mutant.file}")
    return source.replace(mutant.right, mutant.wrong)


def _fail(tests: str, tree: Path, *, timeout_s: float) -> bool:
    command = f"{sys.executable} -m pytest -x -q -n 0 -p no:cacheprovider {tests}"
    run = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=tree,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tree), "HOME": str(tree)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if run.returncode not in {0, 1}:
        raise LookupError(f"{tests} could not be run\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return run.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="those with these words in their names")
    only = parser.parse_args().only
    chosen = [mutant for mutant in MUTANTS if only in mutant.name]
    files = sorted({word for mutant in chosen for word in mutant.tests.split() if word.endswith(".py")})
    began_at = time.monotonic()
    # Tests that fail anyway notice nothing.
    if do_tests_fail(f"-n {AT_A_TIME} {' '.join(files)}", None):
        raise LookupError(f"without any bug planted, one of these fails: {' '.join(files)}")
    with ThreadPoolExecutor(max_workers=AT_A_TIME) as threads:
        noticed = list(threads.map(lambda mutant: do_tests_fail(mutant.tests, mutant), chosen))
    for mutant, is_noticed in zip(chosen, noticed, strict=True):
        print(f"{'killed' if is_noticed else 'SURVIVED':9} {mutant.name}")  # noqa: T201 - this is what it is for
    survived = noticed.count(False)
    print(f"{len(chosen)} planted, {survived} survived, {time.monotonic() - began_at:.0f} s")  # noqa: T201
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
