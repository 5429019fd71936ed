"""Names of clusters and of what they have on the machine."""

from pathlib import Path

import pytest

from matrixinfer.devcluster.layout import instance, repository


def test_clusters_of_two_clones_have_different_machine_wide_names(tmp_path: Path):
    one, two = instance("demo", tmp_path / "a"), instance("demo", tmp_path / "b")
    assert one.ident != two.ident
    assert one.ident == instance("demo", tmp_path / "a").ident


def test_sockets_fit_into_a_sockets_path(tmp_path: Path):
    place = instance("a-very-long-name-of-a-cluster", tmp_path)
    assert len(str(place.run / "containerd.sock.ttrpc")) < 108


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "..", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(name: str):
    with pytest.raises(ValueError, match="lower-case"):
        instance(name, Path("/x"))


def test_the_repository_is_found():
    assert (repository() / "tools" / "cluster" / "go.mod").is_file()
