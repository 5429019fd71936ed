"""What a source URI means. Pure.

Owns the grammar of the known schemes and refuses everything else with the list of them. The trap: credentials
in a URI end up in specs, logs and `ps`, so a URI with a user part is refused, without repeating it.
"""

import re
from dataclasses import dataclass
from typing import TypeAlias

from matrixinfer.downloader.errors import Cause, DownloadError

__all__ = [
    "SCHEMES",
    "Bucket",
    "Claim",
    "Folder",
    "HubRepo",
    "Location",
    "ScopeRepo",
    "WebFolder",
    "parse",
    "without_credentials",
]

SCHEMES = ("hf", "s3", "obs", "ms", "http", "https", "pvc", "file")
"""The schemes that can be fetched from."""

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_CLAIM = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A model repository on a hub that speaks the Hugging Face protocol; `revision` is empty for the default branch."""

    repo: str
    revision: str


@dataclass(frozen=True, slots=True)
class ScopeRepo:
    """A model repository of ModelScope; `revision` is empty for the default branch."""

    repo: str
    revision: str


@dataclass(frozen=True, slots=True)
class WebFolder:
    """A folder of a web server that has a manifest, or the manifest itself; without a slash at the end."""

    url: str


@dataclass(frozen=True, slots=True)
class Bucket:
    """A prefix of a bucket, or one object in it; `needs_endpoint` when no public service has this scheme."""

    bucket: str
    prefix: str
    needs_endpoint: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """A folder or file of a volume claim that is mounted into the container."""

    claim: str
    path: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder or file of the machine, for development."""

    path: str


Location: TypeAlias = HubRepo | ScopeRepo | WebFolder | Bucket | Claim | Folder


def parse(uri: str) -> Location:
    """Return what `uri` names; raises DownloadError(BadRequest) with the fix."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        shown = f"{scheme}://" if separator else "a source without scheme"
        raise _bad(f"{shown} is not supported; use one of {known}")
    authority = rest.split("/", 1)[0]
    if "@" in authority and scheme not in ("hf", "ms"):
        raise _bad("a source must not carry credentials; give them through the environment, from a Secret")
    if any(ord(character) < 32 for character in rest):
        raise _bad("a source must not hold control characters")
    match scheme:
        case "hf":
            return _hub(rest)
        case "ms":
            repo = _hub(rest, scheme)
            return ScopeRepo(repo.repo, repo.revision)
        case "http" | "https":
            return _web(scheme, rest)
        case "s3" | "obs":
            return _bucket(scheme, rest)
        case "pvc":
            return _claim(rest)
        case _:
            return _folder(rest)


def without_credentials(uri: str) -> str:
    """Return the URI as it may be shown: without a user part, should somebody have put one in."""
    scheme, separator, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    # hf://name@revision has no user part; one with a password in it is not a revision.
    return f"{scheme}{separator}{host}{slash}{path}" if at and (scheme not in ("hf", "ms") or ":" in user) else uri


def _web(scheme: str, rest: str) -> WebFolder:
    host, _, path = rest.partition("/")
    if not host or "?" in rest or "#" in rest:
        raise _bad(f"{scheme}:// needs a host and a folder, without a query; write {scheme}://host/folder")
    inner = _inner(path)
    return WebFolder(f"{scheme}://{host}" + (f"/{inner}" if inner else ""))


def _hub(rest: str, scheme: str = "hf") -> HubRepo:
    if ":" in rest.split("/", 1)[0]:
        raise _bad("a source must not carry credentials; give the token through the environment, from a Secret")
    repo, at, revision = rest.strip("/").partition("@")
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise _bad(
            f"{scheme}://{repo} names no repository; "
            f"write {scheme}://organisation/name or {scheme}://organisation/name@revision"
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise _bad(f"the revision {revision!r} is not a branch, tag or commit; write {scheme}://{repo}@revision")
    return HubRepo(repo, revision)


def _bucket(scheme: str, rest: str) -> Bucket:
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise _bad(f"{scheme}:// needs a bucket name; write {scheme}://bucket/prefix")
    return Bucket(bucket, prefix.strip("/"), needs_endpoint=scheme == "obs")


def _claim(rest: str) -> Claim:
    claim, _, path = rest.strip("/").partition("/")
    if not _CLAIM.fullmatch(claim):
        raise _bad("pvc:// needs the name of a claim; write pvc://claim/folder")
    return Claim(claim, _inner(path))


def _folder(rest: str) -> Folder:
    if not rest.startswith("/"):
        raise _bad("file:// needs an absolute path; write file:///folder")
    return Folder("/" + _inner(rest))


def _inner(path: str) -> str:
    segments = [segment for segment in path.split("/") if segment]
    if ".." in segments or "." in segments:
        raise _bad("the path of a source must not hold '.' or '..'")
    return "/".join(segments)


def _bad(message: str) -> DownloadError:
    return DownloadError(Cause.BAD_REQUEST, message)
