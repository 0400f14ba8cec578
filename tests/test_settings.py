import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bot.settings import (
    LATER_SETTINGS,
    Settings,
    SettingsError,
    load_audit_settings,
    load_database_settings,
    load_settings,
    settings_table,
)

ENOUGH = {
    "SLACK_BOT_TOKEN": "xoxb-1-canary",
    "SLACK_APP_TOKEN": "xapp-1-canary",
    "UPBIT_OPEN_API_ACCESS_KEY": "access-canary",
    "UPBIT_OPEN_API_SECRET_KEY": "secret-canary",
    "UPBIT_OPEN_API_SERVER_URL": "https://api.upbit.com",
    "APPROVERS": "U0APPROVER",
}


def faults_of(environ: dict[str, str], env_file: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ, env_file)
    return caught.value.faults


def load(**changed: str) -> Settings:
    return load_settings(ENOUGH | changed, None)


def private_file(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o600)
    return path


def test_the_defaults_are_the_ones_that_the_documentation_names() -> None:
    """A default is a promise: a later version that changes one changes what a running bot allows."""
    settings = load()

    assert settings.slack_api_url == "https://slack.com/api/"
    assert settings.database_url.get_secret_value() == "sqlite:///cancels.db"
    assert settings.approvers == {"U0APPROVER"}
    assert settings.requesters == frozenset()
    assert settings.notify == ()
    assert settings.self_approval is False
    assert (settings.approvals_required, settings.approval_tiers) == (1, ())
    assert settings.approval_ttl == timedelta(minutes=30)
    assert settings.send_within == timedelta(minutes=5)
    assert settings.max_open_requests_per_person == 20
    assert (settings.host, settings.port, settings.log_level) == ("127.0.0.1", 3000, "INFO")
    assert settings.warnings == ()


def test_everything_that_is_missing_is_told_at_once() -> None:
    """Fixing one setting at a time, a restart each, is how people give up."""
    faults = faults_of({})

    assert [fault.split(" is empty: ")[0] for fault in faults] == [
        "SLACK_BOT_TOKEN",
        "UPBIT_OPEN_API_ACCESS_KEY",
        "UPBIT_OPEN_API_SECRET_KEY",
        "UPBIT_OPEN_API_SERVER_URL",
        "APPROVERS",
        "SLACK_SIGNING_SECRET",
    ]
    assert "APPROVERS is empty: list at least one Slack user id or user group id" in faults


def test_what_is_missing_is_told_together_with_what_is_wrong() -> None:
    """A first start has faults of every kind, and each of them stops the bot."""
    faults = faults_of({"APPROVERS": "@kim", "PORT": "http", "APPROVAL_TIERS": "1000000:2", "SELF_APPROVAL": "maybe"})

    for variable in ("APPROVERS", "PORT", "APPROVAL_TIERS", "SELF_APPROVAL", "SLACK_BOT_TOKEN"):
        assert any(fault.startswith(variable) for fault in faults), variable


@pytest.mark.parametrize("variable", ["APPROVERS", "REQUESTERS", "NOTIFY"])
def test_a_list_of_only_commas_is_not_an_empty_list(variable: str) -> None:
    """`REQUESTERS=,` read as empty would let everyone ask; `APPROVERS=,` would let nobody approve."""
    assert faults_of(ENOUGH | {variable: " , "}) == (
        f"{variable} lists nobody: write Slack user ids or user group ids, or unset it",
    )


def test_an_empty_allowlist_of_approvers_refuses_the_start() -> None:
    """Empty means nobody; a bot whose cards nobody can approve must not look alive."""
    for empty in ("", "  "):
        assert faults_of(ENOUGH | {"APPROVERS": empty}) == (
            "APPROVERS is empty: list at least one Slack user id or user group id",
        )


def test_an_approver_who_is_the_only_requester_could_approve_nothing() -> None:
    """With self-approval off, this pair of lists lets nobody cancel anything."""
    alone = {"APPROVERS": "U0APPROVER", "REQUESTERS": "U0APPROVER"}

    (fault,) = faults_of(ENOUGH | alone)
    assert "nobody" in fault

    assert load(**alone, SELF_APPROVAL="true").self_approval is True
    assert load(APPROVERS="U0APPROVER,U0SECOND", REQUESTERS="U0APPROVER").requesters == {"U0APPROVER"}


