"""Settings of the webhook: where it listens, under which names, how long its certificates live."""

from datetime import timedelta

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from matrixinfer.service.settings import ServiceSettings
from matrixinfer.webhook.certificates import Policy

__all__ = ["WebhookSettings"]

_DAY = 86400.0


class WebhookSettings(ServiceSettings):
    """Read from the environment, prefix `MATRIXINFER_WEBHOOK_`."""

    model_config = SettingsConfigDict(env_prefix="MATRIXINFER_WEBHOOK_")

    # The API server comes from outside the pod.
    host: str = Field("0.0.0.0", description="Address of the HTTPS port.")  # noqa: S104
    port: int = Field(8443, ge=0, le=65535, description="HTTPS port; 0 takes any free one.")
    service_name: str = Field("webhook", description="Name of the Service that the API server calls.")
    extra_names: str = Field(
        "", description="Further host names or addresses for the certificate, separated by commas."
    )
    secret_name: str = Field("matrixinfer-webhook-tls", description="Secret that holds authority and certificate.")
    configuration_name: str = Field(
        "matrixinfer", description="Name of the two webhook configurations that the authority is published in."
    )
    authority_seconds: float = Field(730 * _DAY, gt=0, description="Life of our own certificate authority.")
    certificate_seconds: float = Field(90 * _DAY, gt=0, description="Life of the serving certificate.")
    settle_seconds: float = Field(
        600.0, ge=0, description="How long a new authority is published before anything is signed by it."
    )
    check_seconds: float = Field(30.0, gt=0, description="How often Secret and webhook configurations are looked at.")
    linger_seconds: float = Field(
        5.0, ge=0, description="How long it goes on answering after SIGTERM, until no API server calls it any more."
    )

    @property
    def policy(self) -> Policy:
        """What certificates must look like."""
        host = f"{self.service_name}.{self.namespace}"
        extra = (name.strip() for name in self.extra_names.split(","))
        return Policy(
            names=tuple(dict.fromkeys((f"{host}.svc", f"{host}.svc.cluster.local", *(name for name in extra if name)))),
            authority_life=timedelta(seconds=self.authority_seconds),
            certificate_life=timedelta(seconds=self.certificate_seconds),
            settle=timedelta(seconds=self.settle_seconds),
        )
