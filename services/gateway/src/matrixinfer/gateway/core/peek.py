"""What the gateway reads of a JSON body: the model, whether the answer streams, and which answer it goes on from.

Owns the narrow decode and the refusals that come from it; forms have `form`. Unknown members, number text and key
order are none of its business: the body travels on as the bytes that came in.
"""

import msgspec

__all__ = ["BodyError", "Members", "Peek", "model_name", "peek", "peeked"]

_NAME_LIMIT = 512
"""Characters of a model's name, or bytes of an id. Names go into errors and logs: nobody may blow them up."""


class BodyError(ValueError):
    """The body cannot be routed; `param` names the member at fault, when there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Peek(msgspec.Struct, frozen=True, gc=False):
    """The few members that routing needs."""

    model: str
    stream: bool
    previous: str = ""
    """Id of the response that this request continues; only its engine knows it."""
    has_stream_options: bool = False
    """Whether the client says what the stream shall hold; a form, which cannot, is left as if it had."""


class Members(msgspec.Struct):
    """Those that routing looks at, as they are decoded."""

    model: str | None = None
    # Raw, because its type is the engine's to judge: only the literal `true` means something here.
    stream: msgspec.Raw = msgspec.Raw()
    previous_response_id: msgspec.Raw = msgspec.Raw()
    stream_options: msgspec.Raw = msgspec.Raw()


_decoder = msgspec.json.Decoder(Members)


def peek(body: bytes) -> Peek:
    """Read the routing members of a JSON object. Raises BodyError with a sentence for the client."""
    if not body:
        raise BodyError("The request has no body; send a JSON object with a 'model' member.")
    try:
        members = _decoder.decode(body)
    except msgspec.ValidationError as exc:
        if "$.model" in str(exc):
            raise BodyError("'model' must be a string.", "model") from exc
        raise BodyError("The request body must be a JSON object.") from exc
    except RecursionError as exc:
        raise BodyError("The request body is nested too deeply.") from exc
    # UnicodeDecodeError and msgspec.DecodeError are ValueErrors; both mean that this is not JSON.
    except ValueError as exc:
        raise BodyError(f"The request body is not valid JSON: {exc}") from exc
    return peeked(members)


def peeked(members: Members) -> Peek:
    """Judge the members of a body that was decoded. Raises BodyError."""
    return Peek(
        model_name(members.model),
        bytes(members.stream) == b"true" if members.stream else False,
        _previous(bytes(members.previous_response_id)) if members.previous_response_id else "",
        bool(members.stream_options),
    )


def _previous(raw: bytes) -> str:
    return msgspec.json.decode(raw) if raw[:1] == b'"' and len(raw) <= _NAME_LIMIT else ""


def model_name(given: str | None) -> str:
    """Return the model that a body names. Raises BodyError when it names none, or what can be no name."""
    if not given or not given.strip():
        raise BodyError("You must provide a 'model' parameter.", "model")
    if len(given) > _NAME_LIMIT:
        raise BodyError(f"'model' has {len(given)} characters, at most {_NAME_LIMIT} are a name.", "model")
    return given