@pytest.mark.parametrize(
    "people",
    [
        {"APPROVERS": "U101,U202"},
        {"APPROVERS": "U101,U202,U303", "REQUESTERS": "U101,U202"},
        {"APPROVERS": "U101,U202", "REQUESTERS": "U101,U404"},
        {"APPROVERS": "U101,U202", "REQUESTERS": "U101,U202", "SELF_APPROVAL": "true"},
    ],
)
def test_more_approvals_than_can_ever_come_refuse_the_start(people: dict[str, str]) -> None:
    """Every card would wait until it expires; who asks does not count, if all who ask are approvers."""
    assert load(**people, APPROVALS_REQUIRED="2", APPROVAL_TIERS="*=2").approvals_required == 2
    assert faults_of(ENOUGH | people | {"APPROVALS_REQUIRED": "3"}) == (
        "APPROVALS_REQUIRED needs 3 approvals, and only 2 may approve: add approvers, or lower it",
    )
    assert faults_of(ENOUGH | people | {"APPROVAL_TIERS": "KRW-*:5=3, *=2, BTC-*=4"}) == (
        "APPROVAL_TIERS rule 1 needs 3 approvals, and only 2 may approve: add approvers, or lower it",
        "APPROVAL_TIERS rule 3 needs 4 approvals, and only 2 may approve: add approvers, or lower it",
    )


def test_rules_by_value_are_read_or_refused_with_their_place() -> None:
    """A rule that is left out because it was misspelled would let one person cancel the largest order."""
    settings = load(APPROVERS="U101,U202", APPROVAL_TIERS="KRW-*:50000000=2, *=1")
    assert [str(tier) for tier in settings.approval_tiers] == ["KRW-*:50000000=2", "*=1"]
    assert faults_of(ENOUGH | {"APPROVAL_TIERS": "*=1, KRW-*:-50000000=2"}) == (
        "APPROVAL_TIERS rule 2 has a negative amount",
    )


def test_the_number_of_approvals_has_bounds() -> None:
    """Zero approvals is a cancel that nobody agreed to."""
    everybody = {"APPROVERS": ",".join(f"U{number:03}" for number in range(20))}
    assert load(**everybody, APPROVALS_REQUIRED="20").approvals_required == 20
    for wrong in ("0", "21", "-1", "1.5", "two"):
        assert faults_of(ENOUGH | everybody | {"APPROVALS_REQUIRED": wrong}) == (
            "APPROVALS_REQUIRED must be a whole number from 1 to 20",
        )


def test_people_are_lists_of_user_ids() -> None:
    """Ids never change hands; whoever is listed twice is still one person."""
    settings = load(APPROVERS=" U111 ,W222,,U111", REQUESTERS="U333", NOTIFY="U222, U111,U222")

    assert settings.approvers == {"U111", "W222"}
    assert settings.requesters == {"U333"}
    assert settings.notify == ("U222", "U111")


@pytest.mark.parametrize("variable", ["APPROVERS", "REQUESTERS", "NOTIFY"])
@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ("kim", "Copy member ID"),
        ("@kim", "Copy member ID"),
        ("<@U0APPROVER>", "Copy member ID"),
        ("u0approver", "Copy member ID"),
        ("U0APPROVER U0SECOND", "Copy member ID"),
        ("<!subteam^S0TRADERS>", "Copy group ID"),
        ("s0traders", "Copy group ID"),
    ],
)
def test_names_are_refused_with_the_way_to_an_id(variable: str, entry: str, cause: str) -> None:
    """A name is not unique and can be taken by somebody else."""
    (fault,) = faults_of(ENOUGH | {variable: f"U0FIRST,{entry}"})

    assert fault.startswith(f"{variable} entry 2 ")
    assert cause in fault
    assert "entry 1" not in fault


