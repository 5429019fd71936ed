"""One simulated engine with its HTTP server.

Owns: the server's life, faults, adapters, what an operator asks, the control endpoints under /sim. Refuses: deciding
what is computed (`engine`), and what clients ask (`inference`).
Trap: aiohttp tells a handler about a client that has gone only with `handler_cancellation`; without it the engine
would go on computing for nobody, which is the very thing that callers test against.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

import orjson
from aiohttp import web

from matrixinfer.enginesim.config import SimConfig
from matrixinfer.enginesim.engine import EngineStopped, SimEngine
from matrixinfer.enginesim.faults import Fault, FaultBoard, FaultKind, faults_from
from matrixinfer.enginesim.inference import FAULT, Inference, json_answer, tear_down
from matrixinfer.enginesim.messages import message_error
from matrixinfer.enginesim.metrics import EngineMetrics, Gauges
from matrixinfer.enginesim.wire import BadRequest, error_body

__all__ = ["Simulator"]

_REMEMBERED: Final = 200
_BODY_LIMIT: Final = 64 << 20
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Simulator:
    """One engine with its HTTP server. `async with Simulator(config) as sim:` serves until the block ends.

    `url` is the base URL; port 0 in the config takes a free port. Several can live in one process.
    """

    def __init__(self, config: SimConfig) -> None:
        self.config = config
        self.faults = FaultBoard(faults_from(orjson.loads(config.faults)) if config.faults else ())
        self.metrics = EngineMetrics(config.names[0], block_size=config.block_size, num_blocks=config.num_blocks)
        self.engine = SimEngine(config, self.metrics)
        self.metrics.observe_with(self._gauges)
        self.adapters: dict[str, str] = dict(config.adapters)
        self.requests: deque[dict[str, Any]] = deque(maxlen=_REMEMBERED)
        self.inference = Inference(config, self.engine, self.adapters, self.requests)
        self.url = ""
        self._created = int(time.time())
        self._tasks: contextlib.AsyncExitStack | None = None
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> "Simulator":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(drain_seconds=0)

    async def start(self) -> None:
        """Start to compute and to listen. The pause of `startup_seconds` is the process's, see `__main__`."""
        self._runner = web.AppRunner(
            self.application(), handler_cancellation=True, access_log=None, keepalive_timeout=75
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.config.host, self.config.port, backlog=2048, reuse_address=True)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self._tasks = contextlib.AsyncExitStack()
        await self._tasks.enter_async_context(_in_background(self.engine.run))
        await self._tasks.enter_async_context(self.inference.background())

    async def stop(self, drain_seconds: float | None = None) -> bool:
        """Refuse new work, let streams finish within the deadline, close; True when nothing was cut off.

        As in vLLM, /health stays green and new requests get 500 until the process has gone.
        """
        self.engine.stopping = True
        seconds = self.config.shutdown_seconds if drain_seconds is None else drain_seconds
        drained = not self.engine.busy
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.engine.drained()
                drained = True
        self.engine.give_up()
        runner, self._runner = self._runner, None
        if runner is not None:
            # Handlers of finished streams get a second for their last bytes; hanging ones are cancelled.
            await runner.cleanup()
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            await tasks.aclose()
        return drained

    def application(self) -> web.Application:
        """The aiohttp application with every route."""
        app = web.Application(client_max_size=_BODY_LIMIT, middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.post("/ping", self._health),
                web.get("/version", self._version),
                web.get("/load", self._load),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models),
                *self.inference.routes(),
                web.post("/reset_prefix_cache", self._reset_prefix_cache),
                web.get("/sim/state", self._state),
                web.get("/sim/requests", self._requests),
                web.post("/sim/faults", self._add_faults),
                web.delete("/sim/faults", self._clear_faults),
                web.post("/sim/pace", self._set_pace),
            ]
        )
        if self.config.lora:
            app.add_routes(
                [
                    web.post("/v1/load_lora_adapter", self._load_adapter),
                    web.post("/v1/unload_lora_adapter", self._unload_adapter),
                ]
            )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Faults first, then the handler; errors become OpenAI error objects."""
        path = request.path
        if path.startswith("/sim/"):
            return await self._answered(request, handler)
        if path == "/health" and (
            self.faults.state(FaultKind.UNHEALTHY) is not None or self.faults.state(FaultKind.DEAD) is not None
        ):
            return web.Response(status=503)
        if self.faults.state(FaultKind.DEAD) is not None:
            return _error("EngineCore encountered an issue. See stack trace for the root cause.", status=500)
        fault = self.faults.take(path)
        if fault is not None:
            request[FAULT] = fault
            refused = await _faulty(fault, request)
            if refused is not None:
                return refused
        return await self._answered(request, handler)

    async def _answered(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except BadRequest as exc:
            if request.path.startswith("/v1/messages"):
                body = orjson.dumps(message_error(str(exc), status=exc.status))
                return web.Response(body=body, status=exc.status, content_type="application/json")
            return _error(str(exc), status=exc.status, param=exc.param)
        except EngineStopped as exc:
            return _error(str(exc), status=500)
        return response

    # ---- what an operator asks -----------------------------------------------------------------------------------

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return json_answer({"version": "0.32.0+sim"})

    async def _load(self, _: web.Request) -> web.Response:
        scheduler = self.engine.scheduler
        return json_answer({"server_load": len(scheduler.running) + len(scheduler.waiting)})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self.metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    def _gauges(self) -> Gauges:
        scheduler = self.engine.scheduler
        return Gauges(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_usage=scheduler.pool.usage,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
        )

    async def _models(self, _: web.Request) -> web.Response:
        base = self.config.names[0]
        entries = [self._model_entry(name, self.config.model, None) for name in self.config.names]
        entries += [self._model_entry(name, path, base) for name, path in self.adapters.items()]
        return json_answer({"object": "list", "data": entries})

    def _model_entry(self, name: str, root: str, parent: str | None) -> dict[str, object]:
        limit = self.config.max_model_len if parent is None else None
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": limit,
        }

    # ---- adapters ------------------------------------------------------------------------------------------------

    async def _load_adapter(self, request: web.Request) -> web.Response:
        body = await self.inference.body(request)
        name, path = body.get("lora_name"), body.get("lora_path")
        if not isinstance(name, str) or not name or not isinstance(path, str) or not path:
            raise BadRequest("Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.adapters:
            raise BadRequest(f"The lora adapter '{name}' has already been loaded.")
        if "missing" in path:
            raise BadRequest(f"Loading lora {name} failed: No adapter found for {path}", status=404)
        self.adapters[name] = path
        self.metrics.adapters_changed(",".join(self.adapters), self.config.max_loras)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        name = (await self.inference.body(request)).get("lora_name")
        if name not in self.adapters:
            raise BadRequest(f"The lora adapter '{name}' cannot be found.", status=404)
        del self.adapters[name]
        self.metrics.adapters_changed(",".join(self.adapters), self.config.max_loras)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _reset_prefix_cache(self, _: web.Request) -> web.Response:
        self.engine.scheduler.pool.clear()
        return web.Response()

    # ---- control -------------------------------------------------------------------------------------------------

    async def _state(self, _: web.Request) -> web.Response:
        scheduler = self.engine.scheduler
        return json_answer(
            {
                "engine_id": self.config.engine_id,
                "running": len(scheduler.running),
                "waiting": len(scheduler.waiting),
                "completed": self.engine.completed,
                "aborted": self.engine.aborted,
                "preemptions": scheduler.preemptions,
                "prefix_hits": scheduler.prefix_hits,
                "kv_usage": scheduler.pool.usage,
                "stopping": self.engine.stopping,
                "adapters": dict(self.adapters),
                "faults": self.faults.listing(),
            }
        )

    async def _requests(self, _: web.Request) -> web.Response:
        return json_answer({"requests": list(self.requests)})

    async def _add_faults(self, request: web.Request) -> web.Response:
        try:
            self.faults.add(faults_from(orjson.loads(await request.read())))
        except ValueError as exc:
            raise BadRequest(str(exc)) from exc
        self._apply_pace()
        return json_answer({"faults": self.faults.listing()})

    async def _clear_faults(self, _: web.Request) -> web.Response:
        self.faults.clear()
        self._apply_pace()
        return json_answer({"faults": []})

    async def _set_pace(self, request: web.Request) -> web.Response:
        body = await self.inference.body(request)
        rates = {key: float(value) for key, value in body.items() if key.endswith("_tokens_per_second")}
        try:
            self.engine.pace = replace(self.engine.pace, **rates)
        except TypeError as exc:
            raise BadRequest(f"unknown rate: {exc}") from exc
        return json_answer(rates)

    def _apply_pace(self) -> None:
        slow = self.faults.state(FaultKind.SLOW)
        self.engine.pace = replace(self.engine.pace, slowdown=1.0 if slow is None else slow.factor)


@contextlib.asynccontextmanager
async def _in_background(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run `work` beside the block and cancel it at its end."""

    async def run() -> None:
        await work()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(run())
        try:
            yield
        finally:
            task.cancel()


async def _faulty(fault: Fault, request: web.Request) -> web.Response | None:
    """Carry out the faults that strike before the handler; `None` lets the request go on."""
    match fault.kind:
        case FaultKind.ERROR:
            return _error("this error was asked for", status=fault.status)
        case FaultKind.REFUSE:
            tear_down(request)
            return web.Response(status=500)
        case FaultKind.HANG:
            await asyncio.Event().wait()
        case FaultKind.DELAY:
            await asyncio.sleep(fault.seconds)
        case _:
            pass
    return None


def _error(message: str, *, status: int, param: str | None = None) -> web.Response:
    body = orjson.dumps(error_body(message, status=status, param=param))
    return web.Response(body=body, status=status, content_type="application/json")
