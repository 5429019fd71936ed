"""Starts the infer-controller: settings from the environment, then the composition root."""

from matrixinfer.infer_controller import app
from matrixinfer.infer_controller.settings import InferControllerSettings
from matrixinfer.service.lifecycle import run_from_environment

__all__ = ["main"]


def main() -> None:
    """Run until told to stop; never returns."""
    run_from_environment("infer-controller", InferControllerSettings, app.main)


if __name__ == "__main__":
    main()
