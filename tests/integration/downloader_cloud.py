"""A cloud on loopback: an object store that is strict about signatures, and the places that give keys for it.

Signatures are checked with botocore's signer, so that ours is not its own judge. Temporary keys have a token and an
end, as those of a real token service do; what is asked of each place is counted.
"""

import json
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

__all__ = ["DOMAIN", "REGION", "ROLE", "Cloud"]

REGION = "eu-test-1"
DOMAIN = "s3.cloud.test"
ROLE = "arn:aws:iam::123456789012:role/models"


@dataclass
class Grant:
    """What one access key is worth."""

    secret: str
    token: str = ""
    ends: datetime | None = None


@dataclass
class Cloud:
    """One store with one bucket, and its token services."""

    objects: dict[str, bytes]
    bucket: str = "models"
    region: str = REGION
    is_public: bool = False
    grants: dict[str, Grant] = field(default_factory=dict)
    identity: str = "identity-1"
    """The only web identity token that is accepted."""
    lifetime: timedelta = timedelta(hours=1)
    has_imds_v2: bool = True
    sts_error: tuple[int, str] | None = None
    revoke_after_reads: int | None = None
    may_read: bool = True
    skew: timedelta = timedelta()
    asked: dict[str, int] = field(default_factory=dict)
    hosts: set[str] = field(default_factory=set)
    read_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Cloud":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cloud": self}))
        self._server.daemon_threads = True
        self._server.handle_error = self.handle_error  # type: ignore[method-assign]  # a client may leave
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that left is part of what is tested."""

    def count(self, place: str) -> None:
        with self.lock:
            self.asked[place] = self.asked.get(place, 0) + 1

    def new_keys(self, place: str) -> dict[str, str]:
        """Give out fresh temporary keys."""
        self.count(place)
        number = len(self.grants)
        ends = datetime.now(UTC) + self.lifetime
        self.grants[f"key-{number}"] = Grant(f"secret-{number}", f"token-{number}", ends)
        return {
            "Code": "Success",
            "AccessKeyId": f"key-{number}",
            "SecretAccessKey": f"secret-{number}",
            "Token": f"token-{number}",
            "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def revoke(self) -> None:
        """End all keys now, whatever was said when they were given."""
        for grant in self.grants.values():
            grant.ends = datetime.now(UTC) - timedelta(seconds=1)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cloud: Cloud

    def log_message(self, *_: object) -> None:
        pass

    def do_PUT(self) -> None:
        if self.path == "/latest/api/token" and self.cloud.has_imds_v2:
            self.cloud.count("imds-token")
            self.send(200, b"imds-token")
        else:
            self.send(403, b"")

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if self.cloud.sts_error:
            status, code = self.cloud.sts_error
            self.cloud.count("sts-error")
            self.send(status, f"<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>".encode())
            return
        assert form["Action"] == ["AssumeRoleWithWebIdentity"]
        assert form["RoleArn"] == [ROLE]
        assert "Authorization" not in self.headers
        if form["WebIdentityToken"] != [self.cloud.identity]:
            self.cloud.count("sts-error")
            self.send(400, b"<ErrorResponse><Error><Code>InvalidIdentityToken</Code></Error></ErrorResponse>")
            return
        keys = self.cloud.new_keys("sts")
        keys["SessionToken"] = keys.pop("Token")
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in keys.items() if name != "Code")
        answer = (
            f"<AssumeRoleWithWebIdentityResult><Credentials>{inner}</Credentials></AssumeRoleWithWebIdentityResult>"
        )
        self.send(200, f"<AssumeRoleWithWebIdentityResponse>{answer}</AssumeRoleWithWebIdentityResponse>".encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/latest/meta-data/iam/security-credentials/"):
            self.instance(self.path.removeprefix("/latest/meta-data/iam/security-credentials/"))
        elif self.path == "/pod-identity":
            if self.headers.get("Authorization") == self.cloud.identity:
                self.send(200, json.dumps(self.cloud.new_keys("pod-identity")).encode())
            else:
                self.send(401, b"{}")
        else:
            self.store()

    def instance(self, role: str) -> None:
        if self.cloud.has_imds_v2 and self.headers.get("x-aws-ec2-metadata-token") != "imds-token":
            self.send(401, b"")
        elif role:
            self.send(200, json.dumps(self.cloud.new_keys("imds")).encode())
        else:
            self.send(200, b"node-role")

    def store(self) -> None:
        # A proxy is sent the whole address.
        url = urlsplit(self.path)
        host, path = self.headers["Host"], unquote(url.path)
        self.cloud.hosts.add(host)
        if host == f"{self.cloud.bucket}.{DOMAIN}":
            bucket, key = self.cloud.bucket, path[1:]
        else:
            bucket, _, key = path[1:].partition("/")
        if refusal := self.refusal(url.path, url.query):
            self.error(403 if refusal != "ExpiredToken" else 400, refusal)
        elif bucket != self.cloud.bucket:
            self.error(404, "NoSuchBucket")
        elif not key:
            self.listing(parse_qs(url.query).get("prefix", [""])[0])
        elif not self.cloud.may_read:
            self.error(403, "AccessDenied")
        else:
            self.object(key)

    def refusal(self, path: str, query: str) -> str:
        """Why the store refuses the request; empty when it does not."""
        signature = self.headers.get("Authorization", "")
        if not signature:
            return "" if self.cloud.is_public else "AccessDenied"
        fields = dict(part.strip().split("=", 1) for part in signature.removeprefix("AWS4-HMAC-SHA256 ").split(","))
        access_key, _, region, _, _ = fields["Credential"].split("/")
        grant = self.cloud.grants.get(access_key)
        if grant is None:
            return "InvalidAccessKeyId"
        if self.cloud.skew:
            return "RequestTimeTooSkewed"
        if region != self.cloud.region:
            return "AuthorizationHeaderMalformed"
        if self.headers.get("x-amz-security-token", "") != grant.token:
            return "InvalidToken"
        if grant.ends and grant.ends < datetime.now(UTC):
            return "ExpiredToken"
        names = fields["SignedHeaders"].split(";")
        asked = AWSRequest(self.command, f"http://{self.headers['Host']}{path}" + (f"?{query}" if query else ""))
        for name in names:
            asked.headers[name] = self.headers[name]
        asked.context["timestamp"] = self.headers["x-amz-date"]
        signer = S3SigV4Auth(Credentials(access_key, grant.secret), "s3", region)
        expected = signer.signature(signer.string_to_sign(asked, signer.canonical_request(asked)), asked)
        return "" if "host" in names and fields["Signature"] == expected else "SignatureDoesNotMatch"

    def listing(self, prefix: str) -> None:
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size><ETag>&quot;{hash(content)}&quot;</ETag></Contents>"
            for key, content in sorted(self.cloud.objects.items())
            if key.startswith(prefix)
        )
        self.send(200, f"<ListBucketResult>{found}</ListBucketResult>".encode())

    def object(self, key: str) -> None:
        content = self.cloud.objects[key]
        status, headers = 200, {"ETag": f'"{hash(content)}"'}
        if asked := self.headers.get("Range"):
            first, last = (int(n) for n in asked.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        self.cloud.count(self.command)
        is_last = self.command == "GET" and self.cloud.asked["GET"] == self.cloud.revoke_after_reads
        if self.command == "GET":
            with self.cloud.lock:
                self.cloud.read_bytes += len(content) // 2 if is_last else len(content)
        if is_last:
            # The keys end while the answer is under way, and so does the connection.
            self.cloud.revoke()
        self.send(status, content, headers, cut=len(content) // 2 if is_last else None)

    def error(self, status: int, code: str) -> None:
        region = f"<Region>{self.cloud.region}</Region>" if code == "AuthorizationHeaderMalformed" else ""
        date = (datetime.now(UTC) + self.cloud.skew).strftime("%a, %d %b %Y %H:%M:%S GMT")
        self.send(status, f"<Error><Code>{code}</Code>{region}</Error>".encode(), {"Date": date})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True
