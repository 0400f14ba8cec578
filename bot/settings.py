"""Every setting: its variable, its default, what it means and what can be wrong with it.

A value comes from the environment, else from `.env`; a secret may also come from the file that `<NAME>_FILE` names. An
empty value is an unset one. Whatever is wrong is told at once, in a `SettingsError`, and without the values: any of
them may be a secret that was pasted into the wrong place.
"""

import ipaddress
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from difflib import get_close_matches
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar
from urllib.parse import SplitResult, urlsplit

from dotenv.parser import parse_stream
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from bot.domain.configuration import bounded, key_id
from bot.domain.membership import is_group
from bot.domain.tiers import MAX_APPROVALS, Tier, parse_tiers

LATER_SETTINGS = (
    "ADMINS",
    "OPS_PORT",
)

_LONGEST_FILE = 64 * 1024
_SAME_BUT_FOR_A_SLIP = 0.9
_HTTPS_PORT = 443
_LARGEST_PORT = 65_535
_DAY_IN_MINUTES = 24 * 60
_MOST_GROUPS = 10  # Slack lets an app ask about 20 times a minute, and each is asked every 40 s


class SettingsError(Exception):
    """Everything that is wrong with the settings: a sentence a fault, each naming the variable and the remedy."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


# What a variable's text may be. Each function takes the text and gives the value, or says what is wrong with it; the
# sentence goes on from the variable's name.


def _secret(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("holds spaces or characters that are not ASCII: copy it again")
    return text


def _token(prefix: str, where: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(re.escape(prefix) + r"[A-Za-z0-9-]+", text):
            raise ValueError(f"must begin with {prefix}: copy the {where}")
        return text

    return parse


def _user_ids(text: str) -> tuple[str, ...]:
    """Ids of Slack users and user groups, each once and in the order given."""
    ids = _entries(text)
    if not ids:
        raise ValueError("lists nobody: write Slack user ids or user group ids, or unset it")
    faults = [f"entry {place} {fault}" for place, entry in enumerate(ids, start=1) if (fault := _id_fault(entry))]
    if faults:
        raise ValueError("; ".join(faults))
    return tuple(dict.fromkeys(ids))


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _id_fault(entry: str) -> str | None:
    if re.fullmatch(r"[UWS][A-Z0-9]{2,30}", entry):
        return None
    return (
        "is not the id of a Slack user (U… or W…) or user group (S…): names do not count; in Slack open the profile,"
        " then ⋮, Copy member ID, or the user group, then ⋮, Copy group ID"
    )


def _channel_ids(text: str) -> frozenset[str]:
    ids = _entries(text)
    if not ids:
        raise ValueError("lists no channel: write Slack channel ids, or unset it")
    faults = [f"entry {place} {_NO_CHANNEL}" for place, entry in enumerate(ids, start=1) if not _CHANNEL(entry)]
    if faults:
        raise ValueError("; ".join(faults))
    return frozenset(ids)


def _checkpoint_key(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise ValueError("must be 64 hex digits: make one with `openssl rand -hex 32`")
    return text


def _channel_id(of: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if "," in text:
            raise ValueError(f"names more than one channel: all {of} go to one")
        if not _CHANNEL(text):
            raise ValueError(_NO_CHANNEL)
        if text.startswith("D"):
            raise ValueError(f"names a direct message, where nobody else sees the {of}: write a channel's id")
        return text

    return parse


_CHANNEL = re.compile(r"[CGD][A-Z0-9]{2,}").fullmatch
_NO_CHANNEL = (
    "is not a Slack channel id (C… or G…, D… for a direct message): names do not count; in Slack open the channel's"
    " details, and copy the Channel ID at the bottom"
)


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return parse


def _yes_or_no(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("must be true or false")
    return text.lower() == "true"


def _log_level(text: str) -> str:
    if text.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
    return text.upper()


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:-]+", text):
        raise ValueError("must be an address or a host name without scheme or port, such as 127.0.0.1 or 0.0.0.0")
    return text


def _slack_api_url(text: str) -> str:
    remedy = "must be an https address (or http on loopback) without user, query or fragment: unset it to use Slack's"
    url = _split(text, remedy)
    if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url.hostname)):
        raise ValueError(remedy)
    return text if text.endswith("/") else text + "/"


def _upbit_server_url(text: str) -> str:
    remedy = (
        "must be https://api.upbit.com or https://<region>-api.upbit.com (two letters), or an http address on loopback,"
        " and nothing after it"
    )
    url = _split(text, remedy)
    if url.path not in {"", "/"}:
        raise ValueError(remedy)
    if url.scheme in {"http", "https"} and _is_loopback(url.hostname):
        return f"{url.scheme}://{url.netloc}"
    is_upbit = re.fullmatch(r"([a-z]{2}-)?api\.upbit\.com", url.hostname or "")
    if url.scheme != "https" or not is_upbit or url.port not in {None, _HTTPS_PORT}:
        raise ValueError(remedy)
    return f"https://{url.hostname}"


def _split(text: str, remedy: str) -> SplitResult:
    """The parts of an address that is only scheme, host, port and path."""
    try:
        url = urlsplit(text)
        malformed = url.port == 0 or not url.hostname
    except ValueError:
        malformed = True
    if malformed or not re.fullmatch(r"[A-Za-z0-9.:/\[\]_-]+", text):
        raise ValueError(remedy)
    return url


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _database_url(text: str) -> str:
    """The address as SQLAlchemy wants it, with the driver that this project carries."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(
            "is not a database address: write sqlite:///file.db or postgresql://user:password@host/name, with special"
            " characters of the password percent-encoded"
        ) from None
    if url.drivername in {"sqlite", "sqlite+pysqlite"}:
        return _sqlite_url(url)
    if url.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        return _postgresql_url(url)
    raise ValueError("names a database or driver that is not supported: write sqlite:///… or postgresql://…")