def test_user_groups_stand_beside_people() -> None:
    """How many a group stands for is not known here, so it is no reason to refuse the start."""
    settings = load(APPROVERS="S0DESK,U111", REQUESTERS="S0DESK,S0RISK", NOTIFY="S0ONCALL", APPROVALS_REQUIRED="5")

    assert settings.approvers == {"S0DESK", "U111"}
    assert settings.notify == ("S0ONCALL",)
    assert settings.groups == {"S0DESK", "S0RISK"}, "nobody asks who is in a group that is only called"
    assert load().groups == frozenset()
    assert load(APPROVERS="S0DESK", REQUESTERS="S0DESK").approvers == {"S0DESK"}


def test_no_more_groups_than_slack_lets_us_read() -> None:
    """Groups that are never fresh would let nobody approve."""
    groups = [f"S{number:03}" for number in range(11)]

    assert load(APPROVERS=",".join(groups[:10])).groups == set(groups[:10])
    assert faults_of(ENOUGH | {"APPROVERS": ",".join(groups[:6]), "REQUESTERS": ",".join(groups[6:])}) == (
        "APPROVERS, REQUESTERS and AUDITORS name more than 10 user groups together: name fewer",
    )


@pytest.mark.parametrize("variable", LATER_SETTINGS)
def test_a_setting_that_this_version_does_not_enforce_refuses_the_start(variable: str, tmp_path: Path) -> None:
    """Four eyes that are configured and not kept are worse than none: somebody relies on them."""
    expected = (f"{variable} is not supported by this version: unset it",)

    assert faults_of(ENOUGH | {variable: "1"}) == expected
    assert faults_of(ENOUGH, private_file(tmp_path / ".env", f"{variable}=1\n")) == expected
    assert load(**{variable: ""}).approvers


def test_only_secrets_are_read_from_files() -> None:
    """APPROVERS_FILE that is ignored would be an allowlist that is ignored."""
    (fault,) = faults_of(ENOUGH | {"APPROVERS_FILE": "approvers.txt"})

    assert fault.startswith("APPROVERS_FILE is not supported")


def test_a_slip_in_a_name_is_a_fault_in_the_file_and_a_warning_in_the_environment(tmp_path: Path) -> None:
    """REQUESTER= instead of REQUESTERS= lets everyone ask; but the environment also holds other programs' variables."""
    sentence = "REQUESTER is not a setting: did you mean REQUESTERS?"

    assert load(REQUESTER="U333").warnings == (sentence,)
    assert faults_of(ENOUGH, private_file(tmp_path / ".env", "REQUESTER=U333")) == (sentence,)


def test_variables_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    """A container's environment and a shared .env are full of names that look somewhat like ours."""
    others = {"HOSTNAME": "box", "PATH": "/bin", "NOTIFY_SOCKET": "/run/x", "PORTS": "1", "COMPOSE_PROJECT_NAME": "x"}
    env_file = private_file(tmp_path / ".env", "".join(f"{name}={value}\n" for name, value in others.items()))

    assert load_settings(ENOUGH | others, env_file).warnings == ()


# Slack


@pytest.mark.parametrize(
    ("variable", "wrong"),
    [
        ("SLACK_BOT_TOKEN", "xapp-1-canary"),
        ("SLACK_BOT_TOKEN", "xoxb-"),
        ("SLACK_BOT_TOKEN", "xoxb-1 canary"),
        ("SLACK_APP_TOKEN", "xoxb-1-canary"),
        ("SLACK_SIGNING_SECRET", "gebroken canary"),
        ("UPBIT_OPEN_API_ACCESS_KEY", "canary\u200b"),
        ("UPBIT_OPEN_API_SECRET_KEY", "canary\n\ncanary"),
        ("CHECKPOINT_KEY", "canary"),
        ("CHECKPOINT_KEY", "-----BEGIN PRIVATE KEY-----\ncanary"),
    ],
)
def test_a_secret_of_the_wrong_shape_is_refused_without_being_shown(variable: str, wrong: str) -> None:
    """Tokens get swapped and copied with invisible characters; the message ends up in a log."""
    (fault,) = faults_of(ENOUGH | {variable: wrong})

    assert fault.startswith(f"{variable} ")
    assert "canary" not in fault


