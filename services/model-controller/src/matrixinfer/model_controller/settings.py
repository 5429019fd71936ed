"""Settings of the model-controller: images that it knows, and how it takes part in the election."""

import re

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from matrixinfer.engines.engine import EngineName
from matrixinfer.model_controller.render.environment import RenderEnvironment
from matrixinfer.service.settings import ServiceSettings

__all__ = ["ModelControllerSettings"]

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class ModelControllerSettings(ServiceSettings):
    """Read from the environment, prefix `MATRIXINFER_MODEL_CONTROLLER_`."""

    model_config = SettingsConfigDict(env_prefix="MATRIXINFER_MODEL_CONTROLLER_")

    downloader_image: str = Field("matrixinfer/downloader:dev", description="Image of the downloader.")
    llamacpp_image: str = Field(
        "matrixinfer/engine-llamacpp:dev", description="Engine image of LlamaCpp workers that name none."
    )
    vllm_image: str = Field("", description="Engine image of vLLM workers that name none; empty refuses them.")
    sglang_image: str = Field("", description="Engine image of SGLang workers that name none; empty refuses them.")
    allow_file_sources: bool = Field(
        default=False, description="Allow file:// sources, which read the disk of the node; for development clusters."
    )
    termination_grace_seconds: int = Field(
        300, ge=1, le=86400, description="Longest wait for requests of an engine pod that is told to stop."
    )
    restart_grace_seconds: int = Field(
        20, ge=0, le=86400, description="How long a failed engine pod may try to come back before it is replaced."
    )
    peers_service: str = Field(
        "",
        description="Headless Service, of each namespace, by which pods share models; empty shares nothing.",
    )
    peers_secret: str = Field(
        "matrixinfer-peers", description="Secret, of each namespace, whose `token` such pods share."
    )
    workers: int = Field(16, ge=1, le=512, description="Models that are worked on at the same time.")
    writes_in_flight: int = Field(50, ge=1, le=1000, description="Writes to the API server under way at once.")
    lease_seconds: float = Field(15.0, gt=0, description="How long a lease holds without renewal.")
    renew_deadline_seconds: float = Field(10.0, gt=0, description="A holder that could not renew for this long stops.")
    lease_request_seconds: float = Field(4.0, gt=0, description="Deadline of one request for the lease.")
    retry_seconds: float = Field(2.0, gt=0, description="How often the lease is renewed, or asked for.")

    @field_validator("peers_service", "peers_secret")
    @classmethod
    def _names_an_object(cls, name: str) -> str:
        if name and not _NAME.fullmatch(name):
            raise ValueError("is not the name of an object; write its name alone, without namespace and domain")
        return name

    @property
    def render_environment(self) -> RenderEnvironment:
        """What rendering needs to know beside the Model."""
        return RenderEnvironment(
            downloader_image=self.downloader_image,
            engine_images={
                EngineName.LLAMACPP: self.llamacpp_image,
                EngineName.VLLM: self.vllm_image,
                EngineName.SGLANG: self.sglang_image,
            },
            allow_file_sources=self.allow_file_sources,
            termination_grace_seconds=self.termination_grace_seconds,
            restart_grace_seconds=self.restart_grace_seconds,
            peers_service=self.peers_service,
            peers_secret=self.peers_secret,
        )
