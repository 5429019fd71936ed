"""The HTTPS side: two paths in, verdicts out.

Owns status codes, metrics and the guard around the rules: whatever goes wrong while judging is an answer, never a
dropped connection, because an API server that gets none refuses the user's write with a text that explains nothing.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from matrixinfer.service.clock import monotonic
from matrixinfer.service.logging import get_logger
from matrixinfer.service.tls import ReloadingContext
from matrixinfer.webhook import metrics
from matrixinfer.webhook.review import MalformedReview, Question, Verdict, answer, parse

__all__ = ["Hooks", "Judge", "serving"]

log = get_logger("server")

Judge = Callable[[Question], Verdict]
"""Decides about one question; pure."""

# Two objects of the largest size that etcd takes, and their wrapping.
_MAX_BODY_BYTES: Final = 8 << 20
_SHUTDOWN_SECONDS: Final = 10.0


class Hooks:
    """The application: `/mutate` and `/validate`."""

    def __init__(self, *, mutate: Judge, validate: Judge) -> None:
        self._judges = {"mutate": mutate, "validate": validate}

    def application(self) -> web.Application:
        """Return the routes as an aiohttp application."""
        application = web.Application(client_max_size=_MAX_BODY_BYTES)
        for hook in self._judges:
            application.router.add_post(f"/{hook}", self._handler(hook))
        return application

    def _handler(self, hook: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        seconds = metrics.REVIEW_SECONDS.labels(hook)

        async def handle(request: web.Request) -> web.StreamResponse:
            raw = await request.read()
            began = monotonic()
            response = self.respond(hook, raw)
            seconds.observe(monotonic() - began)
            return response

        return handle

    def respond(self, hook: str, raw: bytes) -> web.Response:
        """Answer one review."""
        try:
            question = parse(raw)
        except MalformedReview as exc:
            metrics.REVIEWS.labels(hook, "other", "malformed").inc()
            return web.Response(status=400, text=str(exc))
        verdict = self._judged(hook, question)
        outcome = "failed" if verdict.failure else "allowed" if verdict.allowed else "denied"
        metrics.REVIEWS.labels(hook, metrics.kind_label(question.kind), outcome).inc()
        return web.Response(body=answer(question, verdict), content_type="application/json")

    def _judged(self, hook: str, question: Question) -> Verdict:
        try:
            return self._judges[hook](question)
        # A fault of ours in one rule must not become a dropped connection: it is logged, counted and answered.
        except Exception as exc:
            log.error("review_failed", hook=hook, kind=question.kind, operation=question.operation, exc_info=exc)
            return Verdict(failure="the webhook could not judge this object; its log says why")


@asynccontextmanager
async def serving(hooks: Hooks, tls: ReloadingContext, host: str, port: int) -> AsyncIterator[int]:
    """Listen, and yield the port in use; at the end requests in flight are finished."""
    runner = web.AppRunner(hooks.application(), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls.context, reuse_address=True).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
