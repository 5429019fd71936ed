"""From start to exit code, on real sockets and with real signals sent to this process."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from matrixinfer.service import metrics, probe
from matrixinfer.service.exits import Exit, ExitCode
from matrixinfer.service.lifecycle import Lifecycle, serve
from matrixinfer.service.settings import ServiceSettings

Main = Callable[[Lifecycle], Awaitable[None]]


def settings(**changes: object) -> ServiceSettings:
    values = {"admin_host": "127.0.0.1", "admin_port": 0, "drain_seconds": 5.0} | changes
    return ServiceSettings.model_validate(values)


async def served(
    main: Main, *, registry: CollectorRegistry | None = None, admin_after_seconds: float = 0.0, **changes: object
) -> int:
    lifecycle = Lifecycle("relay", settings(**changes))
    page = partial(metrics.render, registry or CollectorRegistry())
    async with asyncio.timeout(5):
        return await serve(lifecycle, main, metrics_page=page, admin_after_seconds=admin_after_seconds)


async def get(lifecycle: Lifecycle, path: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{lifecycle.admin_port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


async def test_a_main_that_returns_ends_the_process_well() -> None:
    async def main(_lifecycle: Lifecycle) -> None:
        return

    assert await served(main) == ExitCode.OK


async def test_a_crash_is_exit_code_1() -> None:
    async def main(_lifecycle: Lifecycle) -> None:
        raise ValueError("boom")

    assert await served(main) == ExitCode.CRASHED


async def test_an_exit_names_its_code_even_from_inside_a_task_group() -> None:
    async def lost() -> NoReturn:
        raise Exit(ExitCode.LEASE_LOST, "another replica leads")

    async def main(_lifecycle: Lifecycle) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lost())
            tasks.create_task(asyncio.sleep(60))

    assert await served(main) == ExitCode.LEASE_LOST


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_the_service_and_it_finishes_its_work(number: signal.Signals) -> None:
    finished: list[str] = []

    async def main(lifecycle: Lifecycle) -> None:
        os.kill(os.getpid(), number)
        await lifecycle.stopping.wait()
        await asyncio.sleep(0)
        finished.append("drained")

    assert await served(main) == ExitCode.OK
    assert finished == ["drained"]


async def test_readiness_turns_red_at_the_signal_while_liveness_stays_green() -> None:
    seen: dict[str, tuple[int, str]] = {}

    async def main(lifecycle: Lifecycle) -> None:
        lifecycle.ready_when("caches", lambda: True)
        seen["before"] = await get(lifecycle, "/readyz")
        os.kill(os.getpid(), signal.SIGTERM)
        await lifecycle.stopping.wait()
        seen["after"] = await get(lifecycle, "/readyz")
        seen["live"] = await get(lifecycle, "/livez")

    assert await served(main) == ExitCode.OK
    assert seen["before"] == (200, "[+] caches\n")
    assert seen["after"] == (503, "[+] caches\n[-] stopping: SIGTERM\n")
    assert seen["live"][0] == 200


async def test_work_that_ignores_the_signal_is_cut_after_the_drain_time() -> None:
    cancelled: list[bool] = []

    async def main(lifecycle: Lifecycle) -> None:
        lifecycle.stop("test")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    assert await served(main, drain_seconds=0.01) == ExitCode.DRAIN_TIMEOUT
    assert cancelled == [True]


async def test_a_second_signal_cuts_the_drain_short() -> None:
    async def main(lifecycle: Lifecycle) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await lifecycle.stopping.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    assert await served(main, drain_seconds=60.0) == ExitCode.DRAIN_TIMEOUT


async def test_without_any_check_the_service_is_not_ready() -> None:
    seen: list[int] = []

    async def main(lifecycle: Lifecycle) -> None:
        seen.append((await get(lifecycle, "/readyz"))[0])

    await served(main)
    assert seen == [503]


async def test_the_admin_port_serves_metrics_and_debug_pages() -> None:
    async def lookup(asked: str) -> object | None:
        return {"sky/day": {"is": "blue"}}.get(asked)

    registry = CollectorRegistry()
    Counter("things", "x", registry=registry).inc()
    seen: dict[str, tuple[int, str]] = {}

    async def main(lifecycle: Lifecycle) -> None:
        lifecycle.debug_page("routes", lambda: {"quickstart": ["a", "b"]})
        lifecycle.debug_lookup("colour", lookup)
        pages = ("/metrics", "/debug", "/debug/routes", "/debug/tasks", "/debug/settings", "/debug/nothing")
        for path in (*pages, "/debug/colour/sky/day", "/debug/colour/void", "/debug/nothing/at-all"):
            seen[path] = await get(lifecycle, path)

    await served(main, registry=registry)
    assert "things_total 1.0" in seen["/metrics"][1]
    assert "/debug/routes" in json.loads(seen["/debug"][1])["pages"]
    assert json.loads(seen["/debug/routes"][1]) == {"quickstart": ["a", "b"]}
    assert any("main" in str(task["waits_at"]) for task in json.loads(seen["/debug/tasks"][1]))
    assert json.loads(seen["/debug/settings"][1])["drain_seconds"] == 5.0
    assert seen["/debug/nothing"][0] == 404
    assert json.loads(seen["/debug/colour/sky/day"][1]) == {"is": "blue"}
    assert seen["/debug/colour/void"][0] == seen["/debug/nothing/at-all"][0] == 404


async def test_a_taken_admin_port_is_a_configuration_error() -> None:
    async def main(_lifecycle: Lifecycle) -> None:
        raise AssertionError("must not run")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert await served(main, admin_port=taken.getsockname()[1]) == ExitCode.MISCONFIGURED


async def test_a_service_may_live_without_its_admin_port() -> None:
    ran: list[int | None] = []

    async def main(lifecycle: Lifecycle) -> None:
        ran.append(lifecycle.admin_port)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        lifecycle = Lifecycle("relay", settings(admin_port=taken.getsockname()[1]))
        page = partial(metrics.render, CollectorRegistry())
        assert await serve(lifecycle, main, metrics_page=page, admin_required=False) == ExitCode.OK
    assert ran == [None]


async def test_periodic_work_stops_waiting_at_the_signal() -> None:
    answers: list[bool] = []

    async def main(lifecycle: Lifecycle) -> None:
        answers.append(await lifecycle.stops_within(0.001))
        lifecycle.stop("test")
        answers.append(await lifecycle.stops_within(60))

    await served(main)
    assert answers == [False, True]


async def test_the_probe_sees_what_the_kubelet_sees() -> None:
    seen: list[bool] = []

    async def main(lifecycle: Lifecycle) -> None:
        assert lifecycle.admin_port is not None
        ask = partial(asyncio.to_thread, probe.ready, "127.0.0.1", lifecycle.admin_port, "/readyz", 2.0)
        seen.append((await ask())[0])
        lifecycle.ready_when("caches", lambda: True)
        seen.append((await ask())[0])

    await served(main)
    assert seen == [False, True]


async def test_a_process_that_ends_sooner_never_opens_a_late_admin_port() -> None:
    async def main(lifecycle: Lifecycle) -> None:
        assert lifecycle.admin_port is None

    assert await served(main, admin_after_seconds=60) == ExitCode.OK


async def test_a_late_admin_port_opens_beside_the_work() -> None:
    async def main(lifecycle: Lifecycle) -> None:
        while lifecycle.admin_port is None:
            await asyncio.sleep(0.001)
        assert (await get(lifecycle, "/livez"))[0] == 200

    assert await served(main, admin_after_seconds=0.001) == ExitCode.OK


async def test_an_exit_beside_a_late_admin_port_keeps_its_code() -> None:
    async def main(_lifecycle: Lifecycle) -> None:
        raise Exit(ExitCode.LEASE_LOST, "another replica leads")

    assert await served(main, admin_after_seconds=60) == ExitCode.LEASE_LOST


async def test_a_late_admin_port_that_is_needed_and_taken_ends_the_process() -> None:
    async def main(lifecycle: Lifecycle) -> None:
        await lifecycle.stopping.wait()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        code = await served(main, admin_after_seconds=0.001, admin_port=taken.getsockname()[1])
    assert code == ExitCode.MISCONFIGURED