def test_the_app_token_chooses_socket_mode_and_http_needs_the_signing_secret() -> None:
    """Without a signing secret anybody on the network could press Approve."""
    http = {name: text for name, text in ENOUGH.items() if name != "SLACK_APP_TOKEN"}

    assert load().socket_mode is True
    assert load_settings(http | {"SLACK_SIGNING_SECRET": "s" * 32}, None).socket_mode is False
    for without in (http, http | {"SLACK_SIGNING_SECRET": " "}):
        (fault,) = faults_of(without)
        assert fault.startswith("SLACK_SIGNING_SECRET is empty")


def test_a_wrong_app_token_is_one_fault_and_not_two() -> None:
    """Who means Socket Mode must not be sent to look for a signing secret."""
    (fault,) = faults_of(ENOUGH | {"SLACK_APP_TOKEN": "nonsense"})

    assert fault.startswith("SLACK_APP_TOKEN must begin with xapp-")


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("https://slack.com/api", "https://slack.com/api/"),
        ("https://slack-gov.com/api/", "https://slack-gov.com/api/"),
        ("http://127.0.0.1:8000/api/", "http://127.0.0.1:8000/api/"),
        ("http://localhost:8000", "http://localhost:8000/"),
        ("http://[::1]:8000/", "http://[::1]:8000/"),
    ],
)
def test_slack_may_be_elsewhere(given_url: str, url: str) -> None:
    """The playground and Slack's government cloud have addresses of their own."""
    assert load(SLACK_API_URL=given_url).slack_api_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://slack.com/api/",
        "https://user:pw@slack.com/api/",
        "https://slack.com/api/?x=1",
        "slack.com/api/",
        "https:///api/",
        "ftp://127.0.0.1/",
        "http://10.0.0.1/api/",
    ],
)
def test_the_bot_token_never_travels_in_clear_text(url: str) -> None:
    """Every call carries the token."""
    (fault,) = faults_of(ENOUGH | {"SLACK_API_URL": url})

    assert fault.startswith("SLACK_API_URL must be")


# Checkpoints


KEY = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"


@pytest.mark.parametrize("key", [KEY[:-1], KEY + "0", "z" + KEY[1:], f"0x{KEY[2:]}", "\uff11" * 64])
def test_a_key_that_is_none_refuses_the_start_and_is_not_shown(key: str) -> None:
    """A key with a slip is a secret as well: with one digit more it is nearly the right one."""
    for load_them in (load_settings, load_audit_settings):
        with pytest.raises(SettingsError) as caught:
            load_them(ENOUGH | {"CHECKPOINT_KEY": key}, None)
        assert caught.value.faults == ("CHECKPOINT_KEY must be 64 hex digits: make one with `openssl rand -hex 32`",)


def test_a_channel_for_checkpoints_needs_a_key_to_sign_them() -> None:
    """Whoever names the channel relies on something being posted there."""
    for load_them in (load_settings, load_audit_settings):
        with pytest.raises(SettingsError, match="CHECKPOINT_KEY is empty"):
            load_them(ENOUGH | {"CHECKPOINT_CHANNEL": "C0AUDIT"}, None)
        settings = load_them(ENOUGH | {"CHECKPOINT_CHANNEL": "C0AUDIT", "CHECKPOINT_KEY": KEY}, None)
        assert settings.checkpoint_channel == "C0AUDIT"
        assert settings.checkpoint_key.get_secret_value() == KEY
        assert KEY not in f"{settings!r} {settings}"


# Channels


def test_channels_are_ids_each_once() -> None:
    """Where `/cancel` may be typed; an id from the address bar has spaces around it sometimes."""
    settings = load(CHANNELS="C0DESK, G0OPS ,D0DANA,C0DESK", APPROVALS_CHANNEL="C0CARDS")

    assert settings.channels == {"C0DESK", "G0OPS", "D0DANA"}
    assert settings.approvals_channel == "C0CARDS"


