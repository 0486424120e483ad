"""The line that people paste: round trips, and a clear word for each kind of damage."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhands.errors import UsageError
from manyhands.wire import Invite
from manyhands.wire.invite import mask

INVITE = Invite(bytes(range(16)), bytes(range(16, 32)), "host.example.org", 5555)
LINE = str(INVITE)

hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{2,5}){0,2}", fullmatch=True),
)
sixteen = st.binary(min_size=16, max_size=16)


@given(sixteen, sixteen, hosts, st.integers(1, 65535))
def test_every_invite_comes_back_and_means_nothing_to_a_shell(
    secret: bytes, pin: bytes, host: str, port: int
) -> None:
    invite = Invite(secret, pin, host, port)
    assert Invite.parse(f"  {invite}\n") == invite
    assert shlex.split(str(invite)) == [str(invite)]
    assert re.fullmatch(r"mh://[A-Za-z0-9_-]{48}@[A-Za-z0-9.:-]+", str(invite))


def test_the_line_is_this_one_for_ever() -> None:
    assert LINE == "mh://AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fSRF2@host.example.org:5555"
    raw = base64.urlsafe_b64decode(LINE[5:53])
    assert raw[:33] == bytes([1, *range(32)])
    assert raw[33:] == hashlib.sha256(raw[:33]).digest()[:3]


def test_an_ipv6_address_may_also_stand_in_brackets() -> None:
    token = LINE[5:53]
    assert Invite.parse(f"mh://{token}@[::1]:80").host == "::1"
    assert str(Invite.parse(f"mh://{token}@::1:80")) == f"mh://{token}@::1:80"


@given(st.integers(5, 52), st.characters(categories=("Lu", "Ll", "Nd"), max_codepoint=127))
def test_a_changed_character_is_noticed(position: int, character: str) -> None:
    damaged = LINE[:position] + character + LINE[position + 1 :]
    if damaged != LINE:
        with pytest.raises(UsageError, match=r"damaged|format"):
            Invite.parse(damaged)


@given(st.integers(0, len(LINE) - 1))
def test_a_line_cut_short_is_noticed_or_has_another_port(length: int) -> None:
    if LINE[:length].endswith((":5", ":55", ":555")):
        assert Invite.parse(LINE[:length]).host == INVITE.host
        return
    with pytest.raises(UsageError) as caught:
        Invite.parse(LINE[:length])
    assert LINE[5:53] not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "starts with mh://"),
        ("https://example.org", "starts with mh://"),
        (LINE[:30], "25 characters of 48"),
        ("mh://@host:1", "0 characters of 48"),
        (LINE[:20] + " " + LINE[20:], "space or a line break"),
        (LINE[:20] + "\n" + LINE[20:], "space or a line break"),
        (LINE[:52] + "!" + LINE[53:], "character that no invite has"),
        (LINE[:53], "no address"),
        (LINE[:53] + "@", "no address"),
        (LINE[:53] + "@host", "no port"),
        (LINE[:53] + "@:5555", "no host"),
        (LINE[:53] + "@host:", "not a number between"),
        (LINE[:53] + "@host:0", "not a number between"),
        (LINE[:53] + "@host:65536", "not a number between"),
        (LINE[:53] + "@host:x", "not a number between"),
        (LINE[:53] + "@ho$st:1", "neither a name nor an IP"),
    ],
)
def test_each_damage_has_its_sentence(line: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        Invite.parse(line)
    assert LINE[5:53] not in str(caught.value)


@pytest.mark.parametrize(("version", "says"), [(2, "upgrade manyhands here"), (0, "newer release")])
def test_an_invite_of_another_release_says_who_upgrades(version: int, says: str) -> None:
    body = bytes([version]) + bytes(32)
    token = base64.urlsafe_b64encode(body + hashlib.sha256(body).digest()[:3]).decode()
    with pytest.raises(UsageError, match=says):
        Invite.parse(f"mh://{token}@host:1")


def test_repr_and_masked_hide_the_token() -> None:
    token = LINE[5:53]
    assert INVITE.masked == "mh://****@host.example.org:5555"
    for text in (repr(INVITE), INVITE.masked, repr([INVITE]), f"{INVITE!r}"):
        assert token[:16] not in text
        assert repr(INVITE.secret) not in text


def test_mask_hides_tokens_in_any_text() -> None:
    for text in (f"join {LINE} now", f"{LINE[:40]}", f"'{LINE}'", f"a {LINE[5:]} b"):
        assert LINE[5:30] not in mask(text)
    assert mask("nothing to hide at host:5555") == "nothing to hide at host:5555"


def test_parts_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(UsageError):
        Invite(b"short", bytes(16), "host", 1)
    with pytest.raises(UsageError):
        INVITE.with_address("host", 0)
    with pytest.raises(UsageError):
        INVITE.with_address("ho st", 1)
