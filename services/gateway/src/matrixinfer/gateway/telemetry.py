"""The settings of tracing: OpenTelemetry's own variables, so that what a platform sets for all of its services works.

Nothing is traced until an endpoint is set. Spans travel as OTLP over HTTP in JSON, which every collector takes at the
port of OTLP over HTTP (4318). The trap: an endpoint for gRPC (4317) would swallow every span in silence, so asking for
gRPC is refused at start.
"""

import re
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator

from matrixinfer.gateway.export import ExportSettings
from matrixinfer.service.build import build_version
from matrixinfer.service.settings import ServiceSettings

__all__ = ["TelemetrySettings"]

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t -~]*")


class TelemetrySettings(ServiceSettings):
    """What the OTEL_… variables say of traces. Times in milliseconds, as the specification has them."""

    otel_disabled: bool = Field(False, validation_alias=AliasChoices("OTEL_SDK_DISABLED"), description="Trace nothing.")
    otel_exporter: Literal["otlp", "none"] = Field(
        "otlp", validation_alias=AliasChoices("OTEL_TRACES_EXPORTER"), description="`none` traces nothing."
    )
    otel_protocol: Literal["http/json", "http/protobuf"] = Field(
        "http/json",
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
        description="Always sent as http/json, which whoever takes http/protobuf takes too; gRPC is not spoken.",
    )
    otel_endpoint: str = Field(
        "",
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="URL of a collector; /v1/traces is added. Empty traces nothing.",
    )
    otel_traces_endpoint: str = Field(
        "",
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        description="The whole URL instead.",
    )
    otel_headers: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"),
        description="Headers of every export: `name=value,name=value`, values percent-encoded.",
    )
    otel_ca_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"),
        description="CA of a collector that speaks https.",
    )
    otel_timeout: int = Field(
        10_000,
        gt=0,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"),
        description="Longest export.",
    )
    otel_delay: int = Field(
        5_000,
        ge=0,
        validation_alias=AliasChoices("OTEL_BSP_SCHEDULE_DELAY"),
        description="Time in which a batch gathers.",
    )
    otel_queue: int = Field(
        2048,
        ge=1,
        validation_alias=AliasChoices("OTEL_BSP_MAX_QUEUE_SIZE"),
        description="Most spans of a worker that wait.",
    )
    otel_batch: int = Field(
        512,
        ge=1,
        validation_alias=AliasChoices("OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
        description="Most spans of an export.",
    )
    otel_sampler: Literal[
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ] = Field(
        "parentbased_always_on",
        validation_alias=AliasChoices("OTEL_TRACES_SAMPLER"),
        description="Which requests are traced.",
    )
    otel_sampler_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        validation_alias=AliasChoices("OTEL_TRACES_SAMPLER_ARG"),
        description="The ratio of `traceidratio`.",
    )
    otel_service_name: str = Field(
        "matrixinfer-gateway",
        validation_alias=AliasChoices("OTEL_SERVICE_NAME"),
        description="`service.name` of all spans.",
    )
    otel_resource: str = Field(
        "",
        validation_alias=AliasChoices("OTEL_RESOURCE_ATTRIBUTES"),
        description="Further attributes: `name=value,name=value`.",
    )

    @field_validator("otel_endpoint", "otel_traces_endpoint")
    @classmethod
    def _is_url(cls, value: str) -> str:
        url = urlsplit(value)
        if value and (url.scheme not in ("http", "https") or not url.hostname):
            raise ValueError("must be a URL such as http://collector:4318")
        return value

    @field_validator("otel_headers")
    @classmethod
    def _can_be_sent(cls, value: SecretStr) -> SecretStr:
        for name, text in _pairs(value.get_secret_value()).items():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(text):
                # Neither is said: where the form is wrong, a name may hold a part of a secret.
                raise ValueError("must be `name=value,name=value` of printable ASCII, each name a token of RFC 9110")
        return value

    @property
    def export_settings(self) -> ExportSettings:
        """Where spans go; without an endpoint nothing is traced."""
        endpoint = self.otel_traces_endpoint
        if not endpoint and self.otel_endpoint:
            endpoint = f"{self.otel_endpoint.rstrip('/')}/v1/traces"
        is_off = self.otel_disabled or self.otel_exporter == "none"
        pod = {"k8s.pod.name": self.pod_name, "service.instance.id": self.pod_name} if self.pod_name else {}
        return ExportSettings(
            "" if is_off else endpoint,
            _pairs(self.otel_headers.get_secret_value()),
            {
                "service.version": build_version(),
                "k8s.namespace.name": self.namespace,
                **pod,
                **_pairs(self.otel_resource),
                "service.name": self.otel_service_name,
            },
            str(self.otel_ca_file) if self.otel_ca_file else None,
            self.otel_timeout / 1000,
            self.otel_delay / 1000,
            self.otel_queue,
            min(self.otel_batch, self.otel_queue),
        )


def _pairs(text: str) -> dict[str, str]:
    """Read W3C baggage-like pairs; what is none is left out."""
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name.strip(): unquote(value.strip()) for name, equals, value in pairs if equals and name.strip()}
