"""Our client's cancel, one after the other, against what else could send it; each is a process of its own."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import trustme
from cancel_server import CancelServer, Told, cancel_server
from stage import BENCH, Stage
from table import NOT_MEASURED, NotDoneError, Row, at_least, ms, times

OURS: Final = "ours"
BY_HAND: Final = "requests"
RIVALS: Final = ("upbit-sdk", "pyupbit", "ccxt")
ENVIRONMENTS: Final = BENCH.parent / ".tools" / "rivals"
UV: Final = BENCH.parent / ".tools" / "bin" / "uv"
INSTALL_WITHIN_S: Final = 180.0

Took = dict[str, list[float]]


def rows(here: Stage) -> Iterator[Row]:
    pythons = {OURS: sys.executable, BY_HAND: sys.executable}
    missing: dict[str, str] = {}
    for name in RIVALS:
        try:
            pythons[name] = _python_with(name, here)
        except (OSError, subprocess.SubprocessError) as error:
            missing[name] = f"{NOT_MEASURED}: {type(error).__name__}"
    took = _measured(here, pythons)
    yield _row("plain", took[BY_HAND], took[OURS])
    authority = trustme.CA()
    ca_file, certificate = here.folder / "ca.pem", here.folder / "server.pem"
    authority.cert_pem.write_to_path(ca_file)
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    secured = _measured(here, {name: pythons[name] for name in (OURS, BY_HAND)}, ca_file, certificate)
    yield _row("TLS", secured[BY_HAND], secured[OURS])
    for name in RIVALS:
        if name in missing:
            yield Row(name=f"the same, plain, against {name}", must="≥ 1 x", aim="> 1 x", met=missing[name])
        else:
            yield _row_of_rival(name, took[name], took[OURS])


def _row(kind: str, by_hand: list[float], ours: list[float]) -> Row:
    ratio = median(by_hand) / median(ours)
    return Row(
        name=f"a cancel by upbit/client.py, {kind}, against requests and PyJWT by hand",
        baseline=ms(median(by_hand)),
        figure=ms(median(ours)),
        ratio=times(ratio),
        must="≥ 0.95 x",
        aim="≥ 1.2 x",
        met=at_least(ratio, must=0.95, aim=1.2),
    )


def _row_of_rival(name: str, theirs: list[float], ours: list[float]) -> Row:
    ratio = median(theirs) / median(ours)
    is_reported_only = name == "ccxt"
    return Row(
        name=f"the same, plain, against {name}",
        baseline=ms(median(theirs)),
        figure=ms(median(ours)),
        ratio=times(ratio),
        must="-" if is_reported_only else "≥ 1 x",
        aim="> 1 x",
        met=at_least(ratio, must=0 if is_reported_only else 1, aim=1.0),
    )


def _measured(
    here: Stage, pythons: Mapping[str, str], ca_file: Path | None = None, certificate: Path | None = None
) -> Took:
    """The seconds of each cancel by each client; they take turns. Raises NotDoneError."""
    took: Took = {name: [] for name in pythons}
    with ExitStack() as stack:
        server = stack.enter_context(cancel_server(certificate=certificate))
        url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.port}"
        arguments = [url, *([str(ca_file)] if ca_file else [])]
        clients = {
            name: stack.enter_context(_client([python, str(BENCH / "cancel_client.py"), name, *arguments]))
            for name, python in pythons.items()
        }
        for number in range(here.sizes.some(12, quick=1) + 1):
            for name, client in clients.items():
                seconds = _cancel(client, server, here.sizes.some(50, quick=5))
                if number:  # the first ones open connections
                    took[name] += seconds
    return took


def _cancel(client: "subprocess.Popen[str]", server: CancelServer, count: int) -> list[float]:
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(json.dumps([str(uuid.uuid4()) for _ in range(count)]) + "\n")
    client.stdin.flush()
    line = client.stdout.readline()
    if not line or (told := server.told()) != Told(good=count, bad=0):
        raise NotDoneError(f"{client.args!r}: {told if line else 'ended'}, {count} were asked for")
    return list(json.loads(line))


@contextmanager
def _client(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(BENCH.parent)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _python_with(name: str, here: Stage) -> str:
    """The Python of an environment with this library, made where it is not there. Raises OSError, SubprocessError."""
    wanted, environment = BENCH / "rivals" / f"{name}.txt", ENVIRONMENTS / name
    python, stamp = environment / "bin" / "python", environment / ".done"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        if here.sizes.is_quick:
            raise FileNotFoundError(environment)
        make = [str(UV), "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)]
        fill = [str(UV), "pip", "sync", "--quiet", "--require-hashes", "--python", str(python), str(wanted)]
        for command in (make, fill):
            subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_WITHIN_S)
        stamp.write_text(wanted.read_text())
    return str(python)