def _sqlite_url(url: URL) -> str:
    if url.host:
        raise ValueError("has too few slashes: write sqlite:///file.db or sqlite:////absolute/file.db")
    if not url.database or url.database == ":memory:" or "mode" in url.query:
        raise ValueError("keeps nothing: a database in memory loses the audit, so name a file (sqlite:///cancels.db)")
    if url.query or url.database.startswith("file:"):
        raise ValueError("must name just the file: sqlite:///file.db")
    return f"sqlite:///{url.database}"


def _postgresql_url(url: URL) -> str:
    if not url.database:
        raise ValueError("names no database: write postgresql://user:password@host/name")
    if find_spec("psycopg") is None:
        raise ValueError(
            "asks for PostgreSQL, whose driver is not installed: `uv sync --extra postgres`, or"
            " `pip install 'upbit-cancel-bot[postgres]'`"
        )
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


class Needed(NamedTuple):
    """Marks a setting that `bot run` cannot do without."""

    remedy: str


BotToken = _token("xoxb-", "Bot User OAuth Token from the Slack app's page OAuth & Permissions")
AppToken = _token("xapp-", "app-level token (scope connections:write) from the Slack app's page Basic Information")
UserIds = Annotated[frozenset[str], BeforeValidator(lambda text: frozenset(_user_ids(text)))]


