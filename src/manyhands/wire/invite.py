"""An invite: the one line that a person pastes, and everything a node needs to join.

::

    mh://TOKEN@host:port        TOKEN = base64url(version 1 | secret 16 | pin 16 | check 3), 48 characters

The secret is a key (see `certificates`), the pin names the coordinator's key, the address may be wrong
without harm. No character of the line means anything to a shell: an IPv6 host stands without brackets,
since the port is always there and the last colon comes before it. This module knows no file and no
network.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field, replace

from manyhands.errors import UsageError
from manyhands.wire.address import check_host, check_port, parse_address

_SCHEME = "mh://"
_VERSION = 1
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,}={0,2}(?=@)|(?<=mh://)[A-Za-z0-9_-]{16,}")
_TOKEN_CHARACTERS = 48


@dataclass(frozen=True, slots=True)
class Invite:
    """Secret and pin (16 bytes each) with the address to dial.

    `str()` is the whole line, for printing it to the person who asked; `repr()` and `masked` hide the
    secret and are for everything else.
    """

    secret: bytes = field(repr=False)
    pin: bytes = field(repr=False)
    host: str
    port: int

    def __post_init__(self) -> None:
        """Refuse what could not be written as a line."""
        if len(self.secret) != 16 or len(self.pin) != 16:
            raise UsageError("an invite holds a secret and a pin of 16 bytes each")
        check_host(self.host)
        check_port(self.port)

    @classmethod
    def parse(cls, text: str) -> Invite:
        """Read a pasted line. Raises `UsageError` that says how it is damaged, without repeating it."""
        line = text.strip()
        if not line.startswith(_SCHEME):
            raise UsageError("an invite starts with mh://: paste the whole line")
        if re.search(r"\s", line):
            raise UsageError("the invite has a space or a line break in it: paste it as one line")
        token, at, address = line.removeprefix(_SCHEME).partition("@")
        secret, pin = _decode(token)
        if not at or not address:
            raise UsageError("the invite has no address after its token: paste the whole line")
        host, port = parse_address(address)
        return cls(secret, pin, host, port)

    def with_address(self, host: str, port: int) -> Invite:
        """The same secret and pin at another address: NAT, a tunnel, a renamed machine."""
        return replace(self, host=host, port=port)

    @property
    def masked(self) -> str:
        """The line with its token hidden; fit for logs and messages."""
        return f"{_SCHEME}****@{self.host}:{self.port}"

    def __str__(self) -> str:
        """The line to paste, secret included."""
        return f"{_SCHEME}{_encode(self.secret, self.pin)}@{self.host}:{self.port}"

    def __repr__(self) -> str:
        """Never the secret: this is what logs and tracebacks show."""
        return f"Invite({self.masked!r})"


def mask(text: str) -> str:
    """`text` with every invite token in it hidden, whole or cut short."""
    return _TOKEN.sub("****", text)


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:3]


def _encode(secret: bytes, pin: bytes) -> str:
    body = bytes([_VERSION]) + secret + pin
    return base64.urlsafe_b64encode(body + _check(body)).decode()


def _decode(token: str) -> tuple[bytes, bytes]:
    if len(token) != _TOKEN_CHARACTERS:
        raise UsageError(
            f"the invite's token has {len(token)} characters of {_TOKEN_CHARACTERS}: it was cut short or "
            f"joined with something else, paste the whole line"
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]+", token):
        raise UsageError("the invite's token has a character that no invite has: paste the line again")
    raw = base64.urlsafe_b64decode(token)
    body, check = raw[:-3], raw[-3:]
    if not hmac.compare_digest(_check(body), check):
        raise UsageError("the invite is damaged, a character of its token was changed: paste the line again")
    if body[0] != _VERSION:
        raise UsageError(
            f"the invite is of format {body[0]} and this release reads format {_VERSION}: "
            f"{'upgrade manyhands here' if body[0] > _VERSION else 'ask for a line from a newer release'}"
        )
    return body[1:17], body[17:33]
