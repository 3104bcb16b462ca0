"""Ed25519 signatures (RFC 8032), by PyNaCl: the only place that imports it.

PyNaCl is an extra. Without it everything works but what has to do with a signing key.

Must not know: what is signed. Runs in: any thread.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dpwa.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["is_signed", "make_signing_key", "public_half", "require", "sign"]


def require(what: str) -> None:
    """Make sure that signatures can be made and verified.

    Args:
        what: needs that, for the error's text.

    Raises:
        ConfigError: PyNaCl is not installed.
    """
    _nacl(what)


def make_signing_key() -> bytes:
    """A new signing key, 32 bytes: a secret.

    Raises:
        ConfigError: PyNaCl is not installed.
    """
    return bytes(_nacl("a signing key").SigningKey.generate())


def public_half(signing_key: bytes) -> bytes:
    """What tells whether something was signed with a key, 32 bytes."""
    return bytes(_nacl("a signing key").SigningKey(signing_key).verify_key)


def sign(signing_key: bytes, message: bytes) -> bytes:
    """The signature of a message, 64 bytes."""
    return bytes(_nacl("a signature").SigningKey(signing_key).sign(message).signature)


def is_signed(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a message was signed with the key whose public half this is; False also for what is no key."""
    nacl = _nacl("a signature")
    from nacl.exceptions import CryptoError  # noqa: PLC0415 - an extra

    try:
        nacl.VerifyKey(public).verify(message, signature)
    except CryptoError:
        return False
    return True


def _nacl(what: str) -> ModuleType:
    try:
        import nacl.signing  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            f"{what} needs the package PyNaCl, which is not installed; install it with: "
            f"{sys.executable} -m pip install 'dpwa[invite]'"
        ) from error
    return nacl.signing
