"""Single decisions of the renderers, one at a time; the whole is in test_golden."""

from typing import Any

import pytest

from matrixinfer.api import names
from matrixinfer.api.v1alpha1.model import Model
from matrixinfer.api.v1alpha1.validation import validate
from matrixinfer.engines.engine import EngineName
from matrixinfer.model_controller.desired import Desired, desired
from matrixinfer.model_controller.render.environment import RenderEnvironment
from matrixinfer.model_controller.render.errors import RenderError
from matrixinfer.model_controller.resources import BINDINGS, INFERS, POLICIES, ROUTES, SERVERS

IMAGES = {EngineName.VLLM: "example/vllm:1", EngineName.LLAMACPP: "example/llama:1", EngineName.SGLANG: "example/sg:1"}
ENVIRONMENT = RenderEnvironment(downloader_image="example/downloader:1", engine_images=IMAGES)


def model(*backends: dict[str, Any], **spec: Any) -> Model:
    made = [
        {
            "name": "b",
            "type": "vLLM",
            "modelURI": "s3://models/m",
            "minReplicas": 1,
            "maxReplicas": 1,
            "workers": [{}],
            **backend,
        }
        for backend in backends or ({},)
    ]
    return Model.model_validate(
        {
            "apiVersion": "registry.matrixinfer.ai/v1alpha1",
            "kind": "Model",
            "metadata": {"name": "m", "namespace": "llm", "uid": "u"},
            "spec": {"backends": made, **spec},
        }
    )


def rendered(made: Model, environment: RenderEnvironment = ENVIRONMENT) -> Desired:
    found = desired(made, {}, environment)
    assert [str(fault) for child in found.children for fault in validate(child.manifest)] == []
    return found


def one(found: Desired, resource: Any) -> dict[str, Any]:
    (child,) = found.of(resource)
    return child.manifest["spec"]


def roles(made: Model) -> list[dict[str, Any]]:
    return one(rendered(made), INFERS)["template"]["roles"]


def pod(made: Model, template: str = "entryTemplate") -> dict[str, Any]:
    return roles(made)[0][template]["spec"]


def engine(made: Model) -> dict[str, Any]:
    return pod(made)["containers"][0]


def volume(made: Model) -> dict[str, Any]:
    return next(found for found in pod(made)["volumes"] if found["name"] == "models")


def mount(made: Model) -> dict[str, Any]:
    return next(found for found in engine(made)["volumeMounts"] if found["name"] == "models")


def test_without_a_cache_every_pod_keeps_its_own_files():
    assert volume(model())["emptyDir"] == {}


@pytest.mark.parametrize("uri", ["hostpath:///var/cache", "hostpath://var/cache/"])
def test_a_folder_of_the_node_is_made_and_filled_by_a_root_without_capabilities(uri: str):
    made = model({"cacheURI": uri})
    assert volume(made)["hostPath"] == {"path": "/var/cache", "type": "DirectoryOrCreate"}
    security = pod(made)["initContainers"][0]["securityContext"]
    assert (security["runAsUser"], security["capabilities"]) == (0, {"drop": ["ALL"]})


def test_a_claim_is_mounted_read_only_in_the_engine_and_at_its_folder():
    made = model({"cacheURI": "pvc://weights/team/a"})
    assert volume(made)["persistentVolumeClaim"] == {"claimName": "weights"}
    assert mount(made) == {"name": "models", "mountPath": "/models", "subPath": "team/a", "readOnly": True}
    assert "readOnly" not in pod(made)["initContainers"][0]["volumeMounts"][0]


def test_a_claim_as_source_is_mounted_where_the_downloader_looks():
    made = model({"modelURI": "pvc://weights/m"})
    mounts = pod(made)["initContainers"][0]["volumeMounts"]
    assert {"name": "source-0", "mountPath": "/claims/weights", "readOnly": True} in mounts


def test_a_file_source_needs_to_be_allowed():
    with pytest.raises(RenderError, match="does not allow") as refusal:
        rendered(model({"modelURI": "file:///data/m"}))
    assert refusal.value.reason == "SourceRefused"
    allowed = RenderEnvironment(engine_images=IMAGES, allow_file_sources=True)
    found = one(rendered(model({"modelURI": "file:///data/m"}), allowed), INFERS)["template"]["roles"][0]
    assert {"name": "source-0", "hostPath": {"path": "/data/m"}} in found["entryTemplate"]["spec"]["volumes"]


@pytest.mark.parametrize("uri", ["pvc://weights/../../etc", "hostpath:///a/../b", "pvc:///"])
def test_a_cache_that_leads_nowhere_good_is_refused(uri: str):
    with pytest.raises(RenderError) as refusal:
        rendered(model({"cacheURI": uri}))
    assert refusal.value.reason == "CacheRefused"


def test_different_sources_have_different_folders_of_one_cache():
    paths = {mount_arguments(model({"modelURI": uri})) for uri in ("s3://a/b", "s3://a/c")}
    assert len(paths) == 2


def mount_arguments(made: Model) -> str:
    arguments = pod(made)["initContainers"][0]["args"]
    return arguments[arguments.index("--output") + 1]


