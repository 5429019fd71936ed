"""A small synchronous client of the API server, for bringing a cluster up and for tests that look from outside.

Owns requests with a deadline and decoded JSON. Refuses to own watching, caching and retrying: services use
`matrixinfer.kube` for that, and nothing here is on their path.

The trap: the readiness of an API server is asked before it listens, so a refused connection is an answer here.
"""

import http.client
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson

from matrixinfer.devcluster import kubeconfig
from matrixinfer.devcluster.errors import ClusterError

__all__ = ["Answer", "Api", "ApiRefusedError"]

Answer = dict[str, Any]


class ApiRefusedError(ClusterError):
    """The API server answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the API server answered {status}: {message}")
        self.status = status


class Api:
    """Requests to one API server as one identity."""

    def __init__(self, access: kubeconfig.Access, *, seconds: float = 30) -> None:
        parts = urlsplit(access.server)
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._seconds = seconds
        self._token = access.credentials.token
        self._tls = ssl.create_default_context(cadata=access.ca.decode("ascii"))
        if access.credentials.certificate:
            # The ssl module reads client certificates from files only.
            with tempfile.NamedTemporaryFile() as file:
                file.write(access.credentials.certificate + b"\n" + access.credentials.key)
                file.flush()
                self._tls.load_cert_chain(file.name)

    @classmethod
    def of(cls, path: Path) -> "Api":
        """Make a client from a kubeconfig file that `kubeconfig.write` made."""
        return cls(kubeconfig.read_access(path))

    def get(self, path: str, **query: str) -> Answer:
        """GET one object or a list."""
        return self._json("GET", path, query=query)

    def create(self, path: str, manifest: Answer) -> Answer:
        """POST a new object to its collection."""
        return self._json("POST", path, manifest)

    def patch(self, path: str, patch: Answer, kind: str = "merge") -> Answer:
        """PATCH an object (`kind`: merge or strategic-merge)."""
        return self._json("PATCH", path, patch, content_type=f"application/{kind}-patch+json")

    def apply(self, path: str, manifest: Answer, *, manager: str = "devcluster") -> Answer:
        """Server-side apply, taking over what others own."""
        query = {"fieldManager": manager, "force": "true"}
        return self._json("PATCH", path, manifest, query=query, content_type="application/apply-patch+yaml")

    def delete(self, path: str, *, grace_seconds: int | None = None, uid: str = "") -> None:
        """DELETE an object (only the one with `uid`, when given); that it is gone already is fine."""
        options: Answer = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            self._json("DELETE", path, options)
        except ApiRefusedError as refused:
            if refused.status != http.HTTPStatus.NOT_FOUND:
                raise

    def exists(self, path: str) -> bool:
        """Whether this object exists."""
        try:
            self.get(path)
        except ApiRefusedError as refused:
            if refused.status == http.HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    def watch(self, path: str, resource_version: str, *, seconds: float = 60) -> Iterator[Answer]:
        """Yield the watch events of a collection, for `seconds` at most."""
        query = {"watch": "true", "resourceVersion": resource_version, "timeoutSeconds": str(int(seconds))}
        connection = self._connection(seconds + 10)
        try:
            connection.request("GET", f"{path}?{urlencode(query)}", headers=self._headers({}))
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise ApiRefusedError(response.status, response.read().decode(errors="replace"))
            while line := response.readline():
                yield orjson.loads(line)
        finally:
            connection.close()

    def text(self, path: str, seconds: float | None = None) -> tuple[int, str]:
        """GET plain text, such as /readyz; status 0 when nobody answers."""
        try:
            status, body = self._exchange("GET", path, None, {}, seconds or self._seconds)
        except ClusterError as error:
            return 0, str(error)
        return status, body.decode(errors="replace")

    def _json(
        self,
        method: str,
        path: str,
        body: Answer | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        target = f"{path}?{urlencode(query)}" if query else path
        payload = None if body is None else orjson.dumps(body)
        status, raw = self._exchange(method, target, payload, {"Content-Type": content_type}, self._seconds)
        answer: Answer = orjson.loads(raw) if raw.startswith(b"{") else {"message": raw.decode(errors="replace")}
        if status >= http.HTTPStatus.BAD_REQUEST:
            raise ApiRefusedError(status, str(answer.get("message")))
        return answer

    def _exchange(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], seconds: float
    ) -> tuple[int, bytes]:
        connection = self._connection(seconds)
        try:
            connection.request(method, target, body, self._headers(headers))
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ClusterError(f"no answer from https://{self._host}:{self._port}: {error}") from error
        finally:
            connection.close()

    def _connection(self, seconds: float) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, self._port, timeout=seconds, context=self._tls)

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        authorization = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return {"Accept": "application/json", **authorization, **more}
