"""Keys and certificates of a run: who signs what.

::

    invite secret ──HKDF──► invite key ──self-signed──► invite root      (the coordinator keeps only this)
                                │
                                └──signs──► node leaf over the node's own public key
    coordinator key ──self-signed──► coordinator certificate             (found by its pin, never by a name)

A node id and a pin are the first 16 bytes of the SHA-256 of a public key (its SubjectPublicKeyInfo).
Certificates run from 1970 to 9999, because lifetime is a column of the coordinator's table and judged by
its clock, not by the node's. No address ever stands in a certificate. This module knows no file, socket
or table.
"""

from __future__ import annotations

import datetime as dt
import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from manyhands.errors import Refused

COORDINATOR_NAME = "coordinator.manyhands.invalid"
"""The only name in a coordinator's certificate; `.invalid` can never be a real host (RFC 2606)."""

_CURVE = ec.SECP256R1()
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_BEFORE = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_AFTER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(_CURVE)


def invite_key(secret: bytes) -> ec.EllipticCurvePrivateKey:
    """The P-256 key that a 16-byte invite secret stands for (HKDF-SHA256, RFC 5869)."""
    raw = HKDF(hashes.SHA256(), 48, b"manyhands", b"invite key v1").derive(secret)
    # 48 bytes modulo a 32-byte order: the bias is below 2^-128.
    return ec.derive_private_key(int.from_bytes(raw, "big") % (_ORDER - 1) + 1, _CURVE)


def fingerprint(public: ec.EllipticCurvePublicKey) -> bytes:
    """The 16 bytes that name a public key: a pin, or a node id."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(public.public_bytes(serialization.Encoding.DER, form)).digest()[:16]


def key_id(public: ec.EllipticCurvePublicKey) -> str:
    """The id of a node: 32 hexadecimal characters."""
    return fingerprint(public).hex()


def invite_id(public: ec.EllipticCurvePublicKey) -> str:
    """The id of an invite, which is also the name of its root; it tells nothing about the secret."""
    return f"invite-{fingerprint(public).hex()}"


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS 8, not encrypted: the file's mode protects it."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a key of ours back. Raises `ValueError` where it is anything but a P-256 key."""
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != _CURVE.name:
        raise ValueError("not a P-256 key")
    return key


def to_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM text."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def coordinator_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """The self-signed certificate of a coordinator."""
    return _sign(COORDINATOR_NAME, key.public_key(), COORDINATOR_NAME, key, is_root=False)


def invite_root(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """The public half of an invite: a root that may sign leaves and nothing longer."""
    name = invite_id(key.public_key())
    return _sign(name, key.public_key(), name, key, is_root=True)


def node_leaf(public: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """What a node makes for itself: its own public key, signed with the invite's key."""
    return _sign("node", public, invite_id(signer.public_key()), signer, is_root=False)


def read_leaf(pem: bytes) -> tuple[x509.Certificate, str, str]:
    """A peer's certificate with its key id and the name of its issuer; nothing is proven yet.

    Raises `Refused` for anything but a P-256 certificate with one issuer name.
    """
    try:
        leaf = x509.load_pem_x509_certificate(pem)
        public = leaf.public_key()
        names = leaf.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    except (ValueError, UnsupportedAlgorithm):
        raise Refused("the certificate of this node cannot be read: join again with a new line") from None
    if (
        not isinstance(public, ec.EllipticCurvePublicKey)
        or public.curve.name != _CURVE.name
        or len(names) != 1
    ):
        raise Refused("the certificate of this node is not of manyhands' kind: node keys are P-256")
    return leaf, key_id(public), str(names[0].value)


def is_signed_by(leaf: x509.Certificate, root_pem: bytes) -> bool:
    """Whether this very root signed the leaf, in one step.

    TLS proves only that SOME chain exists, and accepts a leaf whose issuer is itself a leaf of another
    invite.
    """
    try:
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(root_pem))
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _sign(
    subject: str,
    public: ec.EllipticCurvePublicKey,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    *,
    is_root: bool,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEFORE)
        .not_valid_after(_AFTER)
        .add_extension(x509.BasicConstraints(is_root, 0 if is_root else None), critical=True)
        .add_extension(_usage(is_root), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if subject == COORDINATOR_NAME:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _usage(is_root: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_root,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_root,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
