import os

import pytest

from agentd.client import embedded
from agentd.model.errors import InvalidInput
from agentd.model.isolation import IsolationLevel
from agentd.sandbox import backends


class Early:
    def __init__(self):
        self.calls = []

    def prestart(self):
        self.calls.append("prestart")

    def close(self):
        self.calls.append("close")


@pytest.fixture
def loaded(monkeypatch):
    made = {}

    def load(name):
        return made.setdefault(name, Early())

    monkeypatch.setattr(backends, "load", load)
    return made


@pytest.mark.parametrize(
    ("name", "level", "likely"),
    [
        (None, "namespace", "linux"),
        (None, "process", "landlock"),
        ("host", "namespace", "host"),
        (None, "microvm", None),
        ("someone-elses", "none", None),
    ],
)
def test_the_likely_backend_begins_and_is_closed_with_the_manager(loaded, name, level, likely):
    pipeline = embedded.new(begin=(name, IsolationLevel.parse(level)))
    pipeline.manager.close()
    expected = {likely: ["prestart", "close"]} if likely else {}
    assert {name: early.calls for name, early in loaded.items()} == expected


def test_nothing_begins_unasked(loaded):
    embedded.new().manager.close()
    assert loaded == {}


def test_an_unknown_backend_is_refused_when_it_is_used():
    manager = embedded.new(begin=("nope", IsolationLevel.NONE)).manager
    with pytest.raises(InvalidInput, match="unknown backend 'nope'"):
        manager.backend("nope")
    manager.close()


def test_the_principal_is_the_kernels_word():
    assert embedded.principal() == f"uid:{os.geteuid()}"
