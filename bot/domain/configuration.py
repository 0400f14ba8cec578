"""What a bot was set to when it started, and what is different from the start before."""

import hashlib
from collections.abc import Mapping
from typing import Final

from bot.domain.audit import Json

MAX_VALUE_CHARS: Final = 2_000
"""Of one setting; four hundred approvers."""

KEY_ID_DIGITS: Final = 12
"""48 bits: enough to tell a key from another one, and of no use for finding a random one."""


def key_id(setting: str, secret: str) -> str:
    """By which a secret is known: how a SHA-256 over the setting's name and the secret begins; empty where unset.

    Only for secrets that were made at random, since any other could be guessed and compared.
    """
    if not secret:
        return ""
    return "key id " + hashlib.sha256(f"{setting}\n{secret}".encode()).hexdigest()[:KEY_ID_DIGITS]


def bounded(value: str) -> str:
    """The value; of a longer one its beginning, with its length and SHA-256."""
    if len(value) <= MAX_VALUE_CHARS:
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()
    return f"{value[:MAX_VALUE_CHARS]}… ({len(value)} characters, SHA-256 {digest})"


def changed_settings(before: Mapping[str, object] | None, now: Mapping[str, str]) -> dict[str, Json]:
    """Each setting that is not as it was: its value `before` and `after`, None where a version did not know it.

    Empty where there was no start before.
    """
    if before is None:
        return {}
    told = {name: value if isinstance(value, str) else None for name, value in before.items()}
    return {
        name: {"before": told.get(name), "after": now.get(name)}
        for name in sorted({*told, *now})
        if told.get(name) != now.get(name)
    }
