"""What a role grants, set against what the audit log shows."""

from matrixinfer.testkit.permissions import Permission, granted, refused, used

USER = "system:serviceaccount:matrixinfer-system:gateway"


def event(
    verb: str, resource: str, *, group: str = "", subresource: str = "", decision: str = "allow", user: str = USER
):
    ref = {"resource": resource, "apiGroup": group, "subresource": subresource}
    return {
        "user": {"username": user},
        "verb": verb,
        "objectRef": {k: v for k, v in ref.items() if v},
        "annotations": {"authorization.k8s.io/decision": decision},
    }


def test_a_rule_grants_the_product_of_its_lists():
    rules = [{"apiGroups": ["", "apps"], "resources": ["pods", "pods/status"], "verbs": ["get", "list"]}]
    assert len(granted(rules)) == 8
    assert Permission("apps", "pods/status", "list") in granted(rules)


def test_only_the_named_user_counts():
    events = [event("get", "pods"), event("list", "pods", user="system:serviceaccount:x:other")]
    assert used(events, USER) == {Permission("", "pods", "get")}


def test_a_subresource_is_spelt_as_roles_spell_it():
    assert used([event("patch", "modelroutes", group="networking.matrixinfer.ai", subresource="status")], USER) == {
        Permission("networking.matrixinfer.ai", "modelroutes/status", "patch")
    }


def test_a_refused_request_is_lacking_not_used():
    events = [event("delete", "pods", decision="forbid")]
    assert used(events, USER) == frozenset()
    assert [str(p) for p in refused(events, USER)] == ["delete pods"]


def test_an_apply_that_makes_its_object_needs_the_right_to_create():
    made = {**event("patch", "pods"), "responseStatus": {"code": 201}}
    assert used([made], USER) == {Permission("", "pods", "patch"), Permission("", "pods", "create")}
