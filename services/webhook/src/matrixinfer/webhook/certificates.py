"""Our own certificate authority and serving certificate: what they must look like and when which is renewed.

`due` is pure and decides; `issued`, `founded` and the like make keys, which is the only chance in here. The order of
a change of authority matters: the new one is trusted first, by both webhook configurations and for a while, and only
then signs; the old one stays trusted until it expires. So at no moment does the API server meet a certificate that it
cannot verify.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "Bundle",
    "Due",
    "Policy",
    "due",
    "expires",
    "founded",
    "issued",
    "pruned",
    "unusable",
    "with_next_authority",
]

_BACKDATE: Final = timedelta(minutes=5)
"""How much earlier than now a certificate begins, for API servers whose clocks are behind."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What certificates must look like."""

    names: Sequence[str]
    """Host names and addresses of the server."""
    authority_life: timedelta = timedelta(days=730)
    certificate_life: timedelta = timedelta(days=90)
    settle: timedelta = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Everything in the Secret, as PEM.

    `trust` holds the authorities to be trusted, the newest first; `authority_key` is the key of that one, empty when
    the certificate was made by someone else.
    """

    trust: bytes
    authority_key: bytes
    certificate: bytes
    key: bytes


class Due(StrEnum):
    """What has to be done to a bundle."""

    NOTHING = "nothing"
    FOUND = "found"
    """Make everything anew: there is nothing that can be used."""
    NEXT_AUTHORITY = "next_authority"
    """Make the next authority and have it trusted beside the present one."""
    ISSUE = "issue"
    """Sign a new serving certificate by the newest authority."""
    PRUNE = "prune"
    """Stop trusting authorities that have expired."""


def due(bundle: Bundle | None, policy: Policy, now: datetime, *, published: bool) -> Due:
    """Say what is due. `published` means that both webhook configurations trust all of `bundle.trust`."""
    if bundle is None or unusable(bundle):
        return Due.FOUND
    newest, *older = x509.load_pem_x509_certificates(bundle.trust)
    leaf = x509.load_pem_x509_certificate(bundle.certificate)
    if newest.not_valid_after_utc <= now:
        return Due.FOUND
    if newest.not_valid_after_utc - now < _authority_margin(policy):
        return Due.NEXT_AUTHORITY
    settled = published and now >= newest.not_valid_before_utc + _BACKDATE + policy.settle
    worn = leaf.not_valid_after_utc - now < policy.certificate_life / 3 or not _names_match(leaf, policy)
    if leaf.not_valid_after_utc <= now or (worn and (settled or not older)):
        return Due.ISSUE
    if settled and not _signed_by(leaf, newest):
        return Due.ISSUE
    if any(authority.not_valid_after_utc <= now for authority in older):
        return Due.PRUNE
    return Due.NOTHING


def _authority_margin(policy: Policy) -> timedelta:
    """The rest of its life in which an authority should no longer sign."""
    return min(2 * policy.certificate_life, policy.authority_life / 2)


def _names_match(leaf: x509.Certificate, policy: Policy) -> bool:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return set(found) == set(_general_names(policy.names))


def _general_names(names: Sequence[str]) -> Sequence[x509.GeneralName]:
    return [_general_name(name) for name in names]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _signed_by(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def unusable(bundle: Bundle) -> str:
    """Say why nothing can be done with a bundle of ours; empty when it is whole."""
    try:
        newest, *older = x509.load_pem_x509_certificates(bundle.trust)
        leaf = x509.load_pem_x509_certificate(bundle.certificate)
        if _public(_private(bundle.authority_key).public_key()) != _public(newest.public_key()):
            return "the authority's key is not that of its certificate"
        if _public(_private(bundle.key).public_key()) != _public(leaf.public_key()):
            return "the server's key is not that of its certificate"
    except (ValueError, TypeError) as exc:
        return f"it cannot be read: {exc}"
    if not any(_signed_by(leaf, authority) for authority in (newest, *older)):
        return "no authority in it has signed the certificate"
    return ""


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("the key is not an elliptic curve key")
    return key


def _public(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("the key is not an elliptic curve key")
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def founded(policy: Policy, now: datetime) -> Bundle:
    """Return a new authority with a certificate signed by it."""
    certificate, key = _authority(policy, now)
    return issued(Bundle(_pem(certificate), _key_pem(key), b"", b""), policy, now)


def with_next_authority(bundle: Bundle, policy: Policy, now: datetime) -> Bundle:
    """Return the bundle with a further authority, which is trusted but has signed nothing yet."""
    certificate, key = _authority(policy, now)
    return replace(bundle, trust=_pem(certificate) + bundle.trust, authority_key=_key_pem(key))


def issued(bundle: Bundle, policy: Policy, now: datetime) -> Bundle:
    """Return the bundle with a new serving certificate, signed by its newest authority."""
    authority = x509.load_pem_x509_certificates(bundle.trust)[0]
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + policy.certificate_life, authority.not_valid_after_utc)
    certificate = (
        _builder(policy.names[0], authority.subject, key.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(policy.names)), critical=False)
        .add_extension(_identifier_of(authority), critical=False)
        .sign(_private(bundle.authority_key), hashes.SHA256())
    )
    return replace(bundle, certificate=_pem(certificate), key=_key_pem(key))


def pruned(bundle: Bundle, now: datetime) -> Bundle:
    """Return the bundle without expired authorities."""
    authorities = x509.load_pem_x509_certificates(bundle.trust)
    return replace(bundle, trust=b"".join(_pem(ca) for ca in authorities if ca.not_valid_after_utc > now))


def expires(certificate: bytes) -> datetime:
    """When a PEM certificate expires."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def _authority(policy: Policy, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    # Each authority has a name of its own: two of one name in a bundle confuse some verifiers.
    name = f"matrixinfer-webhook-{now:%Y%m%dT%H%M%S}-{x509.random_serial_number() % 10**6:06d}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, subject, key.public_key(), now, now + policy.authority_life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    common_name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(until)
    )


def _identifier_of(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    found = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
