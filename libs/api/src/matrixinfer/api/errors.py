"""What is wrong with a manifest, as values: a field path, the fault, and the fix."""

from dataclasses import dataclass

__all__ = ["FieldError"]


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault of one field. `path` is written as people write it: `spec.backends[0].minReplicas`.

    `message` says what is wrong and `fix` what would be right, both without a final full stop.
    """

    path: str
    message: str
    fix: str

    def __str__(self) -> str:
        """One sentence that names the field, the fault and the fix."""
        return f"{self.path}: {self.message}; {self.fix}"
