"""Every input that ever broke a parser of ours, and the ones that fuzzing begins with, played again."""

import pytest
from tests.fuzz import corpus, form, inlet, upstream

OF_CLIENTS = corpus.inputs("inlet")
OF_ENGINES = corpus.inputs("upstream")
FORMS = corpus.inputs("form")


@pytest.mark.parametrize("name", OF_CLIENTS)
def test_a_clients_bytes_break_no_promise_of_the_inlet(name: str) -> None:
    inlet.check(corpus.read(OF_CLIENTS[name]))


@pytest.mark.parametrize("name", OF_ENGINES)
def test_an_engines_bytes_break_no_promise_to_the_client(name: str) -> None:
    upstream.check(corpus.read(OF_ENGINES[name]))


@pytest.mark.parametrize("name", FORMS)
def test_a_form_means_to_every_parser_what_it_means_to_us(name: str) -> None:
    form.check(corpus.read(FORMS[name]))
