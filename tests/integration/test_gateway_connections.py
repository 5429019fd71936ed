"""Ten thousand clients that do nothing, on one process (BEAT-02)."""

import resource
import sys
import time

import pytest
from tests.bench.gateway.inlets import INLETS, Subject

CONNECTIONS = 10_000
# Descriptors for anything else.
SPARE = 200
# What a connection may cost when it was used once: about twice of what was measured.
BYTES = {"httptools": 6 * 1024, "aiohttp": 24 * 1024}


@pytest.fixture(scope="module", autouse=True)
def _descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CONNECTIONS + SPARE:
        pytest.skip(f"a process may open {hard} files here; this needs {CONNECTIONS + SPARE} (ulimit -Hn)")
    if soft < CONNECTIONS + SPARE:
        resource.setrlimit(resource.RLIMIT_NOFILE, (CONNECTIONS + SPARE, hard))


@pytest.mark.parametrize("kind", INLETS)
async def test_ten_thousand_idle_connections_cost_little_and_are_in_nobodys_way(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = Subject(kind)
    clients = []
    try:
        # The first ones pay for what all share.
        clients = [await subject.asked_once() for _ in range(50)]
        before, cpu = subject.resident_bytes(), subject.cpu_seconds()
        clients += [await subject.asked_once() for _ in range(CONNECTIONS)]
        each = (subject.resident_bytes() - before) / CONNECTIONS
        opened_for = subject.cpu_seconds() - cpu
        began = time.monotonic()
        clients.append(await subject.asked_once())
        waited = time.monotonic() - began
        with capsys.disabled():
            sys.stdout.write(
                f"\n{kind}: {CONNECTIONS} idle connections, {each / 1024:.1f} KiB each; {opened_for:.1f} s of processor"
                f" time to open and use them; one more answered in {waited * 1e3:.1f} ms\n"
            )
        assert each < BYTES[kind]
        assert waited < 2
    finally:
        for client in clients:
            client.close()
        subject.stop()
