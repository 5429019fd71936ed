"""Starts the model-controller: settings from the environment, then the composition root."""

from matrixinfer.model_controller import app
from matrixinfer.model_controller.settings import ModelControllerSettings
from matrixinfer.service.lifecycle import run_from_environment

__all__ = ["main"]


def main() -> None:
    """Run until told to stop; never returns."""
    run_from_environment("model-controller", ModelControllerSettings, app.main)


if __name__ == "__main__":
    main()
