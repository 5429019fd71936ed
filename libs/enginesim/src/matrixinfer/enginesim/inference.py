"""What a client may ask of one engine: every inference path, streaming or not.

Owns: reading requests, submitting them to the engine, writing answers in the dialect of the path, kept responses.
Refuses: what an operator asks and what a test controls (`server`).
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

import orjson
from aiohttp import web

from matrixinfer.enginesim.answers import embedding, embedding_base64, prompt_seed
from matrixinfer.enginesim.config import SimConfig
from matrixinfer.enginesim.dialects import DONE, ChunkDialect, Dialect, Text
from matrixinfer.enginesim.engine import Ask, EngineStopped, Mailbox, SimEngine
from matrixinfer.enginesim.faults import Fault, FaultKind
from matrixinfer.enginesim.media import heard_text, image_base64, images_wanted, spoken
from matrixinfer.enginesim.messages import MessageDialect, message_tokens, messages_request
from matrixinfer.enginesim.pooling import classified, pairs_to_score, pooled, relevance, rerank_request, reranked
from matrixinfer.enginesim.responses import Kept, ResponseDialect, ResponseStore, input_items, responses_request
from matrixinfer.enginesim.tokens import pieces, token_ids
from matrixinfer.enginesim.wire import (
    BadRequest,
    Generation,
    Usage,
    chat_request,
    chat_text,
    completion_request,
    embedding_request,
    prompt_tokens_of,
    wanted_tool,
)

__all__ = ["FAULT", "Inference", "json_answer", "tear_down"]

FAULT: Final = web.RequestKey("fault", Fault)
"""The fault that strikes this request in its stream."""

_MID_STREAM: Final = (FaultKind.CUT, FaultKind.STALL)
_EVENT_STREAM: Final = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}

DialectMaker = Callable[[str, str], Dialect]
"""From request id and model name."""


class Inference:
    """The client's side of one engine."""

    def __init__(
        self, config: SimConfig, engine: SimEngine, adapters: Mapping[str, str], remembered: deque[dict[str, Any]]
    ) -> None:
        self._config = config
        self._engine = engine
        self._adapters = adapters
        self._remembered = remembered
        self._store = ResponseStore()
        self._counter = 0
        self._background: asyncio.TaskGroup | None = None

    def routes(self) -> list[web.RouteDef]:
        """Every path; several have two spellings, as in vLLM."""
        both = {"rerank": self._rerank, "score": self._score}
        plain = {
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
            "classify": self._classify,
            "pooling": self._pooling,
            **both,
            "v2/rerank": self._rerank,
        }
        versioned = {
            "chat/completions": self._chat,
            "completions": self._completions,
            "embeddings": self._embeddings,
            "responses": self._responses,
            "responses/{id}/cancel": self._cancel_response,
            "messages": self._messages,
            "messages/count_tokens": self._count_tokens,
            "audio/transcriptions": self._listen,
            "audio/translations": self._listen,
            "audio/speech": self._speak,
            "images/generations": self._paint,
            **both,
        }
        return [
            *(web.post(f"/{path}", handler) for path, handler in plain.items()),
            *(web.post(f"/v1/{path}", handler) for path, handler in versioned.items()),
            web.get("/v1/responses/{id}", self._get_response),
            web.delete("/v1/responses/{id}", self._delete_response),
            web.get("/v1/responses/{id}/input_items", self._list_input_items),
        ]

    @contextlib.asynccontextmanager
    async def background(self) -> AsyncIterator[None]:
        """Let background responses be made within the block; its end waits until the engine has let go of them."""
        async with asyncio.TaskGroup() as self._background:
            yield

    # ---- generating ----------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        return await self._generate(request, chat_request(body), "chatcmpl", _chunks(body, chat=True))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        return await self._generate(request, completion_request(body), "cmpl", _chunks(body, chat=False))

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        return await self._generate(
            request,
            messages_request(body),
            "msg",
            lambda name, model: MessageDialect(body, message_id=name, model=model),
        )

    async def _count_tokens(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        self._resolved(str(body.get("model", "")))
        return json_answer({"input_tokens": len(message_tokens(body))})

    async def _generate(
        self, request: web.Request, wanted: Generation, prefix: str, made: DialectMaker
    ) -> web.StreamResponse:
        name, adapter = self._resolved(wanted.model)
        mailbox, choices = self._submitted(wanted, adapter)
        dialect = made(self._request_id(request, prefix), name)
        try:
            if wanted.stream:
                return await self._stream(request, mailbox, dialect, choices, wanted)
            return json_answer(await self._whole(mailbox, dialect, choices, wanted))
        finally:
            self._engine.abort(mailbox)

    def _submitted(self, wanted: Generation, adapter: str) -> tuple[Mailbox, int]:
        longest = max(map(len, wanted.prompts))
        room = self._room(longest, wanted.limit)
        limit = room if wanted.limit is None else min(wanted.limit, room)
        asks = [
            Ask(prompt, limit, self._config.names[0], adapter, wanted.seed + choice, wanted.minimum, wanted.ignore_eos)
            for prompt in wanted.prompts
            for choice in range(wanted.choices)
        ]
        return self._engine.submit(asks), len(asks)

    async def _whole(self, mailbox: Mailbox, dialect: Dialect, choices: int, wanted: Generation) -> dict[str, object]:
        texts, completion = await _collected(mailbox, choices)
        # The prompt of a request counts once however many choices it has.
        return dialect.whole(texts, Usage(_prompt_tokens(wanted), completion, self._shown(mailbox.cached)))

    async def _stream(
        self, request: web.Request, mailbox: Mailbox, dialect: Dialect, choices: int, wanted: Generation
    ) -> web.StreamResponse:
        """Send tokens as they come: everything that is ready goes out in one write, the events of each token."""
        response = web.StreamResponse(headers=_EVENT_STREAM)
        fault = request.get(FAULT)
        completion, prompt = 0, _prompt_tokens(wanted)
        batch = await mailbox.take()
        await response.prepare(request)
        lead = dialect.opening(choices, prompt)
        # The client may vanish between two tokens; cancellation tells us, unless the write finds out first.
        try:
            while batch:
                events = [dialect.token(emission.index, emission.text, emission.finish) for emission in batch]
                completion += len(events)
                if fault is not None and fault.kind in _MID_STREAM and completion >= fault.after:
                    await response.write(lead + b"".join(events[: fault.after - completion + len(events)]))
                    return await _broken(fault, request, response)
                if data := lead + b"".join(events):
                    await response.write(data)
                lead = b""
                batch = await mailbox.take()
            await response.write(dialect.closing(Usage(prompt, completion, self._shown(mailbox.cached))))
            await response.write_eof()
        except (ConnectionResetError, EngineStopped):
            tear_down(request)
        return response

    # ---- responses -----------------------------------------------------------------------------------------------

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        body = await self.body(request)
        previous = body.get("previous_response_id")
        before = self._store.get(str(previous)).messages if previous else ()
        wanted = responses_request(body, before)
        name, adapter = self._resolved(wanted.model)
        mailbox, choices = self._submitted(wanted, adapter)
        response_id = self._request_id(request, "resp").replace("resp-", "resp_", 1)
        dialect = _Keeping(
            ResponseDialect(body, response_id=response_id, created=int(time.time()), model=name),
            self._store if body.get("store", True) else None,
            (*before, *input_items(body)),
        )
        if body.get("background") and self._background is not None:
            dialect.begin()
            self._background.create_task(self._in_background(mailbox, dialect, choices, wanted))
            return json_answer(dialect.inner.state("queued"))
        try:
            if wanted.stream:
                return await self._stream(request, mailbox, dialect, choices, wanted)
            return json_answer(await self._whole(mailbox, dialect, choices, wanted))
        finally:
            self._engine.abort(mailbox)

    async def _in_background(self, mailbox: Mailbox, dialect: Dialect, choices: int, wanted: Generation) -> None:
        with contextlib.suppress(EngineStopped):
            await self._whole(mailbox, dialect, choices, wanted)

    async def _get_response(self, request: web.Request) -> web.Response:
        return json_answer(self._store.get(request.match_info["id"]).response)

    async def _cancel_response(self, request: web.Request) -> web.Response:
        return json_answer(self._store.cancel(request.match_info["id"]).response)

    async def _delete_response(self, request: web.Request) -> web.Response:
        response_id = request.match_info["id"]
        self._store.drop(response_id)
        return json_answer({"id": response_id, "object": "response", "deleted": True})

    async def _list_input_items(self, request: web.Request) -> web.Response:
        messages = self._store.get(request.match_info["id"]).messages
        items = [{"id": f"msg_{at}", "type": "message", **message} for at, message in enumerate(messages)]
        first, last = items[0]["id"], items[-1]["id"]
        return json_answer({"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": False})

    # ---- texts in, numbers out -----------------------------------------------------------------------------------

    async def _embeddings(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        inputs, dimensions, as_base64 = embedding_request(body)
        model = await self._read(body, inputs)
        vectors = [embedding(prompt_seed(tokens, model), dimensions) for tokens in inputs]
        data = [
            {"object": "embedding", "index": index, "embedding": embedding_base64(vector) if as_base64 else vector}
            for index, vector in enumerate(vectors)
        ]
        return json_answer({"object": "list", "model": model, "data": data, "usage": _read_usage(inputs)})

    async def _rerank(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        query, documents, top = rerank_request(body)
        inputs = [(*query, *token_ids(document)) for document in documents]
        model = await self._read(body, inputs)
        usage = {"total_tokens": sum(map(len, inputs))}
        answer = {"id": self._request_id(request, "rerank"), "model": model, "usage": usage}
        return json_answer(answer | {"results": reranked(query, documents, top)})

    async def _score(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        pairs = pairs_to_score(body)
        inputs = [(*left, *right) for left, right in pairs]
        model = await self._read(body, inputs)
        data = [
            {"index": index, "object": "score", "score": relevance(left, right)}
            for index, (left, right) in enumerate(pairs)
        ]
        return self._rated(request, "score", model, data, inputs)

    async def _classify(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        inputs = prompt_tokens_of(body.get("input"), "input")
        model = await self._read(body, inputs)
        return self._rated(request, "classify", model, [classified(t, i) for i, t in enumerate(inputs)], inputs)

    async def _pooling(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        inputs = prompt_tokens_of(body.get("input"), "input")
        model = await self._read(body, inputs)
        return self._rated(request, "pool", model, [pooled(t, i) for i, t in enumerate(inputs)], inputs)

    def _rated(
        self,
        request: web.Request,
        prefix: str,
        model: str,
        data: Sequence[Mapping[str, object]],
        inputs: Sequence[Sequence[int]],
    ) -> web.Response:
        about = {"id": self._request_id(request, prefix), "object": "list", "created": int(time.time()), "model": model}
        return json_answer(about | {"data": data, "usage": _read_usage(inputs)})

    async def _read(self, body: Mapping[str, Any], inputs: Sequence[Sequence[int]]) -> str:
        """Compute the inputs and nothing more; returns the name of the model."""
        model, adapter = self._resolved(str(body.get("model", "")))
        for tokens in inputs:
            self._room(len(tokens), 0)
        mailbox = self._engine.submit([Ask(tokens, 0, self._config.names[0], adapter) for tokens in inputs])
        try:
            await _collected(mailbox, len(inputs))
        finally:
            self._engine.abort(mailbox)
        return model

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        text = chat_text(body["messages"]) if "messages" in body else str(body.get("prompt", ""))
        tokens = token_ids(text)
        words = pieces(text) if body.get("return_token_strs") else None
        limit = self._config.max_model_len
        return json_answer({"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": words})

    async def _detokenize(self, request: web.Request) -> web.Response:
        """Ids are hashes here, so what comes back is a text of as many tokens, not the one that was tokenized."""
        (tokens,) = prompt_tokens_of((await self.body(request)).get("tokens"), "tokens")
        return json_answer({"prompt": "".join(f" t{token}" for token in tokens)})

    # ---- sound and pictures --------------------------------------------------------------------------------------

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        """Transcribe or translate: both hear the same words."""
        form = await request.post()
        audio = form.get("file")
        if not isinstance(audio, web.FileField):
            raise BadRequest("file must be an audio file", param="file")
        sound = audio.file.read()
        fields = {key: value for key, value in form.items() if isinstance(value, str)}
        self._remember(request, fields | {"file": {"name": audio.filename, "bytes": len(sound)}})
        model, _ = self._resolved(fields.get("model", ""))
        words = heard_text(sound)
        if fields.get("stream", "").lower() == "true":
            return await self._heard_stream(request, model, words)
        text = "".join(words)
        if fields.get("response_format") == "text":
            return web.Response(text=text)
        seconds = max(1, len(sound) // 16_000)
        return json_answer({"text": text, "usage": {"type": "duration", "seconds": seconds}})

    async def _heard_stream(self, request: web.Request, model: str, words: Sequence[str]) -> web.StreamResponse:
        response = web.StreamResponse(headers=_EVENT_STREAM)
        await response.prepare(request)
        about = {"id": self._request_id(request, "trsc"), "object": "transcription.chunk", "model": model}
        for at, word in enumerate(words):
            choice = {"delta": {"content": word}, "finish_reason": "stop" if at == len(words) - 1 else None}
            await response.write(b"data: " + orjson.dumps(about | {"choices": [choice]}) + b"\n\n")
        await response.write(DONE)
        await response.write_eof()
        return response

    async def _speak(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        self._resolved(str(body.get("model", "")))
        if not isinstance(body.get("input"), str):
            raise BadRequest("input must be text", param="input")
        return web.Response(body=spoken(body["input"]), content_type="audio/wav")

    async def _paint(self, request: web.Request) -> web.Response:
        body = await self.body(request)
        self._resolved(str(body.get("model", "")))
        images = [{"b64_json": image_base64(body["prompt"], number)} for number in range(images_wanted(body))]
        return json_answer({"created": int(time.time()), "data": images})

    # ---- requests ------------------------------------------------------------------------------------------------

    async def body(self, request: web.Request) -> dict[str, Any]:
        """The request as a JSON object, remembered for /sim/requests. Raises `BadRequest`."""
        raw = await request.read()
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as exc:
            raise BadRequest(f"the body is not JSON: {exc}") from exc
        if not isinstance(body, dict):
            raise BadRequest("the body must be a JSON object")
        self._remember(request, body)
        return body

    def _remember(self, request: web.Request, body: Mapping[str, Any]) -> None:
        headers = {str(key): value for key, value in request.headers.items()}
        self._remembered.append({"path": request.path, "headers": headers, "body": body})

    def _resolved(self, wanted: str) -> tuple[str, str]:
        """The model name to answer with, and the adapter when it is one. Raises `BadRequest` (404)."""
        if not wanted or wanted in self._config.names:
            return wanted or self._config.names[0], ""
        if wanted in self._adapters:
            return wanted, wanted
        raise BadRequest(f"The model `{wanted}` does not exist.", param="model", status=404)

    def _room(self, prompt: int, limit: int | None) -> int:
        """How many tokens may follow a prompt. Raises `BadRequest` when it or its answer cannot fit."""
        room = self._config.max_model_len - prompt
        if room < (0 if limit == 0 else 1) or not self._engine.scheduler.fits(prompt + max(limit or 0, 1)):
            raise BadRequest(
                f"This model's maximum context length is {self._config.max_model_len} tokens. However, your request "
                f"has {prompt} input tokens. Please reduce the length of the input messages.",
                param="input_tokens",
            )
        return room

    def _request_id(self, request: web.Request, prefix: str) -> str:
        self._counter += 1
        own = request.headers.get("x-request-id")
        return f"{prefix}-{own}" if own else f"{prefix}-sim{self._config.engine_id}-{self._counter:08d}"

    def _shown(self, cached: int) -> int | None:
        return cached if self._config.prompt_tokens_details else None


class _Keeping:
    """The dialect of responses, which also keeps what it writes."""

    def __init__(self, inner: ResponseDialect, store: ResponseStore | None, messages: Sequence[dict[str, Any]]) -> None:
        self.inner = inner
        self._store = store
        self._messages = tuple(messages)

    def begin(self) -> None:
        """Keep the response while it is being made."""
        self._keep(self.inner.state("queued"))

    def opening(self, choices: int, prompt: int) -> bytes:
        """A stream can be asked for as soon as its client knows its id."""
        self._keep(self.inner.state("in_progress"))
        return self.inner.opening(choices, prompt)

    def token(self, index: int, text: str, finish: str | None) -> bytes:
        """As it is."""
        return self.inner.token(index, text, finish)

    def closing(self, usage: Usage) -> bytes:
        """Keep the end of a stream."""
        self._keep(self.inner.streamed(usage))
        return self.inner.closing(usage)

    def whole(self, texts: Sequence[Text], usage: Usage) -> dict[str, object]:
        """Keep the answer, unless it was cancelled meanwhile."""
        whole = self.inner.whole(texts, usage)
        self._keep(whole)
        return whole

    def _keep(self, response: dict[str, Any]) -> None:
        if self._store is None:
            return
        said = tuple(item for item in response["output"] if item.get("type") == "message")
        if not self._store.is_cancelled(response["id"]):
            self._store.keep(Kept(response, (*self._messages, *said)))


def _chunks(body: Mapping[str, Any], *, chat: bool) -> DialectMaker:
    include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    tool = wanted_tool(body) if chat else ""
    return lambda name, model: ChunkDialect(
        request_id=name, created=int(time.time()), model=model, chat=chat, include_usage=include_usage, tool=tool
    )


def _prompt_tokens(wanted: Generation) -> int:
    return sum(map(len, wanted.prompts))


def _read_usage(inputs: Sequence[Sequence[int]]) -> dict[str, object]:
    return Usage(sum(map(len, inputs)), 0).to_json()


async def _collected(mailbox: Mailbox, choices: int) -> tuple[Sequence[Text], int]:
    """All choices as (text, finish reason), and the number of tokens."""
    texts: list[list[str]] = [[] for _ in range(choices)]
    reasons = ["stop"] * choices
    while batch := await mailbox.take():
        for emission in batch:
            texts[emission.index].append(emission.text)
            if emission.finish is not None:
                reasons[emission.index] = emission.finish
    completion = sum(map(len, texts))
    return [("".join(parts), reason) for parts, reason in zip(texts, reasons, strict=True)], completion


async def _broken(fault: Fault, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """End a stream badly: cut the connection, or stay silent for as long as the client bears it."""
    if fault.kind is FaultKind.STALL:
        await asyncio.Event().wait()
    # What has been written leaves before the connection does.
    await asyncio.sleep(0)
    tear_down(request)
    return response


def tear_down(request: web.Request) -> None:
    """Cut the connection of a request."""
    if request.transport is not None:
        request.transport.abort()


def json_answer(value: object) -> web.Response:
    """A document with status 200."""
    return web.Response(body=orjson.dumps(value), content_type="application/json")
