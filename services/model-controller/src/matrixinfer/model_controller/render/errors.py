"""Why something cannot be rendered: a reason for programs and a sentence for people."""

__all__ = ["RenderError"]


class RenderError(ValueError):
    """A Model that passed admission, but that nothing can be made of as it is. No retry mends it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
