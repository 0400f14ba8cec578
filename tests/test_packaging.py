import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from bot.settings import settings_table

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def locked() -> list[dict[str, Any]]:
    packages: list[dict[str, Any]] = tomllib.loads(read("uv.lock"))["package"]
    return packages


# What gets installed


def test_the_wheel_carries_the_migrations_and_the_pages(tmp_path: Path) -> None:
    """`bot migrate` runs wherever the bot is installed, and there is no checkout there."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)

    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    ours = {f"bot/{path.relative_to(ROOT)}" for path in (ROOT / "migrations").rglob("*.py")}
    assert "bot/migrations/env.py" in ours
    assert ours <= packed
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "bot").rglob("*.py")} <= packed
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "bot/audit/templates").iterdir()} <= packed
    assert not any(name.startswith("tests/") or name.endswith(".env") for name in packed)


def test_every_locked_file_has_a_hash(locked: list[dict[str, Any]]) -> None:
    """A package that changes after it was locked must not be installed."""
    fetched = [package for package in locked if "registry" in package["source"]]

    assert [package["name"] for package in locked if package not in fetched] == ["upbit-cancel-bot"]
    assert len({package["source"]["registry"] for package in fetched}) == 1
    for package in fetched:
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        assert files, package["name"]
        assert all(file["hash"].startswith("sha256:") for file in files), package["name"]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("slack-sdk", (3, 43)),  # before, an empty signing secret verified everything
        ("slack-bolt", (1, 29)),  # before, ssl_check=1 skipped the signature
    ],
)
def test_the_versions_that_skipped_slacks_signature_are_not_locked(
    locked: list[dict[str, Any]], name: str, least: tuple[int, int]
) -> None:
    """With one of these anybody on the network could press Approve."""
    (version,) = [package["version"] for package in locked if package["name"] == name]

    assert tuple(int(part) for part in version.split(".")[:2]) >= least


def test_the_installer_itself_is_pinned_by_hash() -> None:
    """Whoever can replace uv can replace everything that it installs."""
    pinned = [line for line in read(".ci/uv.txt").splitlines() if not line.startswith("#")]

    assert re.fullmatch(r"uv==[0-9.]+ \\", pinned[0])
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in pinned[1:])
    for name in ("Makefile", "Dockerfile"):
        assert "--require-hashes" in read(name)
        assert "--frozen" in read(name)


def test_make_lists_every_target() -> None:
    """A target that help does not show is one that nobody uses."""
    shown = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (phony,) = re.findall(r"^\.PHONY: (.+)$", read("Makefile"), re.MULTILINE)

    assert re.findall(r"^make ([\w-]+) +\S", shown, re.MULTILINE) == phony.split()


# The image


def instructions(stage: int) -> list[tuple[str, str]]:
    """The Dockerfile's instructions of one stage: (word, rest)."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", read("Dockerfile"), flags=re.MULTILINE))
    stages: list[list[tuple[str, str]]] = []
    for line in filter(None, joined.splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            stages.append([])
        stages[-1].append((word, rest.strip()))
    return stages[stage]


def final(word: str) -> str:
    return [rest for found, rest in instructions(-1) if found == word][-1]


def test_the_image_runs_as_nobody_in_particular() -> None:
    """Kubernetes proves `runAsNonRoot` only of a number, and root in a container is root too often."""
    user, group = final("USER").split(":")

    assert int(user) >= 10_000
    assert int(group) >= 10_000


def test_a_signal_reaches_the_bot_and_not_a_shell() -> None:
    """A shell in between swallows SIGTERM, and the bot is killed in the middle of its work ten seconds later."""
    assert json.loads(final("ENTRYPOINT")) == ["bot"]
    assert json.loads(final("CMD")) == ["run"]


def test_the_image_knows_whether_the_bot_lives() -> None:
    """/readyz would have the container restarted whenever Slack or the database is away."""
    health = json.loads(final("HEALTHCHECK").partition("CMD ")[2])

    assert health[:2] == ["python3", "-c"]
    assert "/healthz" in health[2]
    compile(health[2], "HEALTHCHECK", "exec")


def test_the_image_is_reached_from_outside_and_writes_to_its_volume_only() -> None:
    """On 127.0.0.1 nobody could reach it; and a database beside the code would go with the container."""
    assert re.search(r"\bHOST=0\.0\.0\.0\b.*\bPORT=3000\b", final("ENV"))
    assert json.loads(final("VOLUME")) == [final("WORKDIR")]


def test_both_stages_start_from_the_same_tagged_image() -> None:
    """The environment built in the first stage points to the Python of the second."""
    build, run = (instructions(stage)[0][1].removesuffix(" AS build") for stage in (0, 1))

    assert build == run
    assert re.fullmatch(r"python:3\.\d+-slim", run)


def test_the_image_gets_nothing_that_is_not_named() -> None:
    """A deny list forgets the next secret file; this one forgets nothing."""
    lines = [line for line in read(".dockerignore").splitlines() if not line.startswith("#")]
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}

    assert lines[0] == "*"
    assert allowed == {".ci/uv.txt", "README.md", "bot", "migrations", "pyproject.toml", "uv.lock"}


def test_app_engine_is_told_how_to_run_the_image() -> None:
    """Without the health paths App Engine sends requests to a bot that is not ready."""
    app = yaml.safe_load(read("app.yaml"))

    assert (app["runtime"], app["env"]) == ("custom", "flex")
    assert app["liveness_check"]["path"] == "/healthz"
    assert app["readiness_check"]["path"] == "/readyz"
    assert app["manual_scaling"]["instances"] >= 1


def test_app_engines_file_holds_no_secret() -> None:
    """It is in version control."""
    known = {row.variable: row.secret for row in settings_table()}

    for variable in yaml.safe_load(read("app.yaml"))["env_variables"]:
        assert known[variable] is False, variable


# The settings as they are documented


def test_the_example_of_an_env_file_is_what_the_code_says() -> None:
    """Somebody copies it and fills it in: a setting that is missing there does not exist for them."""
    shown = re.findall(r"^# (.+)\n(#?)([A-Z_]+)=(.*)$", read(".env.example"), re.MULTILINE)

    assert shown == [
        (
            ("Required. " if row.needed else "") + row.meaning.replace("`", ""),
            "" if row.needed else "#",
            row.variable,
            row.default,
        )
        for row in settings_table()
    ]


def test_the_installation_guide_names_no_setting_that_does_not_exist() -> None:
    """Who follows it would otherwise be refused at the start."""
    known = {row.variable for row in settings_table()}
    known |= {f"{row.variable}_FILE" for row in settings_table() if row.secret}

    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", read("docs/install.md")))
    assert named
    assert named <= known