def test_globs_reach_the_downloader():
    arguments = pod(model({"include": ["*.gguf"], "exclude": ["a", "b"]}))["initContainers"][0]["args"]
    assert arguments.count("--exclude") == 2
    assert arguments[arguments.index("--include") + 1] == "*.gguf"


def test_only_the_downloader_has_a_token():
    made = pod(model())
    assert made["automountServiceAccountToken"] is False
    holders = [c["name"] for c in [*made["initContainers"], *made["containers"]] if "token" in str(c["volumeMounts"])]
    assert holders == ["downloader"]


def test_an_adapter_is_fetched_and_named_to_the_engine():
    made = model({"loraAdapters": [{"name": "legal", "artifactURL": "s3://adapters/legal"}]})
    assert [container["name"] for container in pod(made)["initContainers"]] == ["downloader", "adapter-0"]
    argv = engine(made)["command"]
    assert any(argument.startswith("legal=/models/") for argument in argv)
    assert one(rendered(made), ROUTES)["loraAdapters"] == ["legal"]


def test_an_engine_that_takes_no_adapters_says_so():
    made = model({"type": "LlamaCpp", "loraAdapters": [{"name": "legal", "artifactURL": "s3://adapters/legal"}]})
    with pytest.raises(RenderError, match="loraAdapters") as refusal:
        rendered(made)
    assert refusal.value.reason == "ConfigRefused"


def test_an_engine_over_several_pods_has_workers_without_probes():
    made = model({"workers": [{"pods": 3, "resources": {"limits": {"nvidia.com/gpu": 8}}}]})
    assert roles(made)[0]["workerReplicas"] == 2
    worker = pod(made, "workerTemplate")["containers"][0]
    assert "readinessProbe" not in worker
    assert worker["resources"] == {"limits": {"nvidia.com/gpu": 8}}


def test_zero_pods_of_an_old_manifest_mean_one():
    assert roles(model({"workers": [{"pods": 0}]}))[0]["workerReplicas"] == 0