@pytest.mark.parametrize(
    ("variable", "text", "cause"),
    [
        ("CHANNELS", "C0DESK,#desk", "entry 2 is not a Slack channel id"),
        ("CHANNELS", "U0DANA", "entry 1 is not a Slack channel id"),
        ("CHANNELS", "c0desk", "copy the Channel ID"),
        ("CHANNELS", ",", "lists no channel"),
        ("APPROVALS_CHANNEL", "#cards", "is not a Slack channel id"),
        ("APPROVALS_CHANNEL", "C0CARDS,C0DESK", "names more than one channel"),
        ("APPROVALS_CHANNEL", "D0DANA", "names a direct message"),
        ("CHECKPOINT_CHANNEL", "#audit", "is not a Slack channel id"),
        ("CHECKPOINT_CHANNEL", "C0CARDS,C0DESK", "all checkpoints go to one"),
        ("CHECKPOINT_CHANNEL", "D0DANA", "nobody else sees the checkpoints"),
    ],
)
def test_a_channel_that_is_no_id_refuses_the_start(variable: str, text: str, cause: str) -> None:
    """A name that matches nothing would close every channel, or send every card nowhere."""
    (fault,) = faults_of(ENOUGH | {variable: text})

    assert fault.startswith(variable)
    assert cause in fault
    assert "desk" not in fault


# Upbit


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("https://api.upbit.com", "https://api.upbit.com"),
        ("https://api.upbit.com/", "https://api.upbit.com"),
        ("https://API.upbit.com:443", "https://api.upbit.com"),
        ("https://sg-api.upbit.com", "https://sg-api.upbit.com"),
        ("http://127.0.0.1:8123", "http://127.0.0.1:8123"),
        ("https://localhost:8123/", "https://localhost:8123"),
        ("http://[::1]:8123", "http://[::1]:8123"),
    ],
)
def test_upbit_is_reached_at_its_own_addresses(given_url: str, url: str) -> None:
    """The four regions of Upbit, and loopback for the playground."""
    assert load(UPBIT_OPEN_API_SERVER_URL=given_url).upbit_open_api_server_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://api.upbit.com",
        "https://api.upbit.com.example.com",
        "https://example.com/api.upbit.com",
        "https://evil-api.upbit.com",
        "https://sgapi.upbit.com",
        "https://upbit.com",
        "https://api.upbit.com/v1",
        "https://api.upbit.com?x=1",
        "https://api.upbit.com#x",
        "https://api.upbit.com:8443",
        "https://api.upbit.com:0",
        "https://api.upbit.com:port",
        "https://api.upbit.com@example.com",
        "https://access:secret@api.upbit.com",
        "api.upbit.com",
        "ftp://127.0.0.1",
        "http://127.0.0.1.example.com",
        "http://[::1",
        "https://api.upbit.com\\@example.com",
        "https://ap\u0456.upbit.com",
    ],
)
def test_an_order_key_is_sent_to_nobody_but_upbit(url: str) -> None:
    """A signed token sent to a look-alike host is a key given away."""
    (fault,) = faults_of(ENOUGH | {"UPBIT_OPEN_API_SERVER_URL": url})

    assert fault.startswith("UPBIT_OPEN_API_SERVER_URL must be")


# The database


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("sqlite:///cancels.db", "sqlite:///cancels.db"),
        ("sqlite+pysqlite:////data/cancels.db", "sqlite:////data/cancels.db"),
        ("postgresql://bot:p%40w@db/cancels", "postgresql+psycopg://bot:p%40w@db/cancels"),
        ("postgres://bot@db/cancels", "postgresql+psycopg://bot@db/cancels"),
        ("postgresql+psycopg://db/cancels?sslmode=require", "postgresql+psycopg://db/cancels?sslmode=require"),
        (
            "postgresql://bot@/cancels?host=/run/postgresql",
            "postgresql+psycopg://bot@/cancels?host=%2Frun%2Fpostgresql",
        ),
    ],
)
def test_the_database_address_gets_the_driver_that_the_bot_carries(given_url: str, url: str) -> None:
    """Every hosting company prints `postgres://` or `postgresql://`, which SQLAlchemy would answer with psycopg2."""
    assert load(DATABASE_URL=given_url).database_url.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///x?mode=memory",
        "sqlite:///cancels.db?timeout=1",
        "sqlite:///file:cancels.db",
        "sqlite://cancels.db",
        "sqlite+aiosqlite:///cancels.db",
        "mysql://bot:canary@db/cancels",
        "postgresql+psycopg2://bot:canary@db/cancels",
        "postgresql://bot:canary@db",
        "postgresql://bot:canary@db:port/cancels",
        "cancels.db",
        "canary",
    ],
)
def test_a_database_that_could_not_keep_the_audit_is_refused_without_its_password(url: str) -> None:
    """An audit in memory is gone at the first restart, and an unknown database keeps none of our promises."""
    (fault,) = faults_of(ENOUGH | {"DATABASE_URL": url})

    assert fault.startswith("DATABASE_URL ")
    assert "canary" not in fault


