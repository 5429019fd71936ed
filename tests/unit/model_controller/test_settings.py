"""Settings that cannot work are refused at start, by name and with the fix."""

import pytest

from matrixinfer.model_controller.settings import ModelControllerSettings
from matrixinfer.service.settings import SettingsError, load


def test_nothing_is_shared_unless_a_service_is_named():
    assert load(ModelControllerSettings).render_environment.peers_service == ""


@pytest.mark.parametrize("name", ["peers.llm.svc", "Peers", "a b", "-a"])
def test_a_name_that_no_service_has_is_refused(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv("MATRIXINFER_MODEL_CONTROLLER_PEERS_SERVICE", name)
    with pytest.raises(SettingsError, match=r"MATRIXINFER_MODEL_CONTROLLER_PEERS_SERVICE: .*without namespace"):
        load(ModelControllerSettings)
