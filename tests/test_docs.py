"""The documentation under test: what it claims to list, it lists, and what it names is there."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bot.__main__ import main
from bot.database.schema import audit_events
from bot.domain.audit import Action, Outcome, Reason
from bot.domain.cancel_request import TRANSITIONS, State, Verdict
from bot.settings import LATER_SETTINGS, settings_table
from bot.slack.listeners import COMMAND

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

OUR_TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "*.toml",
        "*.yaml",
        "*.json",
        "Makefile",
        "Dockerfile",
        ".env.example",
        ".dockerignore",
        ".gitignore",
        ".ci/*",
        "docs/**/*.md",
        "bot/**/*.py",
        "migrations/**/*.py",
        "migrations/*.mako",
        "bench/*.py",
        "tests/*.py",
        "tests/faults/*.py",
        "tests/snapshots/*.txt",
    )
    for path in ROOT.glob(pattern)
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    level = heading.split(maxsplit=1)[0]
    _, found, rest = read(name).partition(f"\n{heading}\n")
    assert found, f"{name} has no {heading}"
    return rest.partition(f"\n{level} ")[0]


def first_cells(text: str) -> list[str]:
    """The first cells of a table's rows, where they are code."""
    return re.findall(r"^\| `([^`|]+)` \|", text, re.MULTILINE)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command as it is typed."""
    for name, command in main.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"bot {name} {inner}", each) for inner, each in command.commands.items())
        else:
            yield f"bot {name}", command


# What is listed


def test_every_setting_is_in_the_readme_as_the_code_has_it() -> None:
    """A wrong default in the README is a wrong belief about who may cancel."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+?) \| (.+) \|$", section("README.md", "## Settings"), re.MULTILINE)

    assert rows == [
        (
            row.variable,
            "required" if row.needed else f"`{row.default}`" if row.default else "none",
            row.meaning,
        )
        for row in settings_table()
    ]


def test_every_setting_of_later_versions_is_said_to_be_left_out() -> None:
    """Whoever is refused at the start because of one finds out why."""
    page = read("docs/decisions/0008-what-this-version-leaves-out.md")

    for variable in LATER_SETTINGS:
        assert f"`{variable.removesuffix('_FILE')}`" in page, variable


