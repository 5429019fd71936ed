"""`matrixinfer-autoscaler`, also `python -m matrixinfer.autoscaler`: settings, then run."""

from matrixinfer.autoscaler import app
from matrixinfer.autoscaler.settings import AutoscalerSettings
from matrixinfer.service.lifecycle import run_from_environment

__all__ = ["main"]


def main() -> None:
    """Run the service; never returns."""
    run_from_environment("autoscaler", AutoscalerSettings, app.main)


if __name__ == "__main__":
    main()
