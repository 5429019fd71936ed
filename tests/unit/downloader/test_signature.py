"""A signature is good for one request, for a while, and only with the token."""

import pytest

from matrixinfer.downloader.core.signature import LONGEST_SECONDS, is_signed, signature

TOKEN = "a token of the namespace"
GOOD = signature(TOKEN, "/v1/bytes/a", "bytes=0-9", 1000)


@pytest.mark.parametrize("skew", [-LONGEST_SECONDS, 0, LONGEST_SECONDS])
def test_a_signed_request_is_known(skew: int) -> None:
    assert is_signed(TOKEN, GOOD, "/v1/bytes/a", "bytes=0-9", 1000 + skew)


@pytest.mark.parametrize(
    ("token", "header", "path", "asked", "now"),
    [
        pytest.param("another token of ours", GOOD, "/v1/bytes/a", "bytes=0-9", 1000, id="another token"),
        pytest.param("", signature("", "/v1/bytes/a", "bytes=0-9", 1000), "/v1/bytes/a", "bytes=0-9", 1000, id="none"),
        pytest.param(TOKEN, GOOD, "/v1/bytes/b", "bytes=0-9", 1000, id="another path"),
        pytest.param(TOKEN, GOOD, "/v1/bytes/a", "bytes=0-99", 1000, id="another range"),
        pytest.param(TOKEN, GOOD, "/v1/bytes/a", "bytes=0-9", 1001 + LONGEST_SECONDS, id="too old"),
        pytest.param(TOKEN, GOOD.replace("1000:", "9000:"), "/v1/bytes/a", "bytes=0-9", 9000, id="made younger"),
        pytest.param(TOKEN, f"Bearer {TOKEN}", "/v1/bytes/a", "bytes=0-9", 1000, id="the token itself"),
        pytest.param(TOKEN, "", "/v1/bytes/a", "bytes=0-9", 1000, id="nothing"),
        pytest.param(TOKEN, "MatrixInfer-Peer ²:é", "/v1/bytes/a", "bytes=0-9", 1000, id="nonsense"),
    ],
)
def test_everything_else_is_not(token: str, header: str, path: str, asked: str, now: float) -> None:
    assert not is_signed(token, header, path, asked, now)


def test_the_token_does_not_travel() -> None:
    assert TOKEN not in GOOD
