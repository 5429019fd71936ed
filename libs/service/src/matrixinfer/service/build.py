"""Which build this is: one version for the whole suite, read from the installed package."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["build_version"]


def build_version() -> str:
    """Return the version of the suite, or `0+unknown` when it runs from a folder that was never installed."""
    try:
        return version("matrixinfer-service")
    except PackageNotFoundError:
        return "0+unknown"
