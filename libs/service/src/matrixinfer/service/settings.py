"""Settings every service has, and the way settings are read: once, from the environment, in `__main__`.

A service subclasses `ServiceSettings`, gives its prefix, and reads it with `load`. Refuses to know files,
command lines or defaults that depend on the machine. The trap: a settings object built at import time would
read the environment of whoever imports it, so nothing here builds one.
"""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["ServiceSettings", "SettingsError", "load"]


class SettingsError(Exception):
    """The environment holds a value that cannot work; the text names each variable and what is wrong with it."""


class ServiceSettings(BaseSettings):
    """Base of every service's settings.

    Subclass with `model_config = SettingsConfigDict(env_prefix="MATRIXINFER_GATEWAY_")`; the other options are
    inherited. Fields with a name outside the prefix (`POD_NAMESPACE`, `POD_NAME`, `KUBECONFIG`) are the same for all.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True)

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    # The kubelet and Prometheus come from outside the pod; the network policy keeps everybody else away.
    admin_host: str = Field("0.0.0.0", description="Address of the admin port.")  # noqa: S104
    admin_port: int = Field(9090, ge=0, le=65535, description="Admin port; 0 takes any free one.")
    drain_seconds: float = Field(30.0, ge=0, description="Time running work gets to finish after SIGTERM.")
    namespace: str = Field(
        "matrixinfer-system",
        validation_alias=AliasChoices("POD_NAMESPACE"),
        description="Namespace the process runs in.",
    )
    pod_name: str = Field("", validation_alias=AliasChoices("POD_NAME"), description="Name of the pod it runs in.")
    kubeconfig: Path | None = Field(
        None,
        validation_alias=AliasChoices("KUBECONFIG"),
        description="Kubeconfig of the API server; unset means the pod's own service account.",
    )


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def load(settings_type: type[SettingsT]) -> SettingsT:
    """Read the settings from the environment; raises SettingsError with one line per variable that is wrong."""
    try:
        return settings_type()
    except ValidationError as exc:
        lines = [f"{_variable(settings_type, str(e['loc'][0]))}: {e['msg']}" for e in exc.errors() if e["loc"]]
        # The values themselves stay out of the text: one of them may be a credential.
        raise SettingsError("; ".join(lines) or "the settings contradict each other") from None


def _variable(settings_type: type[ServiceSettings], field: str) -> str:
    prefix = settings_type.model_config.get("env_prefix", "")
    return f"{prefix}{field}".upper() if field in settings_type.model_fields else field
