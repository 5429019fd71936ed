"""What goes wrong with engine knowledge: both errors carry a sentence a user can act on."""

__all__ = ["ConfigRefused", "EngineError", "UnsupportedBackend"]


class EngineError(ValueError):
    """Base of everything this package raises."""


class UnsupportedBackend(EngineError):
    """No engine module exists for this backend type."""


class ConfigRefused(EngineError):
    """A worker's `config` cannot become command-line flags; `key` is the offending member, "" for the whole."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