@pytest.mark.parametrize("name", NAMES)
def test_no_page_names_a_setting_that_does_not_exist(name: str) -> None:
    """Who sets it would be refused, or worse, not heard."""
    known = {row.variable for row in settings_table()} | set(LATER_SETTINGS)
    known |= {f"{row.variable}_FILE" for row in settings_table() if row.secret}
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)(?:=[^`]*)?`", read(name)))

    assert named - {"GAE_INSTANCE", "TRANSITIONS"} <= known


def test_every_state_is_explained() -> None:
    """What is true in it, and what happens when the process dies there."""
    assert first_cells(section("docs/states.md", "## Every state")) == [state.value for state in State]


def test_every_state_tells_the_operator_what_to_do() -> None:
    """A state that nobody knows what to do about is an incident at night."""
    told = section("docs/operators.md", "## What each state means for you").partition("\n###")[0]
    named = [state for row in re.findall(r"^\| (`.+?) \|", told, re.MULTILINE) for state in re.findall(r"`(\w+)`", row)]

    assert sorted(named) == sorted(state.value for state in State)


def test_the_table_of_transitions_is_what_the_code_does() -> None:
    """The picture that people reason with must be the machine that runs."""
    rows = re.findall(
        r"^\| `([a-z._]+)` \| (.+) \| `([a-z]+)` \|$",
        section("docs/states.md", "## Every action that moves a request"),
        re.MULTILINE,
    )

    assert [(action, set(re.findall(r"`(\w+)`", sources)), target) for action, sources, target in rows] == [
        (action.value, {source.value for source in sources}, target.value)
        for action, (sources, target) in TRANSITIONS.items()
    ]


def test_the_picture_of_the_states_is_the_one_in_the_code() -> None:
    """Two pictures would soon be two machines."""
    (shown,) = re.findall(r"```text\n(requested ──.+?)```", read("docs/states.md"), re.DOTALL)
    code = read("bot/domain/cancel_request.py")

    assert [line.strip() for line in shown.splitlines()] == [
        line.strip() for line in code.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    ]


def test_every_action_is_explained_to_the_auditor() -> None:
    """Who reads the audit in a year has this page and nobody to ask."""
    assert first_cells(section("docs/audit.md", "## Every action")) == [action.value for action in Action]


def test_every_outcome_is_explained() -> None:
    """`failed` and `unknown` are not the same, and the difference is money."""
    assert first_cells(section("docs/audit.md", "## Outcomes")) == [outcome.value for outcome in Outcome]


def test_every_reason_is_explained() -> None:
    """The machine's words are short; this is where they are spelled out."""
    listed = [word for word in first_cells(section("docs/audit.md", "## Reasons")) if word != "reason"]

    assert sorted(listed) == sorted(reason.value for reason in Reason)


def test_every_column_of_the_audit_is_explained() -> None:
    """Other programs read them."""
    assert first_cells(section("docs/audit.md", "## Columns")) == list(audit_events.columns.keys())


# The command line


def test_every_command_is_in_the_readme_and_no_other() -> None:
    """A command that is not listed is not there for anybody."""
    listed = [cell.removesuffix(" N") for cell in first_cells(section("README.md", "## Commands"))]

    assert sorted(listed) == sorted(name for name, _ in commands())


def test_every_option_is_in_the_readme() -> None:
    """`--help` is for those who already know the command."""
    listed = section("README.md", "## Commands")

    for name, command in commands():
        for option in command.params:
            if isinstance(option, click.Option):
                (row,) = [line for line in listed.splitlines() if line.startswith((f"| `{name}`", f"| `{name} N`"))]
                assert any(f"`{spelling}" in row for spelling in option.opts), (name, option.opts)


def test_every_verdict_is_in_the_operators_page() -> None:
    """At three in the morning nobody guesses words."""
    told = section("docs/operators.md", "### Unresolved")

    for verdict in Verdict:
        assert f"`{verdict.value}`" in told


def spoken_commands() -> list[tuple[str, str]]:
    """What the pages tell people to type: (page, words after `bot`)."""
    return [
        (name, typed)
        for name in NAMES
        for typed in re.findall(
            r"(?:^|[ `/])bot ((?:run|check|migrate|audit|settle|manifest|demo)\b[^`\n#|]*)", read(name), re.MULTILINE
        )
    ]


@pytest.mark.parametrize(("name", "typed"), spoken_commands())
def test_every_command_that_a_page_names_exists(name: str, typed: str) -> None:
    """Somebody copies it."""
    words = re.findall(r"[^\s;,.:)]+", typed)
    command = main.commands[words[0]]
    if isinstance(command, click.Group):
        if len(words) == 1:
            return
        command = command.commands[words[1]]
    known = {spelling for option in command.params for spelling in option.opts}

    assert set(re.findall(r"--[a-z-]+", typed)) <= known


def test_the_make_targets_that_the_pages_name_exist() -> None:
    """The two commands of the first screen are the first impression."""
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    first_screen = set(re.findall(r"^make ([a-z]+)", read("README.md"), re.MULTILINE))
    named = {target for name in NAMES for target in re.findall(r"(?:^|`)make ([a-z-]+)", read(name), re.MULTILINE)}

    assert {"demo", "test"} <= first_screen
    assert named <= targets


# What people see


def test_the_readme_shows_what_the_bot_says() -> None:
    """The conversation is the promise; every line of the bot in it is one that it says."""
    said = " ".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests/snapshots").glob("*.txt")))
    plain = re.sub(r"[*`]|<@U0\w+>|@\w+", "", said)
    shown = read("README.md").partition("```text\n")[2].partition("```")[0]
    shown = re.sub(r"@\w+", "", shown)

    for sentence in (
        "Request #42 is recorded; reading the order…",
        "Cancel this order? Request #42",
        "asks for this order at Upbit to be canceled. After 1 approval the bot sends the cancel;",
        "You asked for request #42 yourself, so you may not approve it; you may still deny it.",
        "Cancel request #42: canceled",
        "Canceled: 0.58 of 1 BTC; 0.42 BTC had been filled. Upbit had accepted this request's cancel",
    ):
        assert sentence in shown, sentence
        assert sentence in plain, sentence
    assert f"types {COMMAND} " in shown


# Links


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> list[tuple[str, str]]:
    return [
        (name, target)
        for name in NAMES
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", read(name), flags=re.DOTALL))
        if "://" not in target
    ]


@pytest.mark.parametrize(("name", "target"), links())
def test_every_link_leads_somewhere(name: str, target: str) -> None:
    """A broken link stands for a page that nobody reads any more."""
    path, _, anchor = target.partition("#")
    page = (ROOT / name).parent / path if path else ROOT / name

    assert page.exists(), f"{name} links to {target}"
    assert not anchor or anchor in anchors(page.resolve()), f"{name} links to {target}"


def test_every_page_is_linked_from_the_readme() -> None:
    """A page that nothing leads to is not there."""
    linked = {(ROOT / target.partition("#")[0]).resolve() for name, target in links() if name == "README.md"}

    assert {page.resolve() for page in PAGES} - linked == {ROOT / "README.md"}


# What must not stand anywhere


FORBIDDEN = {
    "an absolute path of somebody's machine": r"(?<![\w.])/(?:work|root|home|Users)/",
    "a package registry of somebody's machine": r"index-url|registry\.npmjs|artifactory|nexus|devpi|proxy\.golang",
}


@pytest.mark.parametrize("why", FORBIDDEN)
def test_nothing_points_to_the_machine_that_it_was_written_on(why: str) -> None:
    """It would work there and nowhere else."""
    found = {
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in OUR_TEXTS
        if path != Path(__file__)
        for match in re.finditer(FORBIDDEN[why], path.read_text(encoding="utf-8"))
    }

    assert found == set()


def test_packages_come_from_the_public_index_and_no_page_says_otherwise() -> None:
    """A host in the Makefile or in a page would be asked instead of the one that the lock names."""
    hosts = re.compile(r"pypi\.org|pythonhosted|simple/")

    for path in OUR_TEXTS:
        if path.suffix in {".md", ".toml", ".yaml"} or path.name in {"Makefile", "Dockerfile"}:
            assert not hosts.search(path.read_text(encoding="utf-8")), path


def test_canceled_is_spelled_in_one_way() -> None:
    """Two spellings make two searches."""
    for page in PAGES:
        assert not re.search(r"(?i)cancell(?:ed|ing)", page.read_text(encoding="utf-8")), page
