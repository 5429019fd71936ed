"""Settings come from the environment, once, and an error names the variable without showing its value."""

from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from matrixinfer.service.settings import ServiceSettings, SettingsError, load


class RelaySettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="MATRIXINFER_RELAY_")

    port: int = Field(8080, ge=1)
    key: SecretStr = SecretStr("")


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POD_NAMESPACE", "POD_NAME", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_everything_has_a_default() -> None:
    settings = load(RelaySettings)
    assert (settings.port, settings.admin_port, settings.namespace) == (8080, 9090, "matrixinfer-system")
    assert settings.kubeconfig is None


def test_the_environment_fills_prefixed_and_shared_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIXINFER_RELAY_PORT", "81")
    monkeypatch.setenv("MATRIXINFER_RELAY_ADMIN_PORT", "0")
    monkeypatch.setenv("POD_NAMESPACE", "blue")
    monkeypatch.setenv("KUBECONFIG", "/tmp/k")
    settings = load(RelaySettings)
    assert (settings.port, settings.admin_port, settings.namespace) == (81, 0, "blue")
    assert settings.kubeconfig == Path("/tmp/k")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIXINFER_RELAY_PORT", "")
    monkeypatch.setenv("KUBECONFIG", "")
    settings = load(RelaySettings)
    assert (settings.port, settings.kubeconfig) == (8080, None)


def test_values_may_be_given_by_name() -> None:
    assert RelaySettings(namespace="red", port=1).namespace == "red"


def test_an_error_names_every_wrong_variable_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIXINFER_RELAY_PORT", "s3cr3t-value")
    monkeypatch.setenv("MATRIXINFER_RELAY_LOG_LEVEL", "loud")
    with pytest.raises(SettingsError) as caught:
        load(RelaySettings)
    assert "MATRIXINFER_RELAY_PORT" in str(caught.value)
    assert "MATRIXINFER_RELAY_LOG_LEVEL" in str(caught.value)
    assert "s3cr3t-value" not in str(caught.value)


def test_settings_do_not_change_after_they_were_read() -> None:
    with pytest.raises(ValidationError):
        load(RelaySettings).port = 5
