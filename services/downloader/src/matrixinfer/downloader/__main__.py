"""Entry point: arguments, settings, run. The process ends with the code of what happened."""

import sys
from collections.abc import Sequence

from matrixinfer.downloader import app
from matrixinfer.downloader.cli import ServeArguments, parse_arguments
from matrixinfer.downloader.settings import DownloaderSettings
from matrixinfer.service import logging
from matrixinfer.service.exits import ExitCode
from matrixinfer.service.lifecycle import run
from matrixinfer.service.logging import get_logger
from matrixinfer.service.settings import SettingsError, load

_SHORT_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> None:
    """Run `matrixinfer-downloader`; never returns."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        settings = load(DownloaderSettings)
    except SettingsError as exc:
        logging.configure("downloader")
        get_logger("main").error("settings_refused", reason=str(exc))
        sys.exit(ExitCode.MISCONFIGURED)
    workers = app.ready_workers(settings, arguments)
    try:
        run(
            "downloader",
            settings,
            lambda lifecycle: app.main(lifecycle, settings, arguments, workers),
            secrets=settings.secrets,
            # Another process of this kind may run in the same network: it must not keep a model from coming.
            admin_required=False,
            # What finds its model on the volume is done before anybody could look.
            admin_after_seconds=0.0 if isinstance(arguments, ServeArguments) else _SHORT_SECONDS,
        )
    finally:
        workers.dismiss()


if __name__ == "__main__":
    main()
