"""Who gets in and who does not, over real TLS; every refusal reaches the dialler as one sentence."""

from __future__ import annotations

import dataclasses
import random
import secrets
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from manyhands.errors import Mismatch, Refused, Unreachable, UsageError
from manyhands.wire import Connection, Invite, NodeKey, Role, certificates, delays, dial, dialer, tls
from manyhands.wire.certificates import COORDINATOR_NAME


def test_a_good_invite_joins_with_its_role_and_the_id_of_the_nodes_key(coordinator: Any) -> None:
    key = NodeKey.temporary()
    with dial(coordinator.invite(role="loader"), key=key) as connection:
        stream = connection.stream()
        stream.send(b"hello")
        assert stream.receive() == b"hello"
        assert connection.ask(b"abc") == b"cba"
    assert coordinator.streamed[0].key_id == key.key_id == connection.key_id
    assert coordinator.streamed[0].role is Role.LOADER
    assert coordinator.asked[0][0] == coordinator.streamed[0]


def test_a_new_invite_works_without_a_restart(coordinator: Any) -> None:
    dial(coordinator.invite()).close()
    dial(coordinator.invite()).close()


def refused(invite: Invite, key: NodeKey | None = None) -> str:
    with pytest.raises(Refused) as caught:
        dial(invite, key=key)
    message = str(caught.value)
    assert str(invite) not in message
    assert "\n" not in message
    return message


def test_a_wrong_secret_is_refused(coordinator: Any) -> None:
    invite = dataclasses.replace(coordinator.invite(), secret=secrets.token_bytes(16))
    assert "not one of this run's" in refused(invite)
    assert not coordinator.streamed


def test_an_invite_of_another_run_is_refused(coordinator: Any, make_coordinator: Any) -> None:
    other = make_coordinator().invite()
    invite = dataclasses.replace(other, pin=coordinator.invite().pin, port=coordinator.port)
    assert "not one of this run's" in refused(invite)
    assert not coordinator.streamed


def test_a_wrong_pin_is_refused_before_anything_is_sent(coordinator: Any, make_coordinator: Any) -> None:
    impostor = make_coordinator()
    invite = coordinator.invite().with_address("127.0.0.1", impostor.port)
    assert "is not the one that made the invite" in refused(invite)
    assert not impostor.streamed
    assert not impostor.asked


def test_an_expired_invite_is_refused(coordinator: Any) -> None:
    invite = coordinator.invite(hours=1.0)
    coordinator.clock.sleep(2 * 3600.0)
    assert "expired 1.0 hours ago" in refused(invite)


def test_a_revoked_invite_is_refused_even_for_a_node_that_was_in(coordinator: Any) -> None:
    invite, key = coordinator.invite(), NodeKey.temporary()
    dial(invite, key=key).close()
    coordinator.gate.revoke(coordinator.gate.invites()[-1].invite_id)
    assert "revoked" in refused(invite, key)
    assert "revoked" in refused(invite)


def test_a_used_up_invite_is_refused_but_its_node_comes_back_even_after_it_expired(coordinator: Any) -> None:
    invite, key = coordinator.invite(uses=1), NodeKey.temporary()
    dial(invite, key=key).close()
    assert "used up" in refused(invite)
    coordinator.clock.sleep(30 * 3600.0)
    dial(invite, key=key).close()


def test_a_banned_key_is_refused_with_every_invite(coordinator: Any) -> None:
    key = NodeKey.temporary()
    coordinator.gate.ban(key.key_id)
    assert "removed from the run" in refused(coordinator.invite(), key)
    dial(coordinator.invite()).close()


def test_a_restart_in_the_same_folder_keeps_the_pin_the_invites_and_the_nodes(make_coordinator: Any) -> None:
    first = make_coordinator("same")
    invite, key = first.invite(uses=1), NodeKey.temporary()
    dial(invite, key=key).close()
    first.stop()
    second = make_coordinator("same", port=first.port)
    dial(invite, key=key).close()
    assert "used up" in refused(invite)
    assert second.invite().pin == invite.pin


