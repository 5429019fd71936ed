"""The command line: `python -m matrixinfer.devcluster {up,down,status,env,build,…}`."""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence

from matrixinfer.devcluster import state
from matrixinfer.devcluster.binaries import EXTRAS, build, build_extra, build_pause
from matrixinfer.devcluster.components import Options
from matrixinfer.devcluster.controlplane import ControlPlane
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.layout import instance

__all__ = ["main"]

_STARTED = time.monotonic()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="matrixinfer-devcluster", description="A local Kubernetes with one command.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("up", _up, "start the cluster, or do nothing when it is up; cleans up after a killed start"),
        ("down", _down, "stop the cluster and remove all it left on the machine"),
        ("status", _status, "say what runs"),
        ("env", _env, "print shell lines that set KUBECONFIG and PATH"),
        ("keep", _keep, argparse.SUPPRESS),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(command=run)
        command.add_argument("--name", default="dev", help="which cluster of this checkout (default: dev)")
        command.add_argument("--tier", choices=("a", "b"), default="a", help="a: control plane only; b: a whole node")
        if name == "up":
            command.add_argument("--scheduler-qps", type=int, default=0, help="lift the scheduler's client throttle")
            command.add_argument("--node-lifecycle", action="store_true", help="nodes without heartbeat fail")
    command = commands.add_parser("build", help="build the programs (minutes, once)")
    command.add_argument("extra", nargs="*", choices=[[], *EXTRAS], help="also these")
    command.set_defaults(command=_build)
    return parser


def _say(text: str) -> None:
    print(f"[{time.monotonic() - _STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


def _up(arguments: argparse.Namespace) -> int:
    options = Options(node_lifecycle=arguments.node_lifecycle, scheduler_qps=arguments.scheduler_qps)
    plane = ControlPlane.up(arguments.name, options=options, say=_say)
    _say(f"{arguments.name}: {plane.base_url}, KUBECONFIG={plane.kubeconfig}")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    ControlPlane(instance(arguments.name)).down()
    return 0


def _status(arguments: argparse.Namespace) -> int:
    plane = ControlPlane(instance(arguments.name))
    found = state.load(plane.place)
    running = plane.ledger.running()
    for name, who in running.items():
        print(f"{name:28} pid {who.pid}")
    up = plane.is_up()
    print(f"{arguments.name}: " + (f"up (tier {found.tier}) at {found.server}" if up and found else "not up"))
    return 0 if up else 3


def _env(arguments: argparse.Namespace) -> int:
    plane = ControlPlane.attach(arguments.name)
    if plane is None:
        raise ClusterError(f"{arguments.name} is not up; `python -m matrixinfer.devcluster up --name {arguments.name}`")
    print(f"export KUBECONFIG={shlex.quote(str(plane.kubeconfig))}")
    print(f'export PATH={shlex.quote(str(plane.kubectl.parent))}:"$PATH"')
    return 0


def _keep(arguments: argparse.Namespace) -> int:
    """Take the cluster down when its last borrower is gone, however it went."""
    plane = ControlPlane(instance(arguments.name))
    while (found := state.load(plane.place)) is not None and not found.kept:
        state.wait_until_unused(plane.place)
        plane.down_if_unused()
    return 0


def _build(arguments: argparse.Namespace) -> int:
    print(build(_say).folder)
    print(build_pause(_say))
    for name in arguments.extra:
        print(build_extra(name, _say))
    return 0


if __name__ == "__main__":
    sys.exit(main())
