"""Wiring of the autoscaler: the only place that knows concrete classes."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from matrixinfer.api.names import INFER_ENTRY
from matrixinfer.api.v1alpha1.autoscaling import AutoscalingPolicyBinding
from matrixinfer.autoscaler import metrics
from matrixinfer.autoscaler.collect.scrape import Scraper
from matrixinfer.autoscaler.observe import Stores, by_policy, by_target, pods_of
from matrixinfer.autoscaler.plan import plan_binding, plan_policy, unwritten
from matrixinfer.autoscaler.rounds import Memory, Rounds
from matrixinfer.autoscaler.seen import BindingSeen, PolicySeen
from matrixinfer.autoscaler.settings import AutoscalerSettings
from matrixinfer.autoscaler.views import BINDING, BINDINGS, INFER, INFERS, POLICIES, POLICY, InferView
from matrixinfer.kube.apply import Failure
from matrixinfer.kube.cache import Cache
from matrixinfer.kube.client import Client
from matrixinfer.kube.codec import PODS_SLIM
from matrixinfer.kube.controller import Controller
from matrixinfer.kube.election import ElectionSettings
from matrixinfer.kube.errors import LeaseLost
from matrixinfer.kube.manager import Manager
from matrixinfer.kube.plan import Plan, WriteStatus
from matrixinfer.kube.resource import PODS, Key
from matrixinfer.kube.sources import mapped
from matrixinfer.kube.store import Change
from matrixinfer.service.clock import monotonic, utcnow
from matrixinfer.service.exits import Exit, ExitCode
from matrixinfer.service.lifecycle import Lifecycle

__all__ = ["FIELD_MANAGER", "Bindings", "Policies", "main", "stores"]

FIELD_MANAGER = "matrixinfer-autoscaler"


@dataclass(frozen=True, slots=True)
class Bindings:
    """The reconciler of bindings."""

    stores: Stores
    memory: Memory

    def observe(self, key: Key) -> BindingSeen | None:
        """What a binding is about, with its latest verdict."""
        return self.stores.seen(key, self.memory)

    def plan(self, seen: BindingSeen, now: datetime) -> Plan:
        """Status and replicas."""
        return plan_binding(seen, now)


@dataclass(frozen=True, slots=True)
class Policies:
    """The reconciler of policies: only their status."""

    stores: Stores

    def observe(self, key: Key) -> PolicySeen | None:
        """A policy and the number of its bindings."""
        policy = self.stores.policies.get(key)
        return None if policy is None else PolicySeen(policy, len(self.stores.bindings.by_index("policy", str(key))))

    def plan(self, seen: PolicySeen, now: datetime) -> Plan:
        """Status."""
        return plan_policy(seen, now)


def stores(cache: Cache) -> Stores:
    """Declare the watches; only entry pods are cached, they are the ones that serve metrics."""
    return Stores(
        bindings=cache.watch(BINDING, project=BINDINGS, indexes={"target": by_target, "policy": by_policy}),
        policies=cache.watch(POLICY, project=POLICIES),
        infers=cache.watch(INFER, project=INFERS),
        pods=cache.watch(PODS, label_selector=f"{INFER_ENTRY}=true", project=PODS_SLIM, indexes={"infer": pods_of}),
    )


def controllers(caches: Stores, memory: Memory) -> tuple[Controller[BindingSeen], Controller[PolicySeen]]:
    """The two controllers, and what wakes them. Pods wake nobody: the rounds look at them."""

    def of_policy(binding: AutoscalingPolicyBinding) -> Iterable[Key]:
        return (Key(binding.metadata.namespace, binding.spec.policy_ref.name),)

    def bindings_of_infer(infer: InferView) -> Iterable[Key]:
        return _keys(caches.bindings.by_index("target", str(infer.key)))

    bindings = Controller(
        "bindings",
        caches.bindings,
        Bindings(caches, memory),
        sources=[
            mapped(caches.infers, bindings_of_infer),
            mapped(
                caches.policies,
                lambda policy: _keys(
                    caches.bindings.by_index("policy", str(Key(policy.metadata.namespace, policy.metadata.name)))
                ),
            ),
        ],
        field_manager=FIELD_MANAGER,
        explain=_explain,
    )
    policies = Controller(
        "policies",
        caches.policies,
        Policies(caches),
        sources=[mapped(caches.bindings, of_policy)],
        field_manager=FIELD_MANAGER,
        workers=4,
    )
    return bindings, policies


async def main(lifecycle: Lifecycle, settings: AutoscalerSettings) -> None:
    """Run until told to stop."""
    metrics.start_at_zero()
    connected = asyncio.Event()
    lifecycle.ready_when("api-server", lambda: connected.is_set() or "connecting to the API server")
    async with (
        await Client.connect(settings.kubeconfig, user_agent=FIELD_MANAGER) as client,
        Scraper(concurrency=settings.scrapes_at_once, deadline_seconds=settings.scrape_seconds) as scraper,
    ):
        cache = Cache(client)
        caches, memory = stores(cache), Memory()
        bindings, policies = controllers(caches, memory)
        rounds = Rounds(
            caches,
            scraper,
            memory,
            bindings.enqueue,
            period_seconds=settings.period_seconds,
            now=utcnow,
            monotonic=monotonic,
        )
        caches.infers.subscribe(lambda change: rounds.call() if is_wake_up(change) else None)
        manager = Manager(
            client,
            cache,
            (bindings, policies),
            component="autoscaler",
            election=ElectionSettings(
                name=FIELD_MANAGER,
                namespace=settings.namespace,
                identity=settings.pod_name or FIELD_MANAGER,
            ),
            leader_tasks=(rounds.run,),
            drain_seconds=settings.drain_seconds,
        )
        lifecycle.ready_when("caches", lambda: manager.ready or "waiting for the first lists")
        lifecycle.debug_page("decisions", memory.sentences)
        lifecycle.debug_page("leading", lambda: {"leading": manager.leading})
        connected.set()
        try:
            await manager.run(lifecycle.stopping)
        except LeaseLost as exc:
            raise Exit(ExitCode.LEASE_LOST, str(exc)) from exc


def is_wake_up(change: Change[InferView]) -> bool:
    """Whether the gateway has just asked for a target that has no replica. Of targets known before only: what was
    listed at the start is decided in the first round anyway."""
    old, new = change.old, change.new
    return old is not None and new is not None and new.wake_up != old.wake_up and new.replicas == 0


def _explain(seen: BindingSeen, plan: Plan, failures: Sequence[Failure], now: datetime) -> Sequence[WriteStatus]:
    """Say in the status what the API server refused."""
    return (unwritten(seen, "; ".join(map(str, failures)) or plan.why, now),)


def _keys(bindings: Iterable[AutoscalingPolicyBinding]) -> Iterable[Key]:
    return [Key(binding.metadata.namespace, binding.metadata.name) for binding in bindings]
