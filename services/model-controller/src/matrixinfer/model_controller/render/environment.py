"""What rendering needs to know beside the Model: images and spans, from the settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from matrixinfer.engines.catalog import engine_for
from matrixinfer.engines.engine import EngineName
from matrixinfer.engines.errors import EngineError
from matrixinfer.model_controller.render.errors import RenderError

__all__ = ["RenderEnvironment"]


@dataclass(frozen=True, slots=True)
class RenderEnvironment:
    """Facts of the installation. Changing the downloader's image makes new pods, because it is part of them."""

    downloader_image: str = "matrixinfer/downloader:dev"
    engine_images: Mapping[EngineName, str] = field(
        default_factory=lambda: {EngineName.LLAMACPP: "matrixinfer/engine-llamacpp:dev"}
    )
    allow_file_sources: bool = False
    termination_grace_seconds: int = 300
    restart_grace_seconds: int = 20
    peers_service: str = ""
    """Name of the headless Service by which pods find others to share models with; empty shares nothing."""
    # A name, not a secret.
    peers_secret: str = "matrixinfer-peers"  # noqa: S105
    """Name of the Secret whose `token` they share."""

    def image_for(self, backend_type: str) -> str:
        """Return the image of an engine that a worker leaves to us; empty when none is set.

        Raises:
            RenderError: no engine module exists for the type.
        """
        try:
            return self.engine_images.get(engine_for(backend_type).name, "")
        except EngineError as fault:
            raise RenderError("EngineUnsupported", str(fault)) from fault
