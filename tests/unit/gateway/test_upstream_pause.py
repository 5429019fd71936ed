"""A slow client pauses the connection to its engine, and no other request's."""

import pytest

from matrixinfer.gateway.wire.upstream import UpstreamConnection

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Transport:
    """What the connection asks of a transport."""

    def __init__(self) -> None:
        self.is_reading = True

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, _name: str) -> None:
        return None

    def write(self, _data: bytes) -> None:
        pass


class SlowClient:
    """A sink that cannot take more at one moment of the answer."""

    def __init__(self, connection: UpstreamConnection, moment: str) -> None:
        self.connection = connection
        self.moment = moment

    def head(self, *_: object) -> None:
        pass

    def body(self, _data: bytes) -> None:
        if self.moment == "body":
            self.connection.pause()

    def flush(self) -> None:
        pass

    def end(self) -> None:
        if self.moment == "end":
            self.connection.pause()

    def lost(self, *_: object, **__: object) -> None:
        pass


@pytest.mark.parametrize("moment", ["body", "end"])
async def test_the_next_request_on_a_connection_finds_it_reading(moment: str) -> None:
    connection = UpstreamConnection(lambda *_: None)
    transport = Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.send(b"", SlowClient(connection, moment))  # type: ignore[arg-type]
    connection.data_received(ANSWER)
    connection.send(b"", SlowClient(connection, "never"))  # type: ignore[arg-type]
    assert transport.is_reading


async def test_a_client_is_heard_while_its_answer_is_under_way() -> None:
    connection = UpstreamConnection(lambda *_: None)
    transport = Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.send(b"", SlowClient(connection, "body"))  # type: ignore[arg-type]
    connection.data_received(ANSWER[:-1])
    assert not transport.is_reading
