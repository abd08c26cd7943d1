"""What is kept ready is as the configuration has it, or stays as it was."""

import os
import threading
from types import SimpleNamespace

import pytest

from agentd.daemon.sandboxes import pools
from agentd.daemon.sandboxes.pools import Pools
from agentd.model.errors import SandboxError
from agentd.model.spec import SandboxSpec
from agentd.sandbox import guard
from agentd.sandbox.pool import ShelfSpec


class Manager:
    def create(self, spec):
        raise SandboxError("none of these comes up")

    def destroy(self, handle):
        raise AssertionError("there was none")


@pytest.fixture
def made(monkeypatch):
    """Pools of the templates that ``made.config.template`` has by then."""
    monkeypatch.setattr(pools, "images", lambda config: {})
    monkeypatch.setattr(pools, "shelves", lambda config, gate: [])
    monkeypatch.setattr(
        pools, "of_template", lambda template, config, gate: ShelfSpec(SandboxSpec(), 1, 1, 60.0)
    )
    config = SimpleNamespace(template=(), pool=())
    found = Pools(lambda: config, Manager(), None, lambda *args, **about: None)
    yield SimpleNamespace(pools=found, config=config)
    found.close()


def template(name):
    return SimpleNamespace(name=name, max=1, ready_timeout=1.0, ttl=60.0, packages=())


def filling():
    return [thread for thread in threading.enumerate() if thread.name == "pool"]


def test_a_shape_that_cannot_be_had_leaves_nothing_and_is_tried_again(made, monkeypatch):
    start, told, others = threading.Thread.start, [], len(filling())

    def refuse_the_third(thread):
        if len(filling()) == others + 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    made.config.template = (template("a"),)
    made.pools.reshape()
    before = set(os.listdir("/proc/self/fd"))
    made.config.template = (template("a"), template("b"), template("c"))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse_the_third)
        patched.setattr(guard, "tell", told.append)
        made.pools.want()
    assert "new thread" in str(told[0])
    assert list(made.pools.sizes()) == ["template/a"]
    assert len(filling()) == others + 1
    assert set(os.listdir("/proc/self/fd")) == before
    made.pools.look()
    assert list(made.pools.sizes()) == ["template/a", "template/b", "template/c"]
    assert made.pools.works
