import os
from types import SimpleNamespace

import pytest

from agentd.client import embedded
from agentd.client.embedded_service import EmbeddedService
from agentd.model.api import SandboxBody
from agentd.model.errors import InvalidInput, SandboxError
from agentd.model.isolation import IsolationLevel
from agentd.sandbox import backends
from agentd.sandbox.backends.linux import nursery
from agentd.sandbox.backends.linux.backend import LinuxBackend


@pytest.fixture
def begun(monkeypatch):
    names = []
    monkeypatch.setattr(backends, "begin", lambda name, net: names.append(name))
    return names


@pytest.mark.parametrize(
    ("name", "level", "likely"),
    [
        (None, "namespace", ["linux"]),
        (None, "process", ["landlock"]),
        ("host", "namespace", ["host"]),
        (None, "microvm", [n for n in ("firecracker", "qemu") if n in backends.BUILTIN][:1]),
        ("someone-elses", "none", []),
    ],
)
def test_what_is_likely_used_begins_early(begun, name, level, likely):
    embedded.new(begin=(name, IsolationLevel.parse(level), "none")).manager.close()
    assert begun == likely


def test_nothing_begins_unasked(begun):
    embedded.new().manager.close()
    assert begun == []


def test_the_zygote_that_begun_early_is_the_backends():
    nursery.begin("none")
    backend = LinuxBackend()
    assert nursery.adopt() is None
    backend.close()


def test_an_unknown_backend_is_refused_when_it_is_used():
    manager = embedded.new(begin=("nope", IsolationLevel.NONE, "none")).manager
    with pytest.raises(InvalidInput, match="unknown backend 'nope'"):
        manager.backend("nope")
    manager.close()


def test_what_could_not_be_ended_is_ended_by_the_next_who_asks(monkeypatch):
    pipeline = embedded.new()
    service = EmbeddedService(pipeline)
    made = service.sandboxes.create(SandboxBody(isolation="none"))
    wall = service.handle(made.id).wall

    def hold_on():
        raise SandboxError("it holds on")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(wall, "kill", hold_on)
            with pytest.raises(SandboxError, match="it holds on"):
                service.sandboxes.kill(made.id)
        assert [view.state for view in service.sandboxes.list()] == ["ending"]
        service.sandboxes.kill(made.id)
        assert not wall.alive()
        assert (service.sandboxes.list(), pipeline.manager.sandboxes()) == ((), ())
    finally:
        pipeline.manager.close()


def test_the_principal_is_the_kernels_word():
    who = EmbeddedService(SimpleNamespace()).who
    assert (who.name, who.via) == (f"uid:{os.geteuid()}", "local")