@pytest.mark.parametrize("database", [{}, {"DATABASE_URL": "sqlite:////tmp/cancels.db"}])
def test_sqlite_is_refused_on_app_engine(database: dict[str, str]) -> None:
    """An instance there is replaced at will, together with its disk."""
    environ = ENOUGH | database | {"GAE_INSTANCE": "aef-default-1"}

    (fault,) = faults_of(environ)
    assert "App Engine" in fault
    with pytest.raises(SettingsError, match="App Engine"):
        load_database_settings(environ, None)

    settings = load_settings(environ | {"DATABASE_URL": "postgresql://db/cancels"}, None)
    assert settings.database_shown == "postgresql+psycopg://db/cancels"


def test_postgresql_without_its_driver_says_how_to_install_it() -> None:
    """The driver is an extra; an ImportError in the middle of the start would help nobody."""
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from bot.settings import SettingsError, load_database_settings\n"
        "try: load_database_settings({'DATABASE_URL': 'postgresql://db/cancels'}, None)\n"
        "except SettingsError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert "uv sync --extra postgres" in said


def test_the_commands_that_only_read_the_database_need_nothing_else() -> None:
    """An auditor's machine has no Slack token and no Upbit key, and should have none."""
    settings = load_database_settings({"DATABASE_URL": "postgres://u:canary@db/c", "APPROVERS": "@kim"}, None)

    assert settings.database_url.get_secret_value() == "postgresql+psycopg://u:canary@db/c"
    assert settings.log_level == "INFO"
    with pytest.raises(SettingsError, match="LOG_LEVEL must be"):
        load_database_settings({"LOG_LEVEL": "LOUD"}, None)


def test_the_database_is_shown_without_its_password() -> None:
    """People want to see which database was chosen; libpq also takes a password among the options."""
    settings = load_database_settings({"DATABASE_URL": "postgresql://bot:canary@db:5433/c?password=canary"}, None)

    assert settings.database_shown == "postgresql+psycopg://bot:***@db:5433/c"


# Numbers, words, and where they come from


@pytest.mark.parametrize(
    ("variable", "least", "most"),
    [
        ("APPROVAL_TTL_MINUTES", 1, 1440),
        ("SEND_WITHIN_MINUTES", 1, 60),
        ("MAX_OPEN_REQUESTS_PER_PERSON", 1, 1000),
        ("PORT", 1, 65535),
    ],
)
def test_numbers_have_bounds(variable: str, least: int, most: int) -> None:
    """A typing error of one digit must not keep a card open for a year."""
    for right in (least, most):
        assert getattr(load(**{variable: str(right)}), variable.lower()) == right
    for wrong in (str(least - 1), str(most + 1), "-1", "1.5", "1e1", "ten", "\u0661", "9" * 5000):
        assert faults_of(ENOUGH | {variable: wrong}) == (f"{variable} must be a whole number from {least} to {most}",)


def test_self_approval_is_true_or_false_and_nothing_like_it() -> None:
    """`SELF_APPROVAL=no` read as truthy text would switch four eyes off."""
    assert load(SELF_APPROVAL="True").self_approval is True
    assert load(SELF_APPROVAL="false").self_approval is False
    for unclear in ("yes", "no", "1", "0", "on"):
        assert faults_of(ENOUGH | {"SELF_APPROVAL": unclear}) == ("SELF_APPROVAL must be true or false",)


