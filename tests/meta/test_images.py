"""The container images: what every Dockerfile must have, and what all of them share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = sorted(p.parent for p in ROOT.glob("services/*/pyproject.toml"))
DOCKERFILES = [*(s / "Dockerfile" for s in SERVICES), *sorted(ROOT.glob("deploy/engines/*/Dockerfile"))]


def name(path: Path) -> str:
    return path.parent.name


def shared(dockerfile: Path) -> list[str]:
    """The instructions above `FROM common`, without comments."""
    head = dockerfile.read_text().split("FROM common\n")[0]
    return [line for line in head.replace("\\\n", " ").splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name)
def test_the_shared_layers_are_the_same_everywhere(dockerfile: Path):
    """Equal instructions are one cached layer, so that a service costs kilobytes; an engine may need fewer of them."""
    reference, ours = shared(SERVICES[0] / "Dockerfile"), shared(dockerfile)
    assert ours == reference[: len(ours)]
    assert len(ours) == len(reference) or dockerfile.parent.parent.name == "engines"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name)
def test_the_user_is_numeric_and_not_root(dockerfile: Path):
    """`runAsNonRoot` can only check a number."""
    assert "USER 65532:65532" in dockerfile.read_text().splitlines()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name)
def test_nothing_needs_a_shell(dockerfile: Path):
    lines = [line for line in dockerfile.read_text().replace("\\\n", " ").splitlines() if line]
    forms = [line for line in lines if line.startswith(("RUN", "CMD", "ENTRYPOINT"))]
    assert all(line.rstrip().endswith("]") for line in forms)


@pytest.mark.parametrize("service", SERVICES, ids=lambda s: s.name)
def test_a_service_image_starts_its_service(service: Path):
    assert f'ENTRYPOINT ["matrixinfer-{service.name}"]' in (service / "Dockerfile").read_text().splitlines()
