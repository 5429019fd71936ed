"""Credentials never reach a log line, whatever key or message carries them."""

import pytest

from matrixinfer.service.redaction import MASK, Redactor


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        ("GET /x Authorization: Bearer abcdef0123456789", "abcdef0123456789"),
        ("https://store/x?X-Amz-Credential=AKIA1&X-Amz-Signature=deadbeef&part=1", "deadbeef"),
        ("https://store/x?X-Amz-Credential=AKIA1&X-Amz-Signature=deadbeef&part=1", "AKIA1"),
        ("proxy at http://user:pa55word@proxy:3128", "pa55word"),
        ("token hf_abcdefghijklmnopqrstuvwx refused", "abcdefghijklmnopqrstuvwx"),
        ("the key was my-own-secret-value!", "my-own-secret-value"),
    ],
)
def test_text_loses_what_looks_like_a_credential(text: str, leak: str) -> None:
    cleaned = Redactor(["my-own-secret-value"]).text(text)
    assert leak not in cleaned
    assert MASK in cleaned


def test_text_without_credentials_is_untouched() -> None:
    text = "https://store/bucket/model.safetensors?part=1 took 3 s"
    assert Redactor(["other-secret"]).text(text) == text


@pytest.mark.parametrize(
    "key", ["token", "hf_token", "secret_key", "Authorization", "AWS_SECRET_ACCESS_KEY", "password"]
)
def test_a_telling_key_masks_its_value_whole(key: str) -> None:
    assert Redactor().value(key, "plain") == MASK


@pytest.mark.parametrize("key", ["tokens", "completion_tokens", "key", "secret_name", "monkey"])
def test_keys_that_only_sound_like_it_are_kept(key: str) -> None:
    assert Redactor().value(key, "plain") == "plain"


def test_nested_values_are_searched() -> None:
    value = {"headers": [{"authorization": "abc"}, "Bearer 0123456789abc"], "n": 3}
    assert Redactor().value("request", value) == {"headers": [{"authorization": MASK}, f"Bearer {MASK}"], "n": 3}


def test_an_absent_credential_stays_visible_as_absent() -> None:
    assert Redactor().value("token", None) is None


def test_a_secret_inside_a_longer_one_leaves_no_rest() -> None:
    assert Redactor(["abcdef", "abcdefghi"]).text("x abcdefghi y") == f"x {MASK} y"
