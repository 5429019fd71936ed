"""Engines that speak https (BEAT-17): encrypted always, verified when there is a CA."""

import ssl
from pathlib import Path

import pytest
import trustme
from tests.unit.gateway.rig import Rig

from matrixinfer.gateway.wire.pool import upstream_tls

OURS, OTHERS = trustme.CA(), trustme.CA()


@pytest.mark.parametrize(("authority", "status"), [(OURS, 200), (OTHERS, 503), (None, 200)])
async def test_an_https_engine_is_asked_over_tls(
    rig: Rig, tmp_path: Path, authority: trustme.CA | None, status: int
) -> None:
    """A pod has no name that a certificate could hold: who signed it is what counts."""
    rig.engine_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    OURS.issue_cert("some.name.of.the.engine").configure_cert(rig.engine_tls)
    trusted = tmp_path / "ca.pem"
    if authority is not None:
        authority.cert_pem.write_to_path(str(trusted))
    rig.upstream_tls = upstream_tls(str(trusted) if authority is not None else None)
    engine = await rig.engine()
    await rig.start()
    answer = await rig.ask()
    assert answer.status == status
    assert len(engine.asked) == (status == 200)
    if status != 200:
        assert (answer.error["code"], answer.headers[b"retry-after"]) == ("connect", b"1")


async def test_plain_http_is_never_spoken_to_an_https_engine(rig: Rig) -> None:
    engine = await rig.engine()
    rig.engine_tls = ssl.create_default_context()
    await rig.start()
    assert (await rig.ask()).status == 503
    assert engine.asked == []
