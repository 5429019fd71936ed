"""Settings of the autoscaler: environment only, read once in `__main__`."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from matrixinfer.service.settings import ServiceSettings

__all__ = ["AutoscalerSettings"]


class AutoscalerSettings(ServiceSettings):
    """`MATRIXINFER_AUTOSCALER_…`."""

    model_config = SettingsConfigDict(env_prefix="MATRIXINFER_AUTOSCALER_")

    period_seconds: float = Field(15.0, gt=0, le=300, description="Seconds between two rounds.")
    scrape_seconds: float = Field(3.0, gt=0, le=60, description="Deadline of one scrape of one pod.")
    scrapes_at_once: int = Field(64, ge=1, le=4096, description="Pods that are scraped at once, over all targets.")
