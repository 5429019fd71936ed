"""Start the gateway's supervisor."""

from matrixinfer.gateway import app
from matrixinfer.gateway.settings import GatewaySettings
from matrixinfer.service.lifecycle import run_from_environment

__all__ = ["main"]


def main() -> None:
    """Read the settings and run until told to stop; never returns (raises SystemExit)."""
    run_from_environment("gateway", GatewaySettings, app.main)


if __name__ == "__main__":
    main()
