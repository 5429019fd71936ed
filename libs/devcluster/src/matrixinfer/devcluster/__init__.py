"""A local Kubernetes with one command: real components, no registry, nothing left behind.

`ControlPlane` (tier A, no root) is etcd, API server, controller manager and scheduler on loopback; nodes are simulated.
"""

from matrixinfer.devcluster.components import Options
from matrixinfer.devcluster.controlplane import ControlPlane
from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.layout import instance, repository
from matrixinfer.devcluster.node import Node

__all__ = ["ClusterError", "ControlPlane", "Node", "Options", "instance", "repository"]
