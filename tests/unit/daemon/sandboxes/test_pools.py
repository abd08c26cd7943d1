"""What a daemon keeps ready, where its configuration cannot be followed at once."""

import errno
import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from agentd.daemon.sandboxes import pools
from agentd.model.errors import SandboxError
from agentd.model.spec import SandboxSpec
from agentd.sandbox.pool import ShelfSpec


def filling() -> int:
    return sum(thread.name == "pool" for thread in threading.enumerate())


def test_a_reshape_that_fails_leaves_no_pool_behind_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object) -> Any:
        raise SandboxError("it is not to be had")

    templates = [SimpleNamespace(name=name, max=1, ttl=60.0) for name in ("first", "second")]
    config = SimpleNamespace(template=templates, pool=[])
    monkeypatch.setattr(pools, "images", lambda _: {"image": "digest"})
    monkeypatch.setattr(pools, "shelves", lambda *_: [])
    monkeypatch.setattr(pools, "of_template", lambda *_: ShelfSpec(SandboxSpec(), 1, 1, 60.0))
    manager = SimpleNamespace(create=refused, destroy=lambda handle: None)
    kept: Any = pools.Pools(lambda: config, manager, None, lambda *_, **__: None)  # type: ignore[arg-type, return-value]
    before, left, eventfd = filling(), iter((True,)), os.eventfd

    def short(*given: int) -> int:
        if next(left, False):
            return eventfd(*given)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "eventfd", short)
            with pytest.raises(OSError, match="Too many open files"):
                kept.reshape()
        assert filling() == before
        kept.look()
        assert set(kept.sizes()) == {"template/first", "template/second"}
    finally:
        kept.close()
    assert filling() == before
