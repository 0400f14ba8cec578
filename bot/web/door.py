"""The WSGI app in front of Bolt: health and readiness for the platform, and one guarded way in for Slack.

    GET, HEAD /healthz       is the process alive? Asks nobody
    GET, HEAD /readyz        is everything there that a request needs? 200 or 503, and each check by name
    POST /slack/events       only if the bot listens to Slack over HTTP

Bolt answers strange headers and bodies with a 500 and logs refused bodies whole. So a request comes to it only with a
good signature, and with a body that `delivery` has written anew:
https://docs.slack.dev/authentication/verifying-requests-from-slack
"""

import hashlib
import hmac
import json
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from io import BytesIO
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from bot.web.delivery import FORM, JSON, NothingForUsError, UnreadableError, rewritten

logger = logging.getLogger(__name__)

SLACK_PATH: Final = "/slack/events"
MAX_BODY_BYTES: Final = 1_000_000  # far more than Slack sends
MAX_AGE_S: Final = 300  # a signed request can be replayed for as long

_NUMBER: Final = re.compile(r"[0-9]{1,12}")
_SIGNATURE: Final = re.compile(r"v0=[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """Each check by name: True, or False or a short word for what is missing. No secrets: anybody can read it."""

    checks: Mapping[str, bool | str]
    told: Mapping[str, bool | str] = field(default_factory=dict)
    """Shown beside the checks: what requests do not need."""

    @property
    def is_ready(self) -> bool:
        return all(result is True for result in self.checks.values())


class _RefusedError(Exception):
    """The request goes no further; `why` is all that the other side is told."""

    def __init__(self, status: HTTPStatus, why: str, *, allow: str | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.allow = allow


class Door:
    """Call it as a WSGI app. Without `slack`, as in Socket Mode, there is no way in for Slack."""

    def __init__(
        self,
        *,
        slack: WSGIApplication | None,
        signing_secret: str | None,
        ready: Callable[[], Readiness],
        health: Callable[[], bool] = lambda: True,
        now: Callable[[], float] | None = None,
    ) -> None:
        """`health` tells whether this process is alive and asks nothing outside of it.

        Raises ValueError if Slack is let in without a signing secret.
        """
        if slack is not None and not (signing_secret or "").strip():
            raise ValueError("a signing secret is needed: without one, anybody could sign")
        self._slack = slack
        self._key = (signing_secret or "").encode()
        self._ready = ready
        self._health = health
        self._now = now or time.time

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return self._route(environ, start_response)
        except _RefusedError as refused:
            logger.info("refused a request: %d %s", refused.status, refused.why)
            return _respond(environ, start_response, refused.status, refused.why, allow=refused.allow)
        except NothingForUsError as kind:
            logger.info("acknowledged what nobody listens to: %s", kind)
            return _respond(environ, start_response, HTTPStatus.OK, "")

    def _route(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ.get("PATH_INFO", ""):
            case "/healthz":
                _allow(environ, "GET", "HEAD")
                return self._answer_health(environ, start_response)
            case "/readyz":
                _allow(environ, "GET", "HEAD")
                return self._answer_ready(environ, start_response)
            case path if path == SLACK_PATH and self._slack is not None:
                _allow(environ, "POST")
                return _pass_on(self._slack, self._checked(environ), start_response)
            case _:
                raise _RefusedError(HTTPStatus.NOT_FOUND, "not found")

    def _answer_health(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._health():
            return _respond(environ, start_response, HTTPStatus.OK, "ok")
        return _respond(environ, start_response, HTTPStatus.SERVICE_UNAVAILABLE, "stuck")

    def _answer_ready(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            readiness = self._ready()
        except Exception as error:  # noqa: BLE001 - whatever it is, the bot is not ready
            logger.error("the readiness checks failed: %s", _where(error))  # noqa: TRY400 - one line that quotes nothing
            readiness = Readiness(checks={"checks": "failed"})
        status = HTTPStatus.OK if readiness.is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return _respond(
            environ, start_response, status, json.dumps({**readiness.checks, **readiness.told}), content_type=JSON
        )

    def _checked(self, environ: WSGIEnvironment) -> WSGIEnvironment:
        """The request as Bolt gets it, once Slack has signed it just now and it can be read. The body comes last.

        Raises _RefusedError, NothingForUsError.
        """
        length = _content_length(environ)
        content_type = _content_type(environ)
        timestamp = self._timestamp(environ)
        signature = environ.get("HTTP_X_SLACK_SIGNATURE", "")
        if not _SIGNATURE.fullmatch(signature):
            raise _RefusedError(HTTPStatus.UNAUTHORIZED, "no valid signature")
        body = _read(environ, length)
        if not hmac.compare_digest(self._signature(timestamp, body), signature):
            raise _RefusedError(HTTPStatus.UNAUTHORIZED, "no valid signature")
        try:
            readable = rewritten(body, content_type)
        except UnreadableError as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from None
        return {
            **environ,
            "wsgi.input": BytesIO(readable),
            "CONTENT_LENGTH": str(len(readable)),
            "HTTP_X_SLACK_SIGNATURE": self._signature(timestamp, readable),
        }

    def _signature(self, timestamp: str, body: bytes) -> str:
        return "v0=" + hmac.new(self._key, f"v0:{timestamp}:".encode() + body, hashlib.sha256).hexdigest()

    def _timestamp(self, environ: WSGIEnvironment) -> str:
        timestamp: str = environ.get("HTTP_X_SLACK_REQUEST_TIMESTAMP", "")
        if not _NUMBER.fullmatch(timestamp):
            raise _RefusedError(HTTPStatus.UNAUTHORIZED, "no valid timestamp")
        if abs(self._now() - int(timestamp)) > MAX_AGE_S:
            raise _RefusedError(HTTPStatus.UNAUTHORIZED, "the timestamp is too far from now")
        return timestamp


def _pass_on(slack: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The inner app's answer, whole before its first byte leaves: the head of a failed one would pass for an ack."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    written: list[bytes] = []

    def start(status: str, headers: list[tuple[str, str]], _exc_info: Any = None, /) -> Callable[[bytes], object]:
        started.append((status, headers))
        return written.append

    try:
        chunks = slack(environ, start)
        try:
            written += chunks
        finally:
            getattr(chunks, "close", lambda: None)()  # PEP 3333 asks for it
        status, headers = started[-1]
    except Exception as error:  # noqa: BLE001 - whatever it is, Slack gets a plain 500
        logger.error("the Slack app failed: %s", _where(error))  # noqa: TRY400 - one line that quotes nothing
        return _respond(environ, start_response, HTTPStatus.INTERNAL_SERVER_ERROR, "something went wrong")
    start_response(status, headers)
    return written


def _allow(environ: WSGIEnvironment, *methods: str) -> None:
    if environ.get("REQUEST_METHOD") not in methods:
        raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed", allow=", ".join(methods))


def _content_length(environ: WSGIEnvironment) -> int:
    length = environ.get("CONTENT_LENGTH") or ""
    if not length or "HTTP_TRANSFER_ENCODING" in environ:
        raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "a content length is required")
    if not _NUMBER.fullmatch(length):
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "no valid content length")
    if int(length) > MAX_BODY_BYTES:
        raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large")
    return int(length)


def _content_type(environ: WSGIEnvironment) -> str:
    content_type: str = (environ.get("CONTENT_TYPE") or "").partition(";")[0].strip().lower()
    if content_type not in {FORM, JSON}:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "the content type is neither a form nor JSON")
    return content_type


def _read(environ: WSGIEnvironment, length: int) -> bytes:
    try:
        body: bytes = environ["wsgi.input"].read(length)
    except OSError:
        body = b""
    if len(body) != length:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "the body is shorter than announced")
    return body


def _respond(  # noqa: PLR0913 - an answer has these parts
    environ: WSGIEnvironment,
    start_response: StartResponse,
    status: HTTPStatus,
    text: str,
    *,
    content_type: str = "text/plain; charset=utf-8",
    allow: str | None = None,
) -> list[bytes]:
    body = f"{text}\n".encode()
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    if allow:
        headers.append(("Allow", allow))
    start_response(f"{status.value} {status.phrase}", headers)
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


def _where(error: Exception) -> str:
    """What broke and where, without the message: that could quote the request."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {frame.name}, line {frame.lineno}"
