"""The gateway's settings: environment only, prefix `MATRIXINFER_GATEWAY_`."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from matrixinfer.gateway.certificate import CertificateFiles
from matrixinfer.gateway.core.breaker import BreakerPolicy
from matrixinfer.gateway.core.budget import BudgetLimits
from matrixinfer.gateway.core.line import QueueLimits
from matrixinfer.gateway.core.outliers import OutlierPolicy
from matrixinfer.gateway.core.scrape import Pace
from matrixinfer.gateway.telemetry import TelemetrySettings
from matrixinfer.gateway.terms import TrafficDefaults
from matrixinfer.gateway.wire.inlet import InletLimits
from matrixinfer.gateway.wire.pool import PoolLimits

__all__ = ["GatewaySettings"]


class GatewaySettings(TelemetrySettings):
    """Everything that an operator can set."""

    model_config = SettingsConfigDict(env_prefix="MATRIXINFER_GATEWAY_")

    # A pod has no other address to listen on.
    host: str = Field("0.0.0.0", description="Address that clients reach.")  # noqa: S104
    port: int = Field(8080, ge=0, le=65535, description="Port that clients reach; 0 takes any free one.")
    workers: int = Field(0, ge=0, le=64, description="Worker processes; 0 means one for each CPU.")
    watch_namespace: str = Field("", description="Route only what lies in this namespace; empty means all.")
    endpoint_slots: int = Field(16384, ge=16, le=1_000_000, description="Most pods that can be routed to at a time.")
    prefix_index_bytes: int = Field(
        4 * 2**20,
        ge=64 * 2**10,
        le=2**30,
        description="Memory for which pod was sent which prompt, 8 bytes a block of text; down to a power of two.",
    )
    ledger_entries: int = Field(
        65536, ge=64, multiple_of=8, description="Stored responses of which one worker remembers the endpoint."
    )
    access_log: bool = Field(True, description="Write one line per request to stdout.")
    stream_usage: Literal["ask", "as-sent"] = Field(
        "ask", description="Ask engines for token counts of streams whose client did not, unseen by it."
    )
    decision_header: Literal["asked", "always", "never"] = Field(
        "asked", description="Who is told of the decision: clients that send x-matrixinfer-explain, all, or none."
    )
    write_status: bool = Field(True, description="Take part in writing the status of routes and servers.")

    drain_seconds: float = Field(300.0, ge=0, description="Time running streams get to finish after SIGTERM.")
    settle_seconds: float = Field(
        10.0, ge=0, description="Time after SIGTERM in which new requests are still served, until nobody sends any."
    )
    gather_seconds: float = Field(0.01, ge=0, le=1, description="Changes within this time make one snapshot.")

    inlet: Literal["httptools", "aiohttp"] = Field(
        "httptools", description="What parses requests: our own protocol on httptools, or aiohttp's server."
    )
    tls_cert_file: Path | None = Field(None, description="Certificate chain (PEM) for clients; unset means plain HTTP.")
    tls_key_file: Path | None = Field(None, description="Its private key (PEM).")
    tls_reload_seconds: float = Field(10.0, gt=0, description="How often to look whether these files have changed.")

    body_limit_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body.")
    buffered_limit_bytes: int = Field(
        512 * 2**20, ge=1024, description="All bodies that one worker holds until their answers begin."
    )
    head_limit_bytes: int = Field(64 * 2**10, ge=1024, description="Largest request head.")
    head_fields_limit: int = Field(128, ge=8, description="Most header lines of a request.")
    connection_limit: int = Field(20_000, ge=1, description="Most client connections of one worker.")
    handshake_seconds: float = Field(10.0, gt=0, description="Time a client has to finish a TLS handshake.")
    head_seconds: float = Field(10.0, gt=0, description="Time a client has to send a request head.")
    body_seconds: float = Field(60.0, gt=0, description="Time a client has to send a body, plus 1 s per 16 KiB.")
    keep_alive_seconds: float = Field(75.0, gt=0, description="How long an idle client connection is kept.")
    # Beyond this Linux takes no keep-alive time.
    write_stall_seconds: float = Field(
        60.0, gt=0, le=65_535, description="How long a client may take nothing of its answer."
    )

    connect_seconds: float = Field(2.0, gt=0, description="Time an endpoint has to accept a connection.")
    upstream_idle_seconds: float = Field(4.0, ge=0, description="How long an idle connection to an engine is kept.")
    upstream_ca_file: Path | None = Field(None, description="CA of engines that speak https; without it unverified.")

    scrape_busy_seconds: float = Field(1.0, ge=0.1, le=60, description="Between two looks at an engine that works.")
    scrape_idle_seconds: float = Field(3.5, ge=0.1, le=60, description="Between two looks at an idle engine.")
    scrape_failing_seconds: float = Field(15.0, ge=0.1, le=300, description="Longest pause after failed looks.")
    scrapes_per_second: float = Field(400.0, ge=1, description="Looks at all engines; more engines, longer pauses.")
    scrape_deadline_seconds: float = Field(2.0, gt=0, le=30, description="Time an engine has to give its metrics.")

    total_seconds: float = Field(3600.0, gt=0, description="Longest request, where route and server say nothing.")
    first_byte_seconds: float = Field(600.0, gt=0, description="Longest wait for an answer to begin, likewise.")
    idle_seconds: float = Field(60.0, gt=0, description="Longest silence within an answer, likewise.")
    retry_attempts: int = Field(2, ge=0, le=100, description="Further endpoints asked before the first byte, likewise.")
    retry_interval_seconds: float = Field(0.025, ge=0, description="Pause before each of them, likewise.")
    retry_budget_percent: int = Field(20, ge=0, le=100, description="Share of a server's requests sent again.")
    retry_budget_least_per_second: float = Field(3.0, ge=0, description="Retries that a server always gets.")

    queue_requests: int = Field(512, ge=0, description="Requests of one worker that may wait for one server.")
    queue_bytes: int = Field(128 * 2**20, ge=0, description="Bodies of all that wait in one worker.")
    queue_seconds: float = Field(30.0, ge=0, description="Wait for room on busy endpoints; 0 refuses at once.")
    wake_seconds: float = Field(120.0, ge=0, description="Wait for a server's first endpoint; 0 refuses at once.")

    eject_failures: int = Field(5, ge=0, le=1000, description="Failures in a row that leave an endpoint out; 0 never.")
    eject_seconds: float = Field(10.0, gt=0, description="How long, the first time; it doubles each time after.")
    eject_most_seconds: float = Field(300.0, gt=0, description="But never longer.")
    eject_most_percent: int = Field(50, ge=0, le=100, description="Share of a server's endpoints that may be left out.")
    eject_error_percent: int = Field(
        50, ge=0, le=100, description="Share of errors, twice that of its peers, that leaves one out; 0 never."
    )
    eject_ttft_factor: float = Field(
        5.0, ge=0, description="Times its peers' median time to first token that leaves one out; 0 never."
    )

    @model_validator(mode="after")
    def _settling_leaves_time_to_drain(self) -> Self:
        if self.settle_seconds >= self.drain_seconds > 0:
            raise ValueError("settle_seconds must be less than drain_seconds, or no stream gets time to finish")
        return self

    @model_validator(mode="after")
    def _certificate_and_key_go_together(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together: set both, or neither for plain HTTP")
        return self

    @property
    def tls(self) -> CertificateFiles | None:
        """The certificate for clients, if there is to be TLS."""
        if self.tls_cert_file is None or self.tls_key_file is None:
            return None
        return CertificateFiles(str(self.tls_cert_file), str(self.tls_key_file), self.tls_reload_seconds)

    @property
    def prefix_table_bytes(self) -> int:
        """The size of the prefix index as its table has it."""
        return int(1 << (self.prefix_index_bytes.bit_length() - 1))

    @property
    def inlet_limits(self) -> InletLimits:
        """Limits towards clients."""
        return InletLimits(
            head_bytes=self.head_limit_bytes,
            head_fields=self.head_fields_limit,
            body_bytes=self.body_limit_bytes,
            buffered_bytes=self.buffered_limit_bytes,
            connections=self.connection_limit,
            handshake_seconds=self.handshake_seconds,
            head_seconds=self.head_seconds,
            body_seconds=self.body_seconds,
            keep_alive_seconds=self.keep_alive_seconds,
            write_stall_seconds=self.write_stall_seconds,
        )

    @property
    def pool_limits(self) -> PoolLimits:
        """Limits towards engines."""
        return PoolLimits(connect_seconds=self.connect_seconds, idle_seconds=self.upstream_idle_seconds)

    @property
    def outlier_policy(self) -> OutlierPolicy:
        """What is too much worse than its peers."""
        return OutlierPolicy(self.eject_error_percent, self.eject_ttft_factor)

    @property
    def pace(self) -> Pace:
        """How often engines are asked for their load."""
        return Pace(
            busy_seconds=self.scrape_busy_seconds,
            idle_seconds=self.scrape_idle_seconds,
            failing_seconds=self.scrape_failing_seconds,
            per_second=self.scrapes_per_second,
        )

    @property
    def traffic_defaults(self) -> TrafficDefaults:
        """What holds where no object says anything."""
        return TrafficDefaults(
            total_seconds=self.total_seconds,
            first_byte_seconds=self.first_byte_seconds,
            idle_seconds=self.idle_seconds,
            retry_attempts=self.retry_attempts,
            retry_interval_seconds=self.retry_interval_seconds,
            queue=QueueLimits(self.queue_requests, self.queue_bytes, self.queue_seconds, self.wake_seconds),
            breaker=BreakerPolicy(
                self.eject_failures, self.eject_seconds, self.eject_most_seconds, self.eject_most_percent
            ),
            retry_budget=BudgetLimits(self.retry_budget_percent / 100, self.retry_budget_least_per_second),
        )
