"""A tour of what we route: every endpoint that the official OpenAI and Anthropic clients have, and the engines' own.

Each step asks as a program would and checks that the answer is one. A step that the other side refuses is no failure
here: its verdict is the refusal, status and all, for a caller who knows what this engine lacks. So the same tour runs
against an engine and against a gateway in front of it, and the verdicts must be equal.

    python -m tests.tour http://127.0.0.1:8080 MODEL      # one line per step
"""

import base64
import io
import wave
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import anthropic
import openai
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

__all__ = ["ANTHROPIC", "ENGINES_OWN", "OPENAI", "STEPS", "Tourist", "tour"]

QUESTION: Final = "What is the capital of France? Answer in one word."
TOKENS: Final = 6
LONG: Final = 200
"""Tokens of an answer that is not complete before somebody can cancel it."""


@dataclass(frozen=True, slots=True)
class Tourist:
    """Who takes the tour."""

    openai: AsyncOpenAI
    anthropic: AsyncAnthropic
    model: str

    async def post(self, path: str, **body: object) -> dict[str, Any]:
        """Ask for what no official client knows."""
        return await self.openai.post(path, cast_to=dict[str, Any], body={"model": self.model, **body})


Step: TypeAlias = Callable[[Tourist], Awaitable[None]]


def _asked(text: str = QUESTION) -> list[Any]:
    return [{"role": "user", "content": text}]