def test_placement_reaches_the_pods():
    made = pod(
        model(
            {
                "schedulerName": "volcano",
                "workers": [
                    {
                        "nodeSelector": {"disk": "ssd"},
                        "tolerations": [{"key": "gpu", "operator": "Exists"}],
                        "runtimeClassName": "nvidia",
                        "affinity": {"nodeAffinity": {}},
                    }
                ],
            }
        )
    )
    assert made["nodeSelector"] == {"disk": "ssd"}
    assert made["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert (made["runtimeClassName"], made["schedulerName"]) == ("nvidia", "volcano")
    assert made["affinity"] == {"nodeAffinity": {}}


def test_a_disaggregated_backend_has_two_roles_and_pairs_them():
    workers = [
        {"type": "prefill", "config": {"kv-transfer-config": {"kv_connector": "NixlConnector"}}},
        {"type": "decode"},
    ]
    found = rendered(model({"type": "vLLMDisaggregated", "workers": workers}))
    assert [role["name"] for role in one(found, INFERS)["template"]["roles"]] == ["prefill", "decode"]
    server = one(found, SERVERS)
    assert server["workloadSelector"]["pdGroup"]["groupKey"] == names.INFER_GROUP_NAME
    assert server["kvConnector"] == {"type": "nixl"}


def test_workers_of_different_ports_are_refused():
    workers = [{"type": "prefill", "config": {"port": 8001}}, {"type": "decode"}]
    with pytest.raises(RenderError, match="8000, 8001"):
        rendered(model({"type": "vLLMDisaggregated", "workers": workers}))


def test_each_backend_has_its_own_endpoints():
    found = rendered(model({"name": "a"}, {"name": "b"}))
    selectors = [child.manifest["spec"]["workloadSelector"]["matchLabels"] for child in found.of(SERVERS)]
    assert [selector[names.MODEL_BACKEND_NAME] for selector in selectors] == ["a", "b"]
    labels = found.of(INFERS)[0].manifest["spec"]["template"]["roles"][0]["entryTemplate"]["metadata"]["labels"]
    assert labels.items() >= {k: v for k, v in selectors[0].items() if not k.startswith(names.INFER_PREFIX)}.items()


def test_the_route_has_the_clients_name_and_the_server_the_engines():
    made = model({"workers": [{"config": {"served-model-name": "inner"}}]}, name="Org/Model-1B")
    assert one(rendered(made), ROUTES)["modelName"] == "Org/Model-1B"
    assert one(rendered(made), SERVERS)["model"] == "inner"
    assert "inner" in engine(made)["command"]


def test_the_match_of_the_model_is_copied():
    match = {"headers": {"x-tenant": {"prefix": "a-"}}, "uri": {"exact": "/v1/chat"}}
    assert one(rendered(model(modelMatch=match)), ROUTES)["rules"][0]["modelMatch"] == match


def test_config_that_cannot_be_flags_names_its_key():
    with pytest.raises(RenderError, match=r"config\.port") as refusal:
        rendered(model({"workers": [{"config": {"port": "http"}}]}))
    assert refusal.value.reason == "ConfigRefused"


def test_config_that_loses_against_ours_is_told():
    found = rendered(model({"workers": [{"config": {"host": "::1"}}]}))
    assert found.ignored == (("host",),)


def test_an_engine_without_a_known_image_asks_for_one():
    with pytest.raises(RenderError, match="set its image") as refusal:
        desired(model(), {}, RenderEnvironment(engine_images={}))
    assert refusal.value.reason == "ImageMissing"


def test_the_users_environment_wins_over_the_engines():
    made = engine(model({"env": [{"name": "VLLM_X", "value": "1"}]}))
    assert {"name": "VLLM_X", "value": "1"} in made["env"]
    named = [variable["name"] for variable in made["env"]]
    assert len(named) == len(set(named))


POLICY = {"metrics": [{"metricName": "matrixinfer:num_requests_waiting", "targetValue": 4}]}


def test_a_policy_of_a_backend_scales_its_modelinfer():
    found = rendered(model({"maxReplicas": 3, "autoscalingPolicy": POLICY}))
    binding = one(found, BINDINGS)
    assert binding["policyRef"] == {"name": "m-b"}
    target = binding["scalingConfiguration"]["target"]
    assert (target["targetRef"]["name"], target["role"]) == ("m-b", "leader")
    assert target["metricEndpoint"] == {"uri": "/metrics", "port": 8000}


def test_a_policy_of_the_model_shares_by_cost():
    backends = [
        {"name": n, "scalingCost": c, "scaleToZeroGracePeriod": "90s", "minReplicas": 0}
        for n, c in (("a", 3), ("b", 1))
    ]
    found = rendered(model(*backends, autoscalingPolicy=POLICY))
    binding = one(found, BINDINGS)["optimizerConfiguration"]
    assert [param["cost"] for param in binding["params"]] == [3, 1]
    assert one(found, POLICIES)["scaleToZero"] == {"idleWindow": "1m30s"}


def test_nothing_that_pods_are_made_of_depends_on_bounds_or_weights():
    before = rendered(model({"minReplicas": 1, "maxReplicas": 1, "routeWeight": 10}))
    after = rendered(model({"minReplicas": 2, "maxReplicas": 5, "routeWeight": 90}, owner="someone"))
    assert before.of(INFERS) == after.of(INFERS)
    assert before.served == after.served


SHARING = RenderEnvironment(engine_images=IMAGES, downloader_image="example/downloader:1", peers_service="peers")


def sharing_pod(made: Model) -> dict[str, Any]:
    return one(rendered(made, SHARING), INFERS)["template"]["roles"][0]["entryTemplate"]["spec"]


@pytest.mark.parametrize("backend", [{}, {"cacheURI": "hostpath:///var/cache"}])
def test_pods_with_volumes_of_their_own_serve_models_beside_the_engine(backend: dict[str, Any]):
    server, downloader = sharing_pod(model(backend))["initContainers"]
    assert (server["name"], server["restartPolicy"], server["args"]) == (
        "peers",
        "Always",
        ["serve", "--cache", "/models"],
    )
    assert server["volumeMounts"] == [{"name": "models", "mountPath": "/models", "readOnly": True}]
    security = server["securityContext"]
    assert (security["runAsNonRoot"], security["readOnlyRootFilesystem"]) == (True, True)
    assert (security["allowPrivilegeEscalation"], security["capabilities"]) == (False, {"drop": ["ALL"]})
    given = {one["name"]: one for one in downloader["env"]}
    assert given["MATRIXINFER_DOWNLOADER_PEERS"]["value"] == "peers.llm.svc"
    assert given["POD_IP"]["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"


def test_the_token_of_peers_comes_from_a_secret_that_may_be_missing_and_never_reaches_the_engine():
    made = sharing_pod(model())
    wanted = {"secretKeyRef": {"name": "matrixinfer-peers", "key": "token", "optional": True}}
    for container in made["initContainers"]:
        assert {"name": "MATRIXINFER_DOWNLOADER_PEER_TOKEN", "valueFrom": wanted} in container["env"]
    assert "PEER_TOKEN" not in str(made["containers"])
    assert "downloader-token" not in str(made["initContainers"][0])


def test_the_models_own_environment_does_not_turn_sharing_off():
    variable = {"name": "MATRIXINFER_DOWNLOADER_PEERS", "value": ""}
    downloader = sharing_pod(model({"env": [variable]}))["initContainers"][1]
    assert [one["value"] for one in downloader["env"] if one["name"] == variable["name"]] == ["peers.llm.svc"]


@pytest.mark.parametrize(
    ("backend", "environment"), [({}, ENVIRONMENT), ({"cacheURI": "pvc://weights"}, SHARING)], ids=["off", "one claim"]
)
def test_otherwise_no_pod_differs(backend: dict[str, Any], environment: RenderEnvironment):
    without = RenderEnvironment(downloader_image="example/downloader:1", engine_images=IMAGES)
    made = model(backend)
    assert one(rendered(made, environment), INFERS) == one(rendered(made, without), INFERS)
    assert "peer" not in str(one(rendered(made, environment), INFERS))