def test_a_node_is_back_within_five_seconds_of_its_coordinators_return(make_coordinator: Any) -> None:
    """The listener closes first, so its port is in TIME_WAIT when the next one takes it."""
    first = make_coordinator("same")
    invite, key = first.invite(), NodeKey.temporary()
    stream = dial(invite, key=key).stream()
    stream.send(b"x")
    assert stream.receive() == b"x"
    first.stop()
    with pytest.raises(Unreachable):
        stream.receive()
    for _ in range(3):
        with pytest.raises(Unreachable):
            dial(invite, key=key)
    make_coordinator("same", port=first.port)
    waits, start = delays(random.Random(1)), time.monotonic()
    while not (connection := try_to_dial(invite, key)):
        assert not threading.Event().wait(next(waits))
    assert time.monotonic() - start < 5.0
    connection.close()


def try_to_dial(invite: Invite, key: NodeKey) -> Connection | None:
    try:
        return dial(invite, key=key)
    except Unreachable:
        return None


def test_a_dead_port_is_unreachable_at_once(coordinator: Any) -> None:
    invite = coordinator.invite()
    coordinator.stop()
    with pytest.raises(Unreachable, match="cannot reach"):
        dial(invite, timeout_seconds=30.0)


def test_an_address_that_swallows_everything_is_unreachable_in_time(coordinator: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        invite = coordinator.invite().with_address("127.0.0.1", silent.getsockname()[1])
        with pytest.raises(Unreachable, match=r"did not answer within 0\.3 s"):
            dial(invite, timeout_seconds=0.3)


def test_another_protocol_version_is_a_mismatch_that_says_who_upgrades(
    coordinator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    invite = coordinator.invite(uses=1)
    for version, where in ((0, "on this machine"), (7, "on the coordinator")):
        monkeypatch.setattr(dialer, "PROTOCOL", version)
        with pytest.raises(Mismatch, match=f"protocol 1 and this node protocol {version}: .* {where}"):
            dial(invite)
    monkeypatch.undo()
    dial(invite).close()  # the refusals above took no use


def test_secure_needs_an_invite() -> None:
    with pytest.raises(UsageError, match="needs an invite"):
        dial(("127.0.0.1", 5555))


# What follows forges certificates by hand, as an attacker who has read this project would.


def call_with(coordinator: Any, key: ec.EllipticCurvePrivateKey, chain: bytes) -> grpc.RpcError:
    """Say hello with a chosen chain, past our own dialler; returns gRPC's error."""
    identity = coordinator.gate.identity
    credentials = grpc.ssl_channel_credentials(identity.certificate_pem, certificates.key_to_pem(key), chain)
    options = [("grpc.ssl_target_name_override", COORDINATOR_NAME), ("grpc.use_local_subchannel_pool", 1)]
    dialled = grpc.secure_channel(f"127.0.0.1:{coordinator.port}", credentials, options)
    with dialled as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/manyhands/hello")(b"", timeout=5, metadata=(("mh-version", "1"),))
    return caught.value


def signed(subject: str, public: Any, issuer: str, signer: Any, *, is_root: bool = False) -> x509.Certificate:
    return certificates._sign(subject, public, issuer, signer, is_root=is_root)


def test_a_forged_issuer_name_is_dropped(coordinator: Any) -> None:
    real = certificates.invite_key(coordinator.invite().secret)
    forger, key = certificates.new_key(), certificates.new_key()
    leaf = signed("node", key.public_key(), certificates.invite_id(real.public_key()), forger)
    assert call_with(coordinator, key, certificates.to_pem(leaf)).code() is grpc.StatusCode.UNAVAILABLE


def test_an_invite_cannot_act_as_an_intermediate_that_poses_as_another(coordinator: Any) -> None:
    """TLS of gRPC accepts a chain node <- fake "owner invite" <- real node invite. The table does not."""
    node_invite = certificates.invite_key(coordinator.invite().secret)
    owner_name = certificates.invite_id(
        certificates.invite_key(coordinator.invite(role="owner").secret).public_key()
    )
    middle, key = certificates.new_key(), certificates.new_key()
    fake = signed(
        owner_name,
        middle.public_key(),
        certificates.invite_id(node_invite.public_key()),
        node_invite,
        is_root=True,
    )
    leaf = signed("node", key.public_key(), owner_name, middle)
    error = call_with(coordinator, key, certificates.to_pem(leaf) + certificates.to_pem(fake))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED  # TLS let it through
    assert error.details() == "this node's certificate was not signed by the invite that it names"
    assert not [row for row in coordinator.gate.invites() if row.uses_left != 64]


def test_a_node_cannot_sign_another_node_in(coordinator: Any) -> None:
    """A leaf of a used-up invite as the issuer of a second leaf: a known way around a count of uses."""
    invite, first, second = coordinator.invite(uses=1), certificates.new_key(), certificates.new_key()
    signer = certificates.invite_key(invite.secret)
    own = certificates.node_leaf(first.public_key(), signer)
    leaf = signed("node", second.public_key(), "node", first)
    error = call_with(coordinator, second, certificates.to_pem(leaf) + certificates.to_pem(own))
    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED)
    assert coordinator.gate.invites()[-1].uses_left == 1


def test_no_client_certificate_gets_nothing(coordinator: Any) -> None:
    credentials = grpc.ssl_channel_credentials(coordinator.gate.identity.certificate_pem)
    options = [("grpc.ssl_target_name_override", COORDINATOR_NAME)]
    dialled = grpc.secure_channel(f"127.0.0.1:{coordinator.port}", credentials, options)
    with dialled as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/manyhands/hello")(b"", timeout=5, metadata=(("mh-version", "1"),))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_plaintext_client_gets_nothing(coordinator: Any) -> None:
    with pytest.raises(Unreachable):
        dial(("127.0.0.1", coordinator.port), secure=False, timeout_seconds=5.0)
    assert not coordinator.streamed


def test_a_secure_client_of_a_plaintext_coordinator_is_told(coordinator: Any, make_coordinator: Any) -> None:
    plain = make_coordinator(secure=False)
    with pytest.raises(Unreachable, match=r"does not speak TLS 1\.3|cannot reach"):
        dial(coordinator.invite().with_address("127.0.0.1", plain.port))


def test_tls_1_2_is_not_spoken(coordinator: Any) -> None:
    signer = certificates.invite_key(coordinator.invite().secret)
    key = certificates.new_key()
    leaf = certificates.node_leaf(key.public_key(), signer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    pair = coordinator.gate.folder / "pair.pem"
    pair.write_bytes(certificates.key_to_pem(key) + certificates.to_pem(leaf))
    context.load_cert_chain(pair)
    plain = socket.create_connection(("127.0.0.1", coordinator.port), 5)
    with plain, pytest.raises(OSError), context.wrap_socket(plain) as secure:
        secure.recv(1)


def test_the_guard_refuses_tls_1_2_even_if_the_process_negotiates_it() -> None:
    """The suites that forbid TLS 1.2 are an environment variable that somebody else may have set."""
    from manyhands.wire.guard import read_certificate

    with pytest.raises(Refused, match=r"TLS 1\.3 is required"):
        read_certificate({"ssl_tls_version": [b"TLSv1.2"], "x509_pem_cert": [b"x"]})
    with pytest.raises(Refused, match="certificate is required"):
        read_certificate({"ssl_tls_version": [b"TLSv1.3"]})


def test_the_file_with_the_key_that_python_needs_is_gone_afterwards(
    coordinator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    invite = dataclasses.replace(coordinator.invite(), secret=secrets.token_bytes(16))
    before = sorted(tmp_path.iterdir())
    route = dialer.route_to(invite.host, invite.port)
    assert not tls.is_accepted(route.connect, invite, NodeKey.temporary(), 5.0)
    assert tls.is_accepted(route.connect, coordinator.invite(), NodeKey.temporary(), 5.0)
    assert sorted(tmp_path.iterdir()) == before
