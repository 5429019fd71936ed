"""The real vLLM that deploy/engines/vllm/install.sh installs: where it is, and the model that came with it.

Owns finding it and saying what to run when it is missing. Refuses to install it: 1 GB is for the user to decide.
"""

import os
from pathlib import Path

from matrixinfer.devcluster.errors import ClusterError
from matrixinfer.devcluster.layout import repository

__all__ = ["INSTALLER", "VLLM_HOME", "vllm_model_files"]

INSTALLER = "deploy/engines/vllm/install.sh"
VLLM_HOME = "MATRIXINFER_VLLM_HOME"
"""The environment variable that names another folder than .cache/engines/vllm."""


def vllm_model_files() -> list[Path]:
    """Return the files of the converted model. Raises `ClusterError` when the installation is missing or unfinished."""
    home = Path(os.environ.get(VLLM_HOME) or repository() / ".cache" / "engines" / "vllm")
    if not (home / "installed").is_file():
        raise ClusterError(f"no vLLM is installed in {home}; run {INSTALLER} (downloads 1 GB, takes minutes)")
    return sorted(path for path in (home / "model").iterdir() if path.is_file())
