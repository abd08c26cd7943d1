"""Where a daemon's calls run: by whom, in whose sandboxes, and for how long."""

from types import SimpleNamespace

import pytest

from agentd.daemon.calls.places import Places
from agentd.daemon.config.schema import Config, LimitBounds, LimitSettings, SandboxSettings
from agentd.daemon.config.values import Size
from agentd.model.api import CallBody, SandboxBody
from agentd.model.errors import Conflict, Forbidden, InvalidInput, NotFound, Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.principal import Principal
from agentd.model.spec import SandboxSpec


def holding(*scopes):
    return Principal("alice", frozenset(scopes), "key")


class Live:
    def __init__(self, id_, *, paused=False):
        self.handle = SimpleNamespace(id=id_)
        self.record = SimpleNamespace(labels={"team": "red"})
        self._paused = paused

    def require_running(self, what):
        if self._paused:
            raise Conflict(f"cannot {what}: it is paused")


class Sandboxes:
    """Those of alice; what is made and ended is noted."""

    def __init__(self):
        self.there = {"sbx-1": Live("sbx-1"), "sbx-2": Live("sbx-2", paused=True)}
        self.made, self.ended = [], []

    def get(self, who, id_):
        if id_ not in self.there:
            raise NotFound(f"there is no sandbox {id_!r}")
        return self.there[id_]

    def lease(self, ttl):
        return 60.0 if ttl is None else ttl

    def create(self, who, spec, *, labels, ttl, admitted):
        assert admitted, "the call was decided as a whole"
        self.made.append((who.name, spec, labels))
        return Live("sbx-new")

    def end(self, live):
        self.ended.append(live.handle.id)


@pytest.fixture
def sandboxes():
    return Sandboxes()


@pytest.fixture
def places(sandboxes):
    config = Config(
        sandbox=SandboxSettings(minimum="microvm"),
        limits=LimitBounds(default=LimitSettings(pids=64), max=LimitSettings(memory=Size(1 << 30))),
    )
    return Places(lambda: config, sandboxes, None)


SCOPES = {
    "fs.read.v1": "read",
    "fs.list.v1": "read",
    "fs.search.v1": "read",
    "fs.write.v1": "files",
    "fs.edit.v1": "files",
    "archive.read.v1": "files",
    "shell.exec.v1": "run",
    "python.exec.v1": "run",
    "http.fetch.v1": "run",
    "git.clone.v1": "run",
    "acme.anything.v1": "run",
}


@pytest.mark.parametrize(("name", "scope"), SCOPES.items())
def test_each_wants_the_scope_of_what_it_does_and_that_is_enough(places, name, scope):
    others = {"read", "files", "run", "create", "ports", "snapshot"} - {scope}
    there, new = CallBody(name, sandbox="sbx-1"), CallBody(name)
    for ask, body in ((places.get, there), (places.plan, new)):
        with pytest.raises(Forbidden, match=repr(scope)):
            ask(holding(*others), body)
        ask(holding(scope), body)


def test_a_sandbox_that_is_there_comes_with_its_labels(places):
    handle, labels = places.get(holding("run"), CallBody("shell.exec.v1", sandbox="sbx-1"))
    assert (handle.id, labels) == ("sbx-1", {"team": "red"})


@pytest.mark.parametrize(
    ("id_", "error"), [("sbx-2", Conflict), ("sbx-9", NotFound), ("", NotFound)]
)
def test_one_that_is_paused_or_not_there_is_refused(places, id_, error):
    with pytest.raises(error):
        places.get(holding("run"), CallBody("shell.exec.v1", sandbox=id_))


def test_one_that_is_to_be_made_is_within_the_configuration(places):
    spec, labels = places.plan(
        holding("run"),
        CallBody("shell.exec.v1", create=SandboxBody(isolation="none", labels={"a": "b"})),
    )
    assert (spec.isolation, spec.limits.pids, labels) == (IsolationLevel.MICROVM, 64, {"a": "b"})


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"memory": "2G"}, Refused),
        ({"net": "host"}, Refused),
        ({"workspace": "/etc"}, Forbidden),
        ({"snapshot": "snp-1"}, InvalidInput),
        ({"labels": {"": "x"}}, InvalidInput),
        ({"labels": {f"l{n}": "x" for n in range(33)}}, InvalidInput),
    ],
)
def test_what_the_configuration_does_not_allow_is_refused(places, wanted, error):
    with pytest.raises(error):
        places.plan(holding("run"), CallBody("shell.exec.v1", create=SandboxBody(**wanted)))


def test_one_that_is_made_ends_with_the_call(places, sandboxes):
    who, spec = holding("run", "create"), SandboxSpec()
    with places.made(who, spec, {"a": "b"}) as handle:
        assert handle.id == "sbx-new" and sandboxes.ended == []
    assert sandboxes.made == [("alice", spec, {"a": "b"})]
    with pytest.raises(ZeroDivisionError), places.made(who, spec, {}):
        raise ZeroDivisionError
    assert sandboxes.ended == ["sbx-new", "sbx-new"]


def test_whoever_may_make_none_gets_none(places, sandboxes):
    with pytest.raises(Forbidden, match="'create'"), places.made(holding("run"), SandboxSpec(), {}):
        pass
    assert sandboxes.made == []