def test_log_level_and_host_are_checked() -> None:
    """A scheme in HOST or a made-up level would fail later and less clearly."""
    assert load(LOG_LEVEL="debug", HOST="::").log_level == "DEBUG"
    faults = faults_of(ENOUGH | {"LOG_LEVEL": "TRACE", "HOST": "http://0.0.0.0"})
    assert [fault.split()[0] for fault in faults] == ["LOG_LEVEL", "HOST"]


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """What is set for one start is meant; an empty value there takes the one in the file away."""
    env_file = private_file(tmp_path / ".env", "PORT=1111\nNOTIFY=U111\nLOG_LEVEL=ERROR\n")
    settings = load_settings(ENOUGH | {"PORT": "2222", "NOTIFY": ""}, env_file)

    assert (settings.port, settings.notify, settings.log_level) == (2222, (), "ERROR")


def test_the_file_takes_values_literally(tmp_path: Path) -> None:
    """A `$` in a password is a `$`; a byte order mark from an editor is not part of the first name."""
    lines = 'export SLACK_SIGNING_SECRET="a$HOME"  # why not\nAPPROVAL_TTL_MINUTES=7\n\n# a comment\n'
    env_file = private_file(tmp_path / ".env", b"\xef\xbb\xbf" + lines.encode())
    settings = load_settings(ENOUGH, env_file)

    assert settings.slack_signing_secret.get_secret_value() == "a$HOME"
    assert settings.approval_ttl == timedelta(minutes=7)


def test_no_file_is_no_fault(tmp_path: Path) -> None:
    """A container is given its environment and has no .env."""
    assert load_settings(ENOUGH, tmp_path / ".env") == load()


def test_a_line_of_the_file_that_says_nothing_is_a_fault(tmp_path: Path) -> None:
    """A line that is dropped in silence may have been the allowlist."""
    env_file = private_file(tmp_path / ".env", "PORT=1111\nAPPROVERS: U111 canary\n'canary\n")

    faults = faults_of(ENOUGH, env_file)
    assert faults[0] == f"{env_file} line 2 is not NAME=value: correct it"
    assert "canary" not in "".join(faults)


def test_a_file_that_others_can_read_is_told(tmp_path: Path) -> None:
    """Every account of the machine could trade with what is in it; but a container's secret mounts are like that."""
    env_file = private_file(tmp_path / ".env", "PORT=1111\n")
    secret = private_file(tmp_path / "secret", "from-file")
    environ = {**ENOUGH, "UPBIT_OPEN_API_SECRET_KEY_FILE": str(secret)}
    del environ["UPBIT_OPEN_API_SECRET_KEY"]

    assert load_settings(environ, env_file).warnings == ()
    env_file.chmod(0o644)
    secret.chmod(0o640)
    assert load_settings(environ, env_file).warnings == (
        f"{env_file} can be read by other users of this machine: chmod 600",
        "UPBIT_OPEN_API_SECRET_KEY_FILE can be read by other users of this machine: chmod 600",
    )


SECRETS = [row.variable for row in settings_table() if row.secret]


@pytest.mark.parametrize("variable", SECRETS)
def test_every_secret_may_come_from_a_file(variable: str, tmp_path: Path) -> None:
    """An environment is visible to the whole process tree and to `docker inspect`; a mounted file is not."""
    texts = {"DATABASE_URL": "sqlite:///elsewhere.db", "CHECKPOINT_KEY": "1a" * 32}
    text = texts.get(variable, ENOUGH.get(variable, "signing"))
    environ = {name: value for name, value in ENOUGH.items() if name != variable}
    environ[f"{variable}_FILE"] = str(private_file(tmp_path / "secret", f"{text}\n"))

    assert getattr(load_settings(environ, None), variable.lower()).get_secret_value() == text


