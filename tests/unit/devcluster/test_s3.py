"""Signatures, against the client that everybody uses."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import get_current_datetime
from botocore.credentials import Credentials

from matrixinfer.devcluster.s3 import REGION, ObjectStore, command, new_keys, sign

STORE = ObjectStore("http://127.0.0.1:7070", "access", "secret")
NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_the_signature_is_botocores():
    digest = hashlib.sha256(b"content").hexdigest()
    ours = sign(STORE, "PUT", "127.0.0.1:7070", "/models/a%20b/c.gguf", digest, NOW)

    request = AWSRequest("PUT", "http://127.0.0.1:7070/models/a%20b/c.gguf", data=b"content")
    request.context["payload_signing_enabled"] = True
    with mock.patch(f"botocore.auth.{get_current_datetime.__name__}", return_value=NOW.replace(tzinfo=None)):
        S3SigV4Auth(Credentials("access", "secret"), "s3", REGION).add_auth(request)

    assert ours["Authorization"] == request.headers["Authorization"]
    assert ours["x-amz-date"] == request.headers["X-Amz-Date"]


def test_keys_come_by_environment_and_never_by_argument():
    argv = command(Path("versitygw"), "127.0.0.1:7070", Path("/data"))
    assert STORE.secret_key not in argv
    assert STORE.server_env["ROOT_SECRET_KEY"] == "secret"
    assert STORE.client_env["AWS_SECRET_ACCESS_KEY"] == "secret"


def test_keys_differ_each_time():
    assert new_keys() != new_keys()