def _tool(name: str = "weather") -> dict[str, Any]:
    return {"name": name, "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}


def _sound() -> tuple[str, bytes, str]:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(b"\r\n--\0\xff" * 1000)
    return "sound.wav", file.getvalue(), "audio/wav"


# -- OpenAI's client ------------------------------------------------------------------------------------------------


async def chat(at: Tourist) -> None:
    answer = await at.openai.chat.completions.create(model=at.model, messages=_asked(), max_tokens=TOKENS)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage
    assert answer.usage.completion_tokens > 0


async def chat_stream(at: Tourist) -> None:
    """Without asking for it, no chunk has counts; with it, exactly the last one has."""
    plain = await at.openai.chat.completions.create(
        model=at.model, messages=_asked(), max_tokens=TOKENS, stream=True, temperature=0
    )
    chunks = [chunk async for chunk in plain]
    assert all(chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason
    counted = await at.openai.chat.completions.create(
        model=at.model,
        messages=_asked(),
        max_tokens=TOKENS,
        stream=True,
        temperature=0,
        stream_options={"include_usage": True},
    )
    with_counts = [chunk async for chunk in counted]
    assert [bool(chunk.choices) for chunk in with_counts] == [True] * (len(with_counts) - 1) + [False]
    assert with_counts[-1].usage
    assert with_counts[-1].usage.completion_tokens > 0


async def chat_tools(at: Tourist) -> None:
    answer = await at.openai.chat.completions.create(
        model=at.model,
        messages=_asked("What is the weather?"),
        tools=[{"type": "function", "function": _tool()}],  # type: ignore[list-item]
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=64,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert calls[0].function.name == "weather"


async def chat_tools_stream(at: Tourist) -> None:
    stream = await at.openai.chat.completions.create(
        model=at.model,
        messages=_asked("What is the weather?"),
        tools=[{"type": "function", "function": _tool()}],  # type: ignore[list-item]
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=64,
        stream=True,
    )
    deltas = [chunk.choices[0].delta async for chunk in stream if chunk.choices]
    names = [call.function.name for delta in deltas for call in delta.tool_calls or () if call.function]
    assert "weather" in names


async def completions(at: Tourist) -> None:
    answer = await at.openai.completions.create(model=at.model, prompt="The sea is", max_tokens=TOKENS)
    assert answer.choices[0].text


async def completions_list(at: Tourist) -> None:
    answer = await at.openai.completions.create(model=at.model, prompt=["The sea is", "Once"], max_tokens=TOKENS)
    assert len(answer.choices) == 2


async def completions_stream(at: Tourist) -> None:
    stream = await at.openai.completions.create(model=at.model, prompt="The sea", max_tokens=TOKENS, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])


async def embeddings(at: Tourist) -> None:
    answer = await at.openai.embeddings.create(model=at.model, input=["one", "two"])
    assert [len(item.embedding) > 1 for item in answer.data] == [True, True]


async def responses(at: Tourist) -> None:
    answer = await at.openai.responses.create(model=at.model, input=QUESTION, max_output_tokens=TOKENS)
    assert answer.object == "response"
    assert answer.output_text


async def responses_stream(at: Tourist) -> None:
    stream = await at.openai.responses.create(
        model=at.model, input=QUESTION, max_output_tokens=TOKENS, stream=True, instructions="Be brief."
    )
    events = [event async for event in stream]
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def responses_retrieve(at: Tourist) -> None:
    made = await at.openai.responses.create(model=at.model, input=QUESTION, max_output_tokens=TOKENS)
    assert (await at.openai.responses.retrieve(made.id)).output_text == made.output_text


async def responses_stream_retrieve(at: Tourist) -> None:
    stream = await at.openai.responses.create(model=at.model, input=QUESTION, max_output_tokens=TOKENS, stream=True)
    ids = [event.response.id async for event in stream if event.type == "response.created"]
    assert (await at.openai.responses.retrieve(ids[0])).id == ids[0]


async def responses_continue(at: Tourist) -> None:
    made = await at.openai.responses.create(model=at.model, input=QUESTION, max_output_tokens=TOKENS)
    more = await at.openai.responses.create(
        model=at.model, input="And of Spain?", max_output_tokens=TOKENS, previous_response_id=made.id
    )
    assert more.previous_response_id == made.id
    assert made.usage
    assert more.usage
    assert more.usage.input_tokens > made.usage.input_tokens


async def responses_items(at: Tourist) -> None:
    made = await at.openai.responses.create(model=at.model, input=QUESTION, max_output_tokens=TOKENS)
    items = [item async for item in at.openai.responses.input_items.list(made.id)]
    assert items[0].type == "message"


async def responses_cancel(at: Tourist) -> None:
    made = await at.openai.responses.create(model=at.model, input=QUESTION, max_output_tokens=LONG, background=True)
    assert made.status in ("queued", "in_progress")
    assert (await at.openai.responses.cancel(made.id)).status in ("cancelled", "completed")


async def responses_delete(at: Tourist) -> None:
    made = await at.openai.responses.create(model=at.model, input=QUESTION, max_output_tokens=TOKENS)
    await at.openai.responses.delete(made.id)
    try:
        await at.openai.responses.retrieve(made.id)
    except openai.NotFoundError:
        return
    raise AssertionError("the response is still there")


async def models(at: Tourist) -> None:
    assert at.model in [model.id async for model in at.openai.models.list()]


async def model_found(at: Tourist) -> None:
    assert (await at.openai.models.retrieve(at.model)).id == at.model


async def transcription(at: Tourist) -> None:
    answer = await at.openai.audio.transcriptions.create(model=at.model, file=_sound(), language="en")
    assert answer.text


async def transcription_stream(at: Tourist) -> None:
    stream = await at.openai.audio.transcriptions.create(model=at.model, file=_sound(), stream=True)
    assert [event async for event in stream]


async def translation(at: Tourist) -> None:
    answer = await at.openai.audio.translations.create(model=at.model, file=_sound())
    assert answer.text


async def speech(at: Tourist) -> None:
    answer = await at.openai.audio.speech.create(model=at.model, input="Hello there.", voice="alloy")
    with wave.open(io.BytesIO(answer.content)) as sound:
        assert sound.getnframes() > 0


async def speech_stream(at: Tourist) -> None:
    speaking = at.openai.audio.speech.with_streaming_response
    async with speaking.create(model=at.model, input="Hello there.", voice="alloy") as answer:
        assert b"".join([piece async for piece in answer.iter_bytes()])[:4] == b"RIFF"


async def images(at: Tourist) -> None:
    answer = await at.openai.images.generate(model=at.model, prompt="A sunset", n=2)
    assert answer.data
    assert [base64.b64decode(image.b64_json or "")[:4] for image in answer.data] == [b"\x89PNG"] * 2


OPENAI: Final[Mapping[str, Step]] = {
    "chat": chat,
    "chat.stream": chat_stream,
    "chat.tools": chat_tools,
    "chat.tools.stream": chat_tools_stream,
    "completions": completions,
    "completions.list": completions_list,
    "completions.stream": completions_stream,
    "embeddings": embeddings,
    "responses": responses,
    "responses.stream": responses_stream,
    "responses.retrieve": responses_retrieve,
    "responses.stream.retrieve": responses_stream_retrieve,
    "responses.continue": responses_continue,
    "responses.input_items": responses_items,
    "responses.cancel": responses_cancel,
    "responses.delete": responses_delete,
    "models": models,
    "models.retrieve": model_found,
    "audio.transcriptions": transcription,
    "audio.transcriptions.stream": transcription_stream,
    "audio.translations": translation,
    "audio.speech": speech,
    "audio.speech.stream": speech_stream,
    "images.generations": images,
}

# -- Anthropic's client ---------------------------------------------------------------------------------------------


async def messages(at: Tourist) -> None:
    answer = await at.anthropic.messages.create(
        model=at.model, messages=_asked(), max_tokens=TOKENS, system="Be brief."
    )
    assert answer.type == "message"
    assert answer.content[0].type == "text"
    assert answer.content[0].text
    assert answer.usage.output_tokens > 0


async def messages_stream(at: Tourist) -> None:
    async with at.anthropic.messages.stream(model=at.model, messages=_asked(), max_tokens=TOKENS) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text
    assert final.stop_reason in ("end_turn", "max_tokens")


async def messages_tools(at: Tourist) -> None:
    answer = await at.anthropic.messages.create(
        model=at.model,
        messages=_asked("What is the weather?"),
        max_tokens=64,
        tools=[{"name": "weather", "input_schema": {"type": "object", "properties": {}}}],
        tool_choice={"type": "tool", "name": "weather"},
    )
    assert answer.stop_reason == "tool_use"
    assert [block.name for block in answer.content if block.type == "tool_use"] == ["weather"]


async def anthropic_models(at: Tourist) -> None:
    listed = [model async for model in at.anthropic.models.list()]
    assert at.model in [model.id for model in listed]
    found = await at.anthropic.models.retrieve(at.model)
    assert (found.type, found.id, bool(found.display_name)) == ("model", at.model, True)


async def count_tokens(at: Tourist) -> None:
    assert (await at.anthropic.messages.count_tokens(model=at.model, messages=_asked())).input_tokens > 0


ANTHROPIC: Final[Mapping[str, Step]] = {
    "messages": messages,
    "messages.stream": messages_stream,
    "messages.tools": messages_tools,
    "messages.count_tokens": count_tokens,
    "messages.models": anthropic_models,
}

# -- the engines' own -----------------------------------------------------------------------------------------------


async def rerank(at: Tourist) -> None:
    answer = await at.post("/rerank", query="the blue sea", documents=["a red house", "the blue sea"], top_n=1)
    assert [result["index"] for result in answer["results"]] == [1]


async def score(at: Tourist) -> None:
    answer = await at.post("/score", text_1="the sea", text_2=["the sea", "a house"])
    first, second = (item["score"] for item in answer["data"])
    assert first > second


async def classify(at: Tourist) -> None:
    answer = await at.post("/classify", input=["one", "two"])
    assert [len(item["probs"]) == item["num_classes"] for item in answer["data"]] == [True, True]


async def pooling(at: Tourist) -> None:
    answer = await at.post("/pooling", input=["one"])
    assert answer["data"][0]["data"]


async def tokenize(at: Tourist) -> None:
    # llama.cpp calls the text `content`, everybody else `prompt`.
    answer = await at.post("/tokenize", prompt="The sea is blue.", content="The sea is blue.")
    assert len(answer["tokens"]) > 2


async def detokenize(at: Tourist) -> None:
    answer = await at.post("/detokenize", tokens=[11, 12, 13])
    assert answer.get("prompt", answer.get("content", answer.get("text")))


ENGINES_OWN: Final[Mapping[str, Step]] = {
    "rerank": rerank,
    "score": score,
    "classify": classify,
    "pooling": pooling,
    "tokenize": tokenize,
    "detokenize": detokenize,
}

STEPS: Final[Mapping[str, Step]] = {**OPENAI, **ANTHROPIC, **ENGINES_OWN}


async def tour(
    url: str, model: str, steps: Mapping[str, Step] = STEPS, *, seconds: float = 60, keep_alive: bool = True
) -> dict[str, str]:
    """Take the steps one after the other at `url`; returns a verdict for each: `ok`, or what went wrong in words.

    Without `keep_alive` each step has a connection of its own: for engines that close a kept one while it is used.
    """
    headers = {} if keep_alive else {"connection": "close"}
    async with AsyncExitStack() as stack:
        key = "sk-none"
        for_openai = AsyncOpenAI(
            base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=seconds, default_headers=headers
        )
        for_anthropic = AsyncAnthropic(
            base_url=url, api_key=key, max_retries=0, timeout=seconds, default_headers=headers
        )
        at = Tourist(await stack.enter_async_context(for_openai), await stack.enter_async_context(for_anthropic), model)
        return {name: await _verdict(step, at) for name, step in steps.items()}


async def _verdict(step: Step, at: Tourist) -> str:
    try:
        await step(at)
    except (openai.APIStatusError, anthropic.APIStatusError) as exc:
        return f"{exc.status_code} {exc.response.text[:200]}"
    # Whatever else goes wrong in a step is what the caller wants to read, beside the verdicts of the other steps.
    except Exception as exc:  # noqa: BLE001
        return f"failed: {type(exc).__name__}: {exc}"
    return "ok"