def test_a_secret_given_twice_is_a_fault() -> None:
    """Nobody could say which of the two keys is in use."""
    assert faults_of(ENOUGH | {"SLACK_BOT_TOKEN_FILE": "somewhere"}) == (
        "SLACK_BOT_TOKEN and SLACK_BOT_TOKEN_FILE are both set: unset one of them",
    )


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfecanary", "is not UTF-8 text"),
        (b"canary" * 20_000, "is longer than any secret"),
    ],
)
def test_a_secret_file_without_a_secret_is_told_without_its_content(content: bytes, cause: str, tmp_path: Path) -> None:
    """The variable may name the wrong file, and what is in that one is nobody's business."""
    environ = {name: value for name, value in ENOUGH.items() if name != "SLACK_BOT_TOKEN"}
    environ["SLACK_BOT_TOKEN_FILE"] = str(private_file(tmp_path / "secret", content))

    (fault,) = faults_of(environ)
    assert fault.startswith(f"SLACK_BOT_TOKEN_FILE names a file that {cause}")
    assert "canary" not in fault


@pytest.mark.parametrize("path", ["xoxb-canary-pasted-as-a-path", os.sep, "canary\0"])
def test_a_secret_file_that_cannot_be_read_is_told_without_its_name(path: str) -> None:
    """People paste the secret itself where its path belongs."""
    environ = {name: value for name, value in ENOUGH.items() if name != "SLACK_BOT_TOKEN"}

    (fault,) = faults_of(environ | {"SLACK_BOT_TOKEN_FILE": path})
    assert fault.startswith("SLACK_BOT_TOKEN_FILE names a file that cannot be read (")
    assert "canary" not in fault


def test_an_env_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    """An archive or a folder under that name must not start a bot with half of its settings."""
    (fault,) = faults_of(ENOUGH, private_file(tmp_path / ".env", b"\xff\xfe"))
    assert fault.startswith(f"{tmp_path / '.env'} is not UTF-8 text")

    (fault,) = faults_of(ENOUGH, tmp_path)
    assert fault.startswith(f"{tmp_path} cannot be read")


def test_commands_other_than_run_may_leave_settings_out_but_not_wrong() -> None:
    """`bot check` says more than one missing token; what is there is still read strictly."""
    settings = load_settings({}, None, for_run=False)
    assert settings.approvers == frozenset()
    assert settings.slack_bot_token.get_secret_value() == ""

    with pytest.raises(SettingsError, match="PORT must be"):
        load_settings({"PORT": "http"}, None, for_run=False)


# Secrets stay secret


def test_no_secret_shows_in_any_form_of_the_settings() -> None:
    """Settings end up in tracebacks, logs and error reports."""
    settings = load(SLACK_SIGNING_SECRET="canary", DATABASE_URL="postgresql://bot:canary@db/cancels")

    forms = (
        repr(settings),
        str(settings),
        repr(settings.model_dump()),
        settings.model_dump_json(),
        repr(vars(settings)),
    )
    for form in forms:
        assert "canary" not in form
    assert json.loads(settings.model_dump_json())["slack_bot_token"] == "**********"


@hypothesis_settings(deadline=None)  # the first example also imports what the parsing needs
@given(st.sampled_from([row.variable for row in settings_table()]), st.text(max_size=30))
def test_no_fault_repeats_the_value_that_is_wrong(variable: str, text: str) -> None:
    """Any variable may hold a secret by mistake, and faults are printed on terminals and in logs."""
    text = f"can\u0391ry {text}"
    try:
        settings = load_settings(ENOUGH | {variable: text}, None)
    except SettingsError as error:
        assert "can\u0391ry" not in str(error)  # noqa: PT017 - most texts are faults, a few are not
        assert error.__cause__ is None  # noqa: PT017
        assert error.__context__ is None  # noqa: PT017
    else:
        assert settings.warnings == ()


def test_the_table_for_the_documentation_knows_every_setting() -> None:
    """README and .env.example are compared with this table, so it must be complete and say something of each."""
    rows = settings_table()

    assert {row.variable.lower() for row in rows} == set(Settings.model_fields) - {"warnings"}
    assert all(row.meaning for row in rows)
    assert [row.variable for row in rows if row.needed] == [name for name in ENOUGH if name != "SLACK_APP_TOKEN"]
    defaults = {row.variable: row.default for row in rows if row.default}
    assert load_settings(ENOUGH | defaults, None) == load()


def test_settings_do_not_change_after_the_start() -> None:
    """Every replica answers by the rules that it was started with."""
    with pytest.raises(ValueError, match="frozen"):
        load().__setattr__("self_approval", True)
