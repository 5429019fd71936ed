"""Settings of the infer-controller: every span it waits, and how much it does at once."""

from datetime import timedelta

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from matrixinfer.infer_controller.fleet import Timing
from matrixinfer.service.settings import ServiceSettings

__all__ = ["InferControllerSettings"]


class InferControllerSettings(ServiceSettings):
    """Read from the environment, prefix `MATRIXINFER_INFER_CONTROLLER_`."""

    model_config = SettingsConfigDict(env_prefix="MATRIXINFER_INFER_CONTROLLER_")

    workers: int = Field(128, ge=1, le=512, description="ModelInfers that are worked on at the same time.")
    writes_in_flight: int = Field(50, ge=1, le=1000, description="Writes to the API server under way at once.")
    history_limit: int = Field(10, ge=0, description="Unused ControllerRevisions kept of each ModelInfer.")
    status_hold_seconds: float = Field(
        5.0, ge=0, le=60, description="How long a change of counts may wait for more before the status is written."
    )
    settle_seconds: float = Field(
        5.0, ge=0, description="Wait between marking a pod and deleting it when its load is unknown."
    )
    drain_deadline_seconds: float = Field(
        60.0, ge=0, description="Longest wait for the requests of a pod that is being removed."
    )
    drain_notice_seconds: float = Field(
        1.0, ge=0, description="Least wait before an idle pod goes, so that the gateway has turned away."
    )
    load_poll_seconds: float = Field(1.0, gt=0, description="How often draining pods are asked for their load.")
    load_deadline_seconds: float = Field(2.0, gt=0, description="Time an engine gets to tell its load.")
    backoff_base_seconds: float = Field(10.0, ge=0, description="Wait before the second rebuild in a row; it doubles.")
    backoff_cap_seconds: float = Field(300.0, ge=0, description="Longest wait between rebuilds.")
    backoff_reset_seconds: float = Field(
        600.0, ge=0, description="A rebuilt target that held this long starts counting afresh."
    )
    node_lost_seconds: float = Field(
        30.0, ge=0, description="How long a node may be not ready before its pods count as failed."
    )
    force_delete_seconds: float = Field(
        60.0, ge=0, description="Wait past its grace period before a pod on a lost node is removed by force."
    )
    lease_seconds: float = Field(15.0, gt=0, description="How long a lease holds without renewal.")
    renew_deadline_seconds: float = Field(10.0, gt=0, description="A holder that could not renew for this long stops.")
    lease_request_seconds: float = Field(4.0, gt=0, description="Deadline of one request for the lease.")
    retry_seconds: float = Field(2.0, gt=0, description="How often the lease is renewed, or asked for.")

    @property
    def timing(self) -> Timing:
        """The spans as the planner wants them."""
        return Timing(
            settle=timedelta(seconds=self.settle_seconds),
            drain=timedelta(seconds=self.drain_deadline_seconds),
            notice=timedelta(seconds=self.drain_notice_seconds),
            backoff_base=timedelta(seconds=self.backoff_base_seconds),
            backoff_cap=timedelta(seconds=self.backoff_cap_seconds),
            backoff_reset=timedelta(seconds=self.backoff_reset_seconds),
            node_lost=timedelta(seconds=self.node_lost_seconds),
            force_delete=timedelta(seconds=self.force_delete_seconds),
        )