class DatabaseSettings(BaseModel):
    """What the commands need that only open the database, such as `bot audit` and `bot migrate`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: Annotated[SecretStr, BeforeValidator(_database_url)] = Field(
        default=SecretStr("sqlite:///cancels.db"),
        description="Where requests and audit are kept: a SQLite file, or `postgresql://user:password@host/name`",
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_log_level)] = Field(
        default="INFO", description="How much is logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`"
    )
    warnings: tuple[str, ...] = ()

    @property
    def database_shown(self) -> str:
        """Where the database is, without its password: for people to read."""
        url = make_url(self.database_url.get_secret_value())
        return url.set(query={}).render_as_string(hide_password=True)


class AuditSettings(DatabaseSettings):
    """What the commands need beside that which sign the audit, or verify who signed it."""

    checkpoint_key: Annotated[SecretStr, BeforeValidator(_checkpoint_key)] = Field(
        default=SecretStr(""),
        description="The private key that signs a checkpoint of the audit every day, and evidence packs: 64 hex digits,"
        " such as `openssl rand -hex 32` prints; empty means none are made",
    )
    checkpoint_channel: Annotated[str, BeforeValidator(_channel_id("checkpoints"))] = Field(
        default="", description="The channel that the checkpoints are posted to: its Slack id; needs `CHECKPOINT_KEY`"
    )


class Settings(AuditSettings):
    """All that `bot run` needs."""

    slack_bot_token: Annotated[SecretStr, BeforeValidator(BotToken), Needed("copy the Slack app's xoxb- token")] = (
        Field(default=SecretStr(""), description="The Slack app's bot token, `xoxb-…`")
    )
    slack_app_token: Annotated[SecretStr, BeforeValidator(AppToken)] = Field(
        default=SecretStr(""), description="The Slack app's app-level token, `xapp-…`; setting it chooses Socket Mode"
    )
    slack_signing_secret: Annotated[SecretStr, BeforeValidator(_secret)] = Field(
        default=SecretStr(""), description="Proves that a request comes from Slack; needed without Socket Mode"
    )
    slack_api_url: Annotated[str, BeforeValidator(_slack_api_url)] = Field(
        default="https://slack.com/api/", description="Slack's Web API; `http` only on loopback"
    )
    upbit_open_api_access_key: Annotated[
        SecretStr, BeforeValidator(_secret), Needed("copy the access key of an Upbit Open API key")
    ] = Field(default=SecretStr(""), description="The Upbit access key")
    upbit_open_api_secret_key: Annotated[
        SecretStr, BeforeValidator(_secret), Needed("copy the secret key of the same Upbit Open API key")
    ] = Field(default=SecretStr(""), description="The Upbit secret key")
    upbit_open_api_server_url: Annotated[
        str, BeforeValidator(_upbit_server_url), Needed("set it to https://api.upbit.com")
    ] = Field(
        default="", description="`https://api.upbit.com`, or `https://<region>-api.upbit.com` such as `sg`, or loopback"
    )
    approvers: Annotated[UserIds, Needed("list at least one Slack user id or user group id")] = Field(
        default=frozenset(),
        description="Who may approve and deny: ids of Slack users (`U…`, `W…`) and user groups (`S…`), separated by"
        " commas",
    )
    requesters: UserIds = Field(
        default=frozenset(),
        description="Who may type `/cancel`: ids of users and user groups; empty means everyone in the workspace",
    )
    auditors: UserIds = Field(
        default=frozenset(),
        description="Who may have the audit exported by `/cancel export`, all of it, private channels included: ids of"
        " users and user groups; empty means nobody",
    )
    self_approval: Annotated[bool, BeforeValidator(_yes_or_no)] = Field(
        default=False, description="Whether an approver may approve what they asked for themselves"
    )
    approvals_required: Annotated[int, BeforeValidator(_whole_number(1, MAX_APPROVALS))] = Field(
        default=1, description=f"How many different approvers must approve a request, 1 to {MAX_APPROVALS}"
    )
    approval_tiers: Annotated[tuple[Tier, ...], BeforeValidator(parse_tiers)] = Field(
        default=(),
        description="More approvals for larger orders, such as `KRW-*:50000000=2, KRW-*/ask:200000000=3`: worth more"
        " than so much in the quote currency needs so many",
    )
    approval_ttl_minutes: Annotated[int, BeforeValidator(_whole_number(1, _DAY_IN_MINUTES))] = Field(
        default=30, description="How long a card can be decided before it expires, 1 to 1440 minutes"
    )
    send_within_minutes: Annotated[int, BeforeValidator(_whole_number(1, 60))] = Field(
        default=5, description="An approved cancel that was not sent by then lapses, 1 to 60 minutes"
    )
    refresh_seconds: Annotated[int, BeforeValidator(_whole_number(5, 3600))] = Field(
        default=30, description="How often the orders of pending requests are looked at again, 5 to 3600 seconds"
    )
    notify: Annotated[tuple[str, ...], BeforeValidator(_user_ids)] = Field(
        default=(),
        description="Who is mentioned on a new card, in its reminder and in trouble: ids of users and user groups",
    )
    channels: Annotated[frozenset[str], BeforeValidator(_channel_ids)] = Field(
        default=frozenset(),
        description="Where `/cancel` may be typed: Slack channel ids, separated by commas; empty means anywhere",
    )
    approvals_channel: Annotated[str, BeforeValidator(_channel_id("cards"))] = Field(
        default="", description="The channel that all cards go to: its Slack id; empty means where `/cancel` was typed"
    )
    max_open_requests_per_person: Annotated[int, BeforeValidator(_whole_number(1, 1000))] = Field(
        default=20, description="How many open requests one person may have, 1 to 1000"
    )
    host: Annotated[str, BeforeValidator(_host)] = Field(
        default="127.0.0.1", description="The address to listen on; `0.0.0.0` in the container image"
    )
    port: Annotated[int, BeforeValidator(_whole_number(1, _LARGEST_PORT))] = Field(
        default=3000, description="The port to listen on, for Slack's requests and for health checks"
    )

    @property
    def groups(self) -> frozenset[str]:
        """The user groups whose members Slack is asked for."""
        return frozenset(entry for entry in self.approvers | self.requesters | self.auditors if is_group(entry))

    @property
    def socket_mode(self) -> bool:
        """Whether Slack is reached through a WebSocket, rather than reaching us over HTTP."""
        return bool(self.slack_app_token.get_secret_value())

    @property
    def approval_ttl(self) -> timedelta:
        return timedelta(minutes=self.approval_ttl_minutes)

    @property
    def refresh_every(self) -> timedelta:
        return timedelta(seconds=self.refresh_seconds)

    @property
    def send_within(self) -> timedelta:
        return timedelta(minutes=self.send_within_minutes)


class SettingRow(NamedTuple):
    """A setting as the documentation shows it."""

    variable: str
    default: str
    meaning: str
    secret: bool
    needed: bool


def settings_table() -> tuple[SettingRow, ...]:
    """Every setting that this version knows, in the order in which people fill them in."""
    of_the_database, of_the_audit = _fields(DatabaseSettings), _fields(AuditSettings)
    fields = {name: field for name, field in _fields(Settings).items() if name not in of_the_audit}
    fields |= {name: field for name, field in of_the_audit.items() if name not in of_the_database}
    return tuple(
        SettingRow(
            variable=name.upper(),
            default=_as_text(field.default),
            meaning=field.description or "",
            secret=_is_secret(field),
            needed=_needed(field) is not None,
        )
        for name, field in (fields | of_the_database).items()
    )


def _as_text(default: object) -> str:
    match default:
        case SecretStr():
            return default.get_secret_value()
        case bool():
            return str(default).lower()
        case frozenset():
            return ",".join(sorted(default))
        case tuple():
            return ",".join(map(str, default))
        case _:
            return str(default)


def configuration(settings: Settings) -> dict[str, str]:
    """Every setting by its variable, as text for the audit: a secret by its key id, the database by its kind."""
    told = {}
    for row in settings_table():
        value = getattr(settings, row.variable.lower())
        if row.variable == "DATABASE_URL":  # its password need not be a random one, so it gets no key id
            told[row.variable] = make_url(value.get_secret_value()).get_backend_name()
        elif isinstance(value, SecretStr):
            told[row.variable] = key_id(row.variable, value.get_secret_value())
        else:
            told[row.variable] = bounded(_as_text(value))
    return told


def load_settings(environ: Mapping[str, str], env_file: Path | None, *, for_run: bool = True) -> Settings:
    """All settings; with `for_run=False` what is missing stays empty, but what is there must still be right."""
    given = _Given(environ, env_file)
    given.refuse_what_is_not_enforced()
    if for_run:
        given.refuse_what_is_missing()
    settings = given.parse(Settings)
    faults = _checkpoint_faults(settings)
    if len(settings.groups) > _MOST_GROUPS:
        lists = "APPROVERS, REQUESTERS and AUDITORS"
        faults += (f"{lists} name more than {_MOST_GROUPS} user groups together: name fewer",)
    # How many a group stands for only Slack can tell: `bot check` asks, and each request is asked about.
    if for_run and not settings.groups:
        faults += too_few_approvers(settings, approvers=settings.approvers, requesters=settings.requesters)
    if faults:
        raise SettingsError(faults)
    return settings


def too_few_approvers(settings: Settings, *, approvers: frozenset[str], requesters: frozenset[str]) -> tuple[str, ...]:
    """What asks for more approvals than can ever come, whoever of these people asks; nobody listed means everyone."""
    count = len(approvers)
    everyone_who_asks_approves = bool(requesters) and requesters <= approvers
    if everyone_who_asks_approves and not settings.self_approval:
        count -= 1  # who asks does not count
    needed = [("APPROVALS_REQUIRED", settings.approvals_required)]
    needed += [
        (f"APPROVAL_TIERS rule {place}", tier.approvals) for place, tier in enumerate(settings.approval_tiers, start=1)
    ]
    return tuple(
        f"{where} needs {approvals} approvals, and only {count} may approve: add approvers, or lower it"
        for where, approvals in needed
        if approvals > count
    )


def _checkpoint_faults(settings: AuditSettings) -> tuple[str, ...]:
    if settings.checkpoint_channel and not settings.checkpoint_key.get_secret_value():
        return ("CHECKPOINT_CHANNEL is set and CHECKPOINT_KEY is empty: there is nothing to post, so set the key too",)
    return ()


def load_audit_settings(environ: Mapping[str, str], env_file: Path | None) -> AuditSettings:
    """What opens the database and signs: nothing else has to be set, or right."""
    settings = _Given(environ, env_file).parse(AuditSettings)
    faults = _checkpoint_faults(settings)
    if faults:
        raise SettingsError(faults)
    return settings


def load_database_settings(environ: Mapping[str, str], env_file: Path | None) -> DatabaseSettings:
    """Only what opens the database: nothing else has to be set, or right."""
    return _Given(environ, env_file).parse(DatabaseSettings)


_Model = TypeVar("_Model", bound=DatabaseSettings)


class _Given:
    """The variables as text, and what was found wrong with them so far."""

    def __init__(self, environ: Mapping[str, str], env_file: Path | None) -> None:
        self.faults: list[str] = []
        self.warnings: list[str] = []
        in_file = self._read_env_file(env_file) if env_file else {}
        self._slips(in_file, self.faults)
        self._slips(environ, self.warnings)
        merged = {**in_file, **environ}
        self.texts = {variable: text.strip() for variable, text in merged.items() if text.strip()}

    def refuse_what_is_not_enforced(self) -> None:
        """A rule that somebody relies on and nobody keeps is worse than no start."""
        self.faults += [
            f"{variable} is not supported by this version: unset it"
            for variable in LATER_SETTINGS
            if variable in self.texts
        ]
        self.faults += [
            f"{name.upper()}_FILE is not supported: only a secret is read from a file, so set {name.upper()} itself"
            for name, field in _fields(Settings).items()
            if not _is_secret(field) and f"{name.upper()}_FILE" in self.texts
        ]

    def refuse_what_is_missing(self) -> None:
        for name, field in _fields(Settings).items():
            needed = _needed(field)
            if needed and not self._has(name.upper()):
                self.faults.append(f"{name.upper()} is empty: {needed.remedy}")
        if not self._has("SLACK_APP_TOKEN") and not self._has("SLACK_SIGNING_SECRET"):
            self.faults.append(
                "SLACK_SIGNING_SECRET is empty: copy it from the Slack app's page Basic Information, or set"
                " SLACK_APP_TOKEN to use Socket Mode"
            )
        approvers, requesters = (set(_entries(self.texts.get(name, ""))) for name in ("APPROVERS", "REQUESTERS"))
        is_one_person = len(approvers) == 1 and not any(is_group(entry) for entry in approvers)
        if is_one_person and approvers == requesters and self.texts.get("SELF_APPROVAL", "").lower() != "true":
            self.faults.append(
                "APPROVERS allows nobody but the only requester, who may not approve: add an approver, or set"
                " SELF_APPROVAL=true"
            )

    def parse(self, model: type[_Model]) -> _Model:
        texts = {name: self._text_of(name.upper(), field) for name, field in _fields(model).items()}
        database_url = texts["database_url"] or _as_text(model.model_fields["database_url"].default)
        if database_url.startswith("sqlite") and self.texts.get("GAE_INSTANCE"):
            self.faults.append(
                "DATABASE_URL names a SQLite file, which App Engine deletes with the instance: use postgresql://…"
            )
        settings = None
        try:
            settings = model.model_validate(
                {name: text for name, text in texts.items() if text} | {"warnings": tuple(self.warnings)}
            )
        except ValidationError as error:
            self.faults += [f"{str(fault['loc'][0]).upper()} {fault['ctx']['error']}" for fault in error.errors()]
        if settings is None or self.faults:
            raise SettingsError(tuple(self.faults))
        return settings

    def _has(self, variable: str) -> bool:
        return variable in self.texts or f"{variable}_FILE" in self.texts

    def _text_of(self, variable: str, field: FieldInfo) -> str:
        in_file = f"{variable}_FILE"
        if not _is_secret(field) or in_file not in self.texts:
            return self.texts.get(variable, "")
        if variable in self.texts:
            self.faults.append(f"{variable} and {in_file} are both set: unset one of them")
            return ""
        try:
            text = self._read(Path(self.texts[in_file]), in_file).strip()
        except ValueError as error:
            self.faults.append(f"{in_file} names a file that {error}")
            return ""
        if not text:
            self.faults.append(f"{in_file} names a file that is empty: put the secret into it")
        return text

    def _read_env_file(self, path: Path) -> dict[str, str]:
        if not path.exists():
            return {}
        try:
            text = self._read(path, str(path))
        except ValueError as error:
            self.faults.append(f"{path} {error}")
            return {}
        variables = {}
        for line in parse_stream(StringIO(text)):
            if line.error:
                self.faults.append(f"{path} line {line.original.line} is not NAME=value: correct it")
            elif line.key:
                variables[line.key] = line.value or ""
        return variables

    def _read(self, path: Path, named: str) -> str:
        """The text of a file that holds secrets; it raises what is wrong, never what is in it."""
        try:
            with path.open("rb") as file:
                content = file.read(_LONGEST_FILE + 1)
                mode = os.fstat(file.fileno()).st_mode
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else "not a file name"
            raise ValueError(f"cannot be read ({cause}): correct the name or its permissions") from None
        if len(content) > _LONGEST_FILE:
            raise ValueError("is longer than any secret: correct the name")
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            self.warnings.append(f"{named} can be read by other users of this machine: chmod 600")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("is not UTF-8 text: correct the name or the file") from None

    @staticmethod
    def _slips(variables: Iterable[str], found: list[str]) -> None:
        """Notice `REQUESTER=…`, which would otherwise let everyone ask."""
        known = {name.upper() for name in _fields(Settings)}
        known |= {f"{name.upper()}_FILE" for name in _fields(Settings)} | set(LATER_SETTINGS)
        for variable in variables:
            meant = get_close_matches(variable.upper(), known, n=1, cutoff=_SAME_BUT_FOR_A_SLIP)
            if meant and variable not in known:
                found.append(f"{variable} is not a setting: did you mean {meant[0]}?")


def _fields(model: type[DatabaseSettings]) -> dict[str, FieldInfo]:
    """The fields that are variables."""
    return {name: field for name, field in model.model_fields.items() if name != "warnings"}


def _is_secret(field: FieldInfo) -> bool:
    return field.annotation is SecretStr


def _needed(field: FieldInfo) -> Needed | None:
    return next((mark for mark in field.metadata if isinstance(mark, Needed)), None)
