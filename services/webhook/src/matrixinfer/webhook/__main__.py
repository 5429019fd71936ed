"""Starts the webhook: settings from the environment, then the composition root."""

from matrixinfer.service.lifecycle import run_from_environment
from matrixinfer.webhook import app
from matrixinfer.webhook.settings import WebhookSettings

__all__ = ["main"]


def main() -> None:
    """Run until told to stop; never returns."""
    run_from_environment("webhook", WebhookSettings, app.main)


if __name__ == "__main__":
    main()
