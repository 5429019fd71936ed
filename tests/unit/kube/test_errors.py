"""Statuses become exceptions whose type says what it means."""

import pytest

from matrixinfer.kube import errors


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (404, "NotFound", errors.NotFound),
        (409, "AlreadyExists", errors.AlreadyExists),
        (409, "Conflict", errors.Conflict),
        (410, "Gone", errors.Gone),
        (410, "Expired", errors.Gone),
        (422, "Invalid", errors.Invalid),
        (400, "BadRequest", errors.Invalid),
        (401, "Unauthorized", errors.Unauthorized),
        (403, "Forbidden", errors.Forbidden),
        (429, "TooManyRequests", errors.TooManyRequests),
        (500, "InternalError", errors.ServerFault),
        (503, "", errors.ServerFault),
        (504, "Timeout", errors.ServerFault),
        (418, "", errors.ApiError),
    ],
)
def test_each_status_has_its_type(code: int, reason: str, expected: type[errors.ApiError]) -> None:
    error = errors.error_from_status(code, {"code": code, "reason": reason, "message": "m"})
    assert type(error) is expected
    assert (error.status, error.reason, error.message) == (code, reason, "m")


def test_a_body_that_is_no_json_becomes_the_message() -> None:
    error = errors.error_from_response(502, b"<html>bad gateway</html>")
    assert isinstance(error, errors.ServerFault)
    assert "bad gateway" in error.message


def test_a_body_that_is_json_but_no_object_is_survived() -> None:
    assert isinstance(errors.error_from_response(500, b"[1]"), errors.ServerFault)


def test_retry_after_comes_from_the_header_or_the_details() -> None:
    assert errors.error_from_response(429, b"{}", retry_after="7").retry_after == 7.0
    assert errors.error_from_response(429, b'{"details":{"retryAfterSeconds":3}}').retry_after == 3.0
    assert errors.error_from_response(429, b"{}", retry_after="Wed, 21 Oct 2015").retry_after is None


def test_not_owned_says_what_to_do() -> None:
    assert "Delete or rename it" in str(errors.NotOwned("Service a/b", "ModelInfer other"))


def test_a_patch_with_another_uid_is_a_conflict_though_the_server_calls_it_invalid() -> None:
    cause = {"reason": "FieldValueInvalid", "field": "metadata.uid", "message": "field is immutable"}
    body = {"code": 422, "reason": "Invalid", "message": "m", "details": {"causes": [cause]}}
    assert isinstance(errors.error_from_status(422, body), errors.Conflict)
    body["details"]["causes"].append({"field": "spec"})
    assert isinstance(errors.error_from_status(422, body), errors.Invalid)
