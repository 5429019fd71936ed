"""When what is due, and that a client verifies what comes out: all with plain values and a clock in the hand."""

import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from matrixinfer.webhook.certificates import (
    Bundle,
    Due,
    Policy,
    due,
    expires,
    founded,
    issued,
    pruned,
    unusable,
    with_next_authority,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Policy(names=("webhook.ns.svc", "127.0.0.1"))


def days(number: float) -> timedelta:
    return timedelta(days=number)


@pytest.fixture
def bundle() -> Bundle:
    return founded(POLICY, NOW)


def verifies(trust: bytes, certificate: bytes, now: datetime, name: str = "webhook.ns.svc") -> bool:
    store = x509.verification.Store(x509.load_pem_x509_certificates(trust))
    verifier = x509.verification.PolicyBuilder().store(store).time(now).build_server_verifier(x509.DNSName(name))
    try:
        verifier.verify(x509.load_pem_x509_certificate(certificate), [])
    except x509.verification.VerificationError:
        return False
    return True


def test_nothing_there_means_founding_an_authority() -> None:
    assert due(None, POLICY, NOW, published=False) is Due.FOUND


def test_a_founded_bundle_is_whole_verifiable_and_needs_nothing(bundle: Bundle) -> None:
    assert unusable(bundle) == ""
    assert verifies(bundle.trust, bundle.certificate, NOW)
    assert not verifies(bundle.trust, bundle.certificate, NOW, "elsewhere.ns.svc")
    assert due(bundle, POLICY, NOW, published=True) is Due.NOTHING
    assert expires(bundle.certificate) == NOW + days(90)


def test_the_certificate_names_hosts_and_addresses(bundle: Bundle) -> None:
    leaf = x509.load_pem_x509_certificate(bundle.certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["webhook.ns.svc"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


@pytest.mark.parametrize(("age", "step"), [(59, Due.NOTHING), (61, Due.ISSUE), (91, Due.ISSUE)])
def test_a_certificate_is_renewed_in_its_last_third(bundle: Bundle, age: int, step: Due) -> None:
    assert due(bundle, POLICY, NOW + days(age), published=True) is step


def test_renewal_does_not_wait_for_a_configuration_that_does_not_exist(bundle: Bundle) -> None:
    assert due(bundle, POLICY, NOW + days(61), published=False) is Due.ISSUE


def test_another_name_is_another_certificate(bundle: Bundle) -> None:
    renamed = replace(POLICY, names=("other.ns.svc",))
    assert due(bundle, renamed, NOW + days(1), published=True) is Due.ISSUE
    assert due(issued(bundle, renamed, NOW), renamed, NOW, published=True) is Due.NOTHING


def test_the_next_authority_is_trusted_before_it_signs(bundle: Bundle) -> None:
    old = NOW + days(560)
    bundle = issued(bundle, POLICY, old)
    assert due(bundle, POLICY, old, published=True) is Due.NEXT_AUTHORITY
    both = with_next_authority(bundle, POLICY, old)
    assert both.certificate == bundle.certificate
    assert verifies(both.trust, both.certificate, old)
    assert due(both, POLICY, old + timedelta(minutes=9), published=True) is Due.NOTHING
    assert due(both, POLICY, old + timedelta(minutes=11), published=False) is Due.NOTHING
    assert due(both, POLICY, old + timedelta(minutes=11), published=True) is Due.ISSUE
    fresh = issued(both, POLICY, old)
    assert verifies(fresh.trust, fresh.certificate, old)
    assert not verifies(bundle.trust, fresh.certificate, old)
    assert due(fresh, POLICY, old + days(1), published=True) is Due.NOTHING


def test_an_old_authority_stays_trusted_until_it_expires(bundle: Bundle) -> None:
    old, gone = NOW + days(560), NOW + days(731)
    fresh = issued(with_next_authority(bundle, POLICY, old), POLICY, gone)
    assert due(fresh, POLICY, gone, published=True) is Due.PRUNE
    lean = pruned(fresh, gone)
    assert len(x509.load_pem_x509_certificates(lean.trust)) == 1
    assert due(lean, POLICY, gone, published=True) is Due.NOTHING


def test_an_expired_certificate_is_replaced_even_if_the_new_authority_is_not_known_yet(bundle: Bundle) -> None:
    late = NOW + days(600)
    both = with_next_authority(bundle, POLICY, late)
    assert due(both, POLICY, late, published=False) is Due.ISSUE


def test_an_expired_authority_is_founded_anew(bundle: Bundle) -> None:
    assert due(bundle, POLICY, NOW + days(731), published=True) is Due.FOUND


def test_a_life_of_many_years_never_meets_an_unverifiable_certificate() -> None:
    """A pass every three days; what the API server trusts lags one pass behind the Secret."""
    now, bundle = NOW, founded(POLICY, NOW)
    published = bundle.trust
    changes = 0
    for _ in range(365 * 2):
        now += days(3)
        step = due(bundle, POLICY, now, published=published == bundle.trust)
        published = bundle.trust
        if step is not Due.NOTHING:
            changes += 1
            act = {Due.NEXT_AUTHORITY: with_next_authority, Due.ISSUE: issued}.get(step)
            bundle = act(bundle, POLICY, now) if act else pruned(bundle, now)
        assert step is not Due.FOUND
        # A full check now and then keeps this quick; every change is checked at once.
        if step is not Due.NOTHING or now.day < 3:
            assert verifies(published, bundle.certificate, now)
    assert changes < 60


@pytest.mark.parametrize(
    "damage",
    [
        {"key": b"no key"},
        {"certificate": b"no certificate"},
        {"trust": b""},
        {"authority_key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"},
    ],
)
def test_a_damaged_bundle_is_unusable_and_founded_anew(bundle: Bundle, damage: dict[str, bytes]) -> None:
    broken = replace(bundle, **damage)
    assert unusable(broken)
    assert due(broken, POLICY, NOW, published=True) is Due.FOUND


def test_parts_of_two_bundles_do_not_pass_for_one(bundle: Bundle) -> None:
    other = founded(POLICY, NOW)
    assert "key" in unusable(replace(bundle, key=other.key))
    assert "key" in unusable(replace(bundle, authority_key=other.authority_key))
    assert "signed" in unusable(replace(bundle, certificate=other.certificate, key=other.key))


def test_authorities_have_names_of_their_own(bundle: Bundle) -> None:
    both = x509.load_pem_x509_certificates(with_next_authority(bundle, POLICY, NOW).trust)
    assert len({ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value for ca in both}) == 2


def test_openssl_takes_the_bundle(bundle: Bundle) -> None:
    context = ssl.create_default_context(cadata=bundle.trust.decode())
    assert len(context.get_ca_certs()) == 1
