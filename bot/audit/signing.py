"""Ed25519 signatures of checkpoints (RFC 8032), by the `cryptography` library."""

import re
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bot.domain.checkpoint import Checkpoint, SignedCheckpoint

_KEY: Final = re.compile(r"[0-9a-f]{64}", re.ASCII | re.IGNORECASE)


class Signer:
    """Signs with a private key: 64 hex digits, such as `openssl rand -hex 32` makes."""

    def __init__(self, private_key: str) -> None:
        """Raises ValueError, without the key in it, where this is no key."""
        if _KEY.fullmatch(private_key) is None:
            raise ValueError("write 64 hex digits, such as `openssl rand -hex 32` prints")
        self._key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private_key))
        self.public_key: Final = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def __repr__(self) -> str:
        return f"Signer(public_key={self.public_key!r})"

    def signature(self, text: bytes) -> str:
        """128 hex digits."""
        return self._key.sign(text).hex()

    def sign(self, checkpoint: Checkpoint) -> SignedCheckpoint:
        signature = self.signature(checkpoint.signed_text())
        return SignedCheckpoint(checkpoint=checkpoint, key=self.public_key, signature=signature)


def is_signature(signature: str, text: bytes, *, key: str) -> bool:
    """Whether this is the signature of the text by the owner of the public key; both in hex."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), text)
    except (InvalidSignature, ValueError):
        return False
    return True


def is_signed(signed: SignedCheckpoint) -> bool:
    """Whether the signature is by the key beside it. Whose key that is, only the reader can know."""
    return is_signature(signed.signature, signed.checkpoint.signed_text(), key=signed.key)
