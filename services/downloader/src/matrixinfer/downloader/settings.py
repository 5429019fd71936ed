"""Settings of the downloader: limits under its own prefix, credentials under the names the tools of each store use.

Credentials come from the environment, which Kubernetes fills from Secrets, never from arguments. Both the names of the
stores' own tools (AWS_*, HF_TOKEN) and the older ones of MatrixInfer (ACCESS_KEY, SECRET_KEY, HF_AUTH_TOKEN) are known.
"""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from matrixinfer.downloader.core.redirects import DEFAULT_HOSTS
from matrixinfer.service.settings import ServiceSettings

__all__ = ["DownloaderSettings"]

_TOKEN_CHARACTERS = 16


class DownloaderSettings(ServiceSettings):
    """What the downloader reads from its environment."""

    model_config = SettingsConfigDict(env_prefix="MATRIXINFER_DOWNLOADER_")

    drain_seconds: float = Field(15.0, ge=0, description="Time to note what was fetched after SIGTERM.")
    connections: int = Field(32, ge=1, le=256, description="Most connections; as many work as help.")
    processes: int = Field(
        0, ge=0, le=64, description="Worker processes that share a large download; 0: one for two cores, 1: none."
    )
    part_bytes: int = Field(16 << 20, ge=1 << 12, le=1 << 30, description="Bytes noted, and lost by a kill, at once.")
    buffer_bytes: int = Field(1 << 20, ge=1 << 12, le=1 << 26, description="Memory of one connection.")
    slowest_bytes_per_second: int = Field(4096, ge=0, description="A stream slower than this is given up.")
    tries: int = Field(6, ge=1, le=100, description="Tries of one range in a row without a byte of progress.")
    longest_wait_seconds: float = Field(20.0, gt=0, le=300, description="Longest pause between two tries.")
    connect_seconds: float = Field(10.0, gt=0, description="Deadline for a connection to the source.")
    read_seconds: float = Field(30.0, gt=0, description="Longest silence of the source while bytes are due.")
    listing_seconds: float = Field(300.0, gt=0, description="Deadline for listing the source, retries included.")
    lock_wait_seconds: float = Field(3600.0, ge=0, description="How long to wait for another process on the folder.")
    lock_patience_seconds: float = Field(
        12.0, ge=1, description="A holder of another node that shows no life for so long is taken for dead."
    )
    reserve_bytes: int = Field(64 << 20, ge=0, description="Bytes that must stay free on the volume.")
    high_water_percent: int = Field(
        90, ge=1, le=100, description="Above this share of the volume, models of a cache that nothing uses go first."
    )
    report_seconds: float = Field(2.0, ge=2, description="Least time between two reports of progress.")
    outcome_seconds: float = Field(
        15.0, ge=1, le=300, description="Longest wait at the end for an API server that is away."
    )
    log_seconds: float = Field(10.0, gt=0, description="Time between two log lines of progress.")
    redirect_hosts: tuple[str, ...] = Field(
        DEFAULT_HOSTS, description="Hosts, as globs in a JSON list, that a source may send us to."
    )
    peers: str = Field(
        "", description="Names or addresses of pods to ask first, with commas between; empty asks nobody."
    )
    peer_port: int = Field(8731, ge=0, le=65535, description="Port on which pods give models to one another.")
    peer_token: SecretStr = Field(
        SecretStr(""), description="What the pods of a namespace share, from a Secret; nothing is shared without it."
    )
    peer_patience_seconds: float = Field(
        10.0, ge=1, le=600, description="A peer that does not come on for so long is not waited for."
    )
    peer_slowest_bytes_per_second: int = Field(1 << 20, ge=0, description="A peer that is slower is not used.")
    peer_checksums: Literal["strong", "any"] = Field(
        "strong", description="Which files come from peers; any: also those that the source vouches for by a CRC only."
    )
    pod_ip: str = Field(
        "",
        validation_alias=AliasChoices("POD_IP"),
        validate_default=True,
        description="Address of the pod itself, which is never asked.",
    )
    serve_host: str = Field("0.0.0.0", description="Address on which `serve` listens.")  # noqa: S104
    serve_connections: int = Field(16, ge=1, le=1024, description="Most transfers to peers at once.")
    serve_bytes_per_second: int = Field(0, ge=0, description="Most bytes a second to all peers; 0 sets no limit.")
    serve_seconds: float = Field(60.0, ge=1, le=3600, description="Deadline of one transfer to a peer.")
    offline: bool = Field(default=False, description="Connect to nothing: use what the cache holds, or fail at once.")
    claims_dir: Path = Field(Path("/claims"), description="Claim NAME of pvc://NAME/... is mounted at claims_dir/NAME.")
    termination_log: Path = Field(Path("/dev/termination-log"), description="Where the outcome is written.")
    service_account_dir: Path = Field(
        Path("/var/run/secrets/matrixinfer"), description="Folder of token, ca.crt and namespace for the report."
    )

    endpoint: str = Field(
        "",
        validation_alias=AliasChoices("ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        description="Address of the S3 store; unset means the public one.",
    )
    region: str = Field(
        "", validation_alias=AliasChoices("AWS_REGION", "AWS_DEFAULT_REGION"), description="Its region."
    )
    access_key: SecretStr = Field(
        SecretStr(""), validation_alias=AliasChoices("ACCESS_KEY", "AWS_ACCESS_KEY_ID"), description="Its access key."
    )
    secret_key: SecretStr = Field(
        SecretStr(""), validation_alias=AliasChoices("SECRET_KEY", "AWS_SECRET_ACCESS_KEY"), description="Its secret."
    )
    session_token: SecretStr = Field(
        SecretStr(""), validation_alias=AliasChoices("AWS_SESSION_TOKEN"), description="Token of a temporary key."
    )
    addressing: Literal["auto", "path", "virtual"] = Field(
        "auto", description="Where the bucket's name stands: in the path, in the host; auto: path with an ENDPOINT."
    )
    anonymous: bool = Field(default=False, description="Read the S3 store without credentials, whatever is set.")
    ca_bundle: str = Field(
        "",
        validation_alias=AliasChoices("AWS_CA_BUNDLE"),
        description="File of certificates to trust for the S3 store; the hub's client reads SSL_CERT_FILE.",
    )
    hf_endpoint: str = Field("", validation_alias=AliasChoices("HF_ENDPOINT"), description="Address of the hub.")
    hf_token: SecretStr = Field(
        SecretStr(""), validation_alias=AliasChoices("HF_TOKEN", "HF_AUTH_TOKEN"), description="Token of the hub."
    )
    hf_revision: str = Field(
        "", validation_alias=AliasChoices("HF_REVISION"), description="Revision when the source names none."
    )
    ms_endpoint: str = Field("", validation_alias=AliasChoices("MS_ENDPOINT"), description="Address of ModelScope.")
    ms_token: SecretStr = Field(SecretStr(""), validation_alias=AliasChoices("MS_TOKEN"), description="Its token.")
    ms_revision: str = Field(
        "", validation_alias=AliasChoices("MS_REVISION"), description="Revision when the source names none."
    )
    http_token: SecretStr = Field(
        SecretStr(""), validation_alias=AliasChoices("HTTP_TOKEN"), description="Bearer token of an http(s):// source."
    )
    api_host: str = Field(
        "", validation_alias=AliasChoices("KUBERNETES_SERVICE_HOST"), description="API server, set by the kubelet."
    )
    api_port: str = Field(
        "443", validation_alias=AliasChoices("KUBERNETES_SERVICE_PORT"), description="Its port, set by the kubelet."
    )

    @field_validator("pod_ip")
    @classmethod
    def _known_among_peers(cls, address: str, info: ValidationInfo) -> str:
        if info.data.get("peers") and not address:
            raise ValueError("must be set where PEERS is; take it from status.podIP")
        return address

    @field_validator("peer_token")
    @classmethod
    def _not_guessed(cls, token: SecretStr) -> SecretStr:
        if 0 < len(token.get_secret_value()) < _TOKEN_CHARACTERS:
            raise ValueError(f"must have at least {_TOKEN_CHARACTERS} characters; make one with `openssl rand -hex 32`")
        return token

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every credential, so that logs can mask them."""
        held = (
            self.access_key,
            self.secret_key,
            self.session_token,
            self.hf_token,
            self.ms_token,
            self.http_token,
            self.peer_token,
        )
        return tuple(value for secret in held if (value := secret.get_secret_value()))
