"""The command line: `python -m matrixinfer.devcluster COMMAND`; `--help` lists the commands."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matrixinfer.devcluster import forward, state
from matrixinfer.devcluster.binaries import EXTRAS, NODE, build, build_extra, build_pause, locate
from matrixinfer.devcluster.components import Options
from matrixinfer.devcluster.controlplane import ControlPlane
from matrixinfer.devcluster.demo import CLUSTER_NAME, demo, demo_down, environment
from matrixinfer.devcluster.diagnose import findings, look
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.layout import instance
from matrixinfer.devcluster.node import Node
from matrixinfer.devcluster.progress import Progress

__all__ = ["main"]

Command = Callable[[argparse.Namespace], int]

_TIERS: Mapping[str, type[ControlPlane]] = {"a": ControlPlane, "b": Node}
_PROGRESS = Progress()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        return command(arguments)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here, `down` (or `demo-down`) cleans up", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="matrixinfer-devcluster", description="A local Kubernetes with one command.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Command, text: str, *, named: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        if named:
            command.add_argument("--name", default="dev", help="which cluster of this checkout (default: dev)")
            command.add_argument("--tier", choices=_TIERS, default="a", help="a: control plane only; b: a whole node")
        return command

    up = add("up", _up, "start the cluster; does nothing when it is up, cleans up after a killed start", named=True)
    up.add_argument("--scheduler-qps", type=int, default=0, help="lift the scheduler's client throttle")
    up.add_argument("--node-lifecycle", action="store_true", help="nodes without heartbeat fail (always so in tier b)")
    add("down", _down, "stop the cluster and remove all it left on the machine", named=True)
    add("status", _status, "say what runs", named=True)
    env = add("env", _env, "print shell lines that set KUBECONFIG and PATH, for the demo GATEWAY too")
    env.add_argument("--name", default=CLUSTER_NAME, help="which cluster of this checkout (default: the demo's)")
    load = add("load-image", _load_image, "import image archives into the node", named=True)
    load.add_argument("archive", nargs="+", type=Path)
    publish = add("publish", _publish, "forward a loopback port to a Service of the node; prints it", named=True)
    publish.add_argument("service", help="NAMESPACE/NAME:PORT")
    add("diagnose", _diagnose, "say what this machine lacks for a whole node, and the command that fixes it")
    add("build", _build, "build the Kubernetes components and the servers that tests need (minutes, once)")
    add("demo", _demo, "from nothing to a streamed answer (ENGINE=llamacpp|sim|vllm, CLUSTER=existing)")
    add("demo-down", _demo_down, "remove the demo: nothing of it is left")
    add("keep", _keep, "for internal use: take a borrowed cluster down with its last user", named=True)
    forwarder = add("forward", _forward, "for internal use: forward a port into a network namespace")
    forwarder.add_argument("--netns", type=Path, required=True)
    forwarder.add_argument("--listen", type=int, required=True)
    forwarder.add_argument("--to", required=True)
    return parser


def _cluster(name: str) -> ControlPlane:
    """Return a handle on the cluster `name`, of the tier it was started in."""
    place = instance(name)
    found = state.load(place)
    return _TIERS.get(found.tier if found else "a", ControlPlane)(place)


def _node(name: str) -> Node:
    node = Node.attach(name)
    if node is None:
        raise ClusterError(
            f"no whole node {name!r} is up: `python -m matrixinfer.devcluster up --tier b --name {name}`"
        )
    return node


def _up(arguments: argparse.Namespace) -> int:
    options = Options(node_lifecycle=arguments.node_lifecycle, scheduler_qps=arguments.scheduler_qps)
    plane = _TIERS[arguments.tier].up(arguments.name, options=options, say=_PROGRESS.say)
    _PROGRESS.say(f"{arguments.name}: {plane.base_url}, KUBECONFIG={plane.kubeconfig}")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    # A whole node's cleaning includes a control plane's, and finds what a killed `up` of either has left.
    (Node if os.geteuid() == 0 else ControlPlane)(instance(arguments.name)).down()
    return 0


def _status(arguments: argparse.Namespace) -> int:
    plane = _cluster(arguments.name)
    found = state.load(plane.place)
    for name, who in plane.ledger.running().items():
        print(f"{name:40} pid {who.pid}")
    for label, port in (found.published if found else {}).items():
        print(f"{label:40} at 127.0.0.1:{port}")
    up = plane.is_up()
    print(f"{arguments.name}: " + (f"up (tier {found.tier}) at {found.server}" if up and found else "not up"))
    return 0 if up else 3


def _env(arguments: argparse.Namespace) -> int:
    if arguments.name == CLUSTER_NAME:
        print(environment())
        return 0
    plane = _cluster(arguments.name)
    if not plane.is_up():
        raise ClusterError(f"{arguments.name} is not up; `python -m matrixinfer.devcluster up --name {arguments.name}`")
    print(f"export KUBECONFIG={shlex.quote(str(plane.kubeconfig))}")
    print(f'export PATH={shlex.quote(str(plane.kubectl.parent))}:"$PATH"')
    return 0


def _load_image(arguments: argparse.Namespace) -> int:
    node = _node(arguments.name)
    for archive in arguments.archive:
        print(*node.load_image(archive), sep="\n")
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    namespace, _, rest = arguments.service.partition("/")
    name, _, port = rest.partition(":")
    if not port.isdigit():
        raise ClusterError(f"{arguments.service!r} is not NAMESPACE/NAME:PORT")
    print(_node(arguments.name).publish(name, namespace, int(port)))
    return 0


def _diagnose(_: argparse.Namespace) -> int:
    found = findings(look(instance("dev").folder, built=locate(NODE) is not None))
    for each in found:
        print(f"{'missing' if each.fatal else 'note'}: {each.problem}\n    {each.fix}")
    if not found:
        print("a whole node can run here")
    return 1 if any(each.fatal for each in found) else 0


def _build(_: argparse.Namespace) -> int:
    print(build(_PROGRESS.say).folder)
    print(build_pause(_PROGRESS.say))
    for name in EXTRAS:
        print(build_extra(name, _PROGRESS.say))
    return 0


def _demo(_: argparse.Namespace) -> int:
    # An empty value is what `make` passes for a variable that nobody set.
    demo(os.environ.get("ENGINE") or "llamacpp", os.environ.get("CLUSTER") or "", _PROGRESS)
    return 0


def _demo_down(_: argparse.Namespace) -> int:
    demo_down(_PROGRESS)
    return 0


def _keep(arguments: argparse.Namespace) -> int:
    """Take the cluster down when its last borrower is gone, however it went."""
    plane = _TIERS[arguments.tier](instance(arguments.name))
    while (found := state.load(plane.place)) is not None and not found.kept:
        state.wait_until_unused(plane.place)
        plane.down_if_unused()
    return 0


def _forward(arguments: argparse.Namespace) -> int:
    address, _, port = arguments.to.rpartition(":")
    forward.serve(arguments.netns, arguments.listen, address, int(port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
