"""Admission reviews as values: bytes to a question, a verdict to bytes, and the two verdicts in between.

Pure; all rules are those of `matrixinfer.api`. What is not ours to judge (other kinds, subresources, objects that are
being deleted, writes that leave an old object's spec alone) is allowed, so that a mistake of this service or a rule
that came later can never hold up somebody's finalizer.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jsonpatch
import orjson

from matrixinfer.api.errors import FieldError
from matrixinfer.api.v1alpha1 import validation
from matrixinfer.api.v1alpha1.defaults import with_defaults
from matrixinfer.api.v1alpha1.kinds import ALL_KINDS
from matrixinfer.webhook.references import Reference, references_of

__all__ = ["MalformedReview", "Question", "Verdict", "answer", "defaulted", "parse", "validated"]

Object = Mapping[str, Any]

_OURS: Final = frozenset((kind.group, kind.kind) for kind in ALL_KINDS)
_MAX_WARNINGS: Final = 10
_MAX_WARNING_CHARACTERS: Final = 250
# Whoever clears up after a deleted owner or namespace must not be asked.
_CLEANERS: Final = ("system:serviceaccount:kube-system:", "system:kube-controller-manager")


class MalformedReview(Exception):
    """The body is no AdmissionReview of version v1."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the API server wants to know."""

    uid: str
    operation: str
    group: str
    kind: str
    namespace: str
    name: str
    user: str
    new: Object | None
    old: Object | None
    subresource: str = ""

    @property
    def is_ours(self) -> bool:
        """True for a write of one of our kinds itself, not of a subresource."""
        return (self.group, self.kind) in _OURS and not self.subresource


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer: allowed or not, why not, what to change, what to say."""

    errors: Sequence[FieldError] = ()
    patch: Sequence[Mapping[str, Any]] = ()
    warnings: Sequence[str] = field(default=())
    failure: str = ""
    """Set when the review could not be judged."""

    @property
    def allowed(self) -> bool:
        """True when the write may go on."""
        return not self.errors and not self.failure


def parse(raw: bytes) -> Question:
    """Return the question in an AdmissionReview; raises MalformedReview."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise MalformedReview(f"the body is not JSON: {exc}") from exc
    if not isinstance(body, dict) or body.get("apiVersion") != "admission.k8s.io/v1":
        raise MalformedReview("the body is not an AdmissionReview of admission.k8s.io/v1")
    request = body.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str) or not request["uid"]:
        raise MalformedReview("the AdmissionReview has no request with a uid")
    kind, user = _object(request.get("kind")) or {}, _object(request.get("userInfo")) or {}
    return Question(
        uid=request["uid"],
        operation=_text(request.get("operation")),
        group=_text(kind.get("group")),
        kind=_text(kind.get("kind")),
        namespace=_text(request.get("namespace")),
        name=_text(request.get("name")),
        user=_text(user.get("username")),
        new=_object(request.get("object")),
        old=_object(request.get("oldObject")),
        subresource=_text(request.get("subResource")),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _object(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def defaulted(question: Question) -> Verdict:
    """Return the patch that fills in what the object leaves out, or say what is wrong with it.

    The API server checks its schema after this step and before `validated`: what is refused here is refused with the
    sentence that names the fix, and not with the pattern of the schema.
    """
    if not question.is_ours or question.new is None or _is_going(question.new):
        return Verdict()
    filled = with_defaults(question.new)
    errors = () if _leaves_spec_alone(filled, question.old) else validation.validate(filled, question.old)
    if errors:
        return Verdict(errors=errors)
    if filled == question.new:
        return Verdict()
    return Verdict(patch=list(jsonpatch.make_patch(question.new, filled)))


def validated(question: Question, exists: Callable[[Reference], bool]) -> Verdict:
    """Say what is wrong with the object, and warn of what it names that does not exist (yet)."""
    if not question.is_ours:
        return Verdict()
    if question.operation == "DELETE":
        return _deletion(question)
    new, old = question.new, question.old
    if new is None or _is_going(new) or _leaves_spec_alone(new, old):
        return Verdict()
    errors = validation.validate(new, old)
    if errors:
        return Verdict(errors=errors)
    notices = [str(notice) for notice in validation.warnings(new, old)]
    absent = [str(reference) for reference in references_of(new, question.namespace) if not exists(reference)]
    shown = tuple(_one_line(text) for text in (*notices, *absent)[:_MAX_WARNINGS])
    return Verdict(warnings=shown)


def _deletion(question: Question) -> Verdict:
    if question.old is None or question.user.startswith(_CLEANERS):
        return Verdict()
    return Verdict(errors=validation.validate_deletion(question.old))


def _is_going(manifest: Object) -> bool:
    meta = manifest.get("metadata")
    return isinstance(meta, Mapping) and meta.get("deletionTimestamp") is not None


def _leaves_spec_alone(new: Object, old: Object | None) -> bool:
    return old is not None and "spec" in old and new.get("spec") == old.get("spec")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_WARNING_CHARACTERS else line[: _MAX_WARNING_CHARACTERS - 1] + "…"


def answer(question: Question, verdict: Verdict) -> bytes:
    """Return the AdmissionReview that carries the verdict."""
    response: dict[str, Any] = {"uid": question.uid, "allowed": verdict.allowed}
    if verdict.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(orjson.dumps(list(verdict.patch))).decode()
    if verdict.warnings:
        response["warnings"] = list(verdict.warnings)
    if not verdict.allowed:
        response["status"] = _status(question, verdict)
    return orjson.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})


def _status(question: Question, verdict: Verdict) -> dict[str, Any]:
    if verdict.failure:
        return {"status": "Failure", "code": 500, "reason": "InternalError", "message": verdict.failure}
    causes = [
        {"reason": "FieldValueInvalid", "message": f"{error.message}; {error.fix}", "field": error.path}
        for error in verdict.errors
    ]
    return {
        "status": "Failure",
        "code": 422,
        "reason": "Invalid",
        "message": ". ".join(str(error) for error in verdict.errors),
        # kubectl makes its sentence of these: The Model "m" is invalid: …
        "details": {"group": question.group, "kind": question.kind, "name": question.name, "causes": causes},
    }
