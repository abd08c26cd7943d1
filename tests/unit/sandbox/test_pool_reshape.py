import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from agentd.model.spec import SandboxSpec
from agentd.sandbox.pool import SandboxPool, ShelfSpec

PLAIN, OTHER = SandboxSpec(), SandboxSpec(image="other")


class Maker:
    """Makes sandboxes that are nothing but names, and remembers which it was given back."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.ended: list[Any] = []
        self.hold = threading.Event()
        self.hold.set()
        self.waiting = threading.Event()

    def create(self, spec: SandboxSpec) -> Any:
        self.waiting.set()
        assert self.hold.wait(120)
        wall = SimpleNamespace(alive=lambda: True)
        guest = SimpleNamespace(run=lambda request: None)
        handle = SimpleNamespace(spec=spec, wall=wall, guest=guest, unreported_ms=0.0)
        self.made.append(handle)
        return handle


@pytest.fixture
def maker() -> Iterator[Maker]:
    found = Maker()
    yield found
    assert found.ended == sorted(found.made, key=found.ended.index), "each is ended, and once"


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def shelf(spec: SandboxSpec, least: int) -> ShelfSpec:
    return ShelfSpec(spec, least, least, 600.0)


def test_what_stays_is_kept_and_what_goes_is_ended(maker: Maker) -> None:
    pool = SandboxPool([shelf(PLAIN, 1), shelf(OTHER, 1)], maker.create, maker.ended.append)
    try:
        until(lambda: list(pool.sizes().values()) == [1, 1])
        first = next(one for one in maker.made if one.spec is PLAIN)
        pool.reshape([shelf(PLAIN, 2)])
        assert [one.spec for one in maker.ended] == [OTHER]
        until(lambda: pool.sizes() == {"default/namespace": 2})
        assert pool.owns(first)
    finally:
        pool.close()


def test_a_pool_that_had_no_shelves_begins_to_fill(maker: Maker) -> None:
    pool = SandboxPool([], maker.create, maker.ended.append)
    try:
        pool.reshape([shelf(PLAIN, 1)])
        until(lambda: pool.sizes() == {"default/namespace": 1})
    finally:
        pool.close()


def test_one_that_comes_when_its_shelf_has_gone_is_ended(maker: Maker) -> None:
    maker.hold.clear()
    pool = SandboxPool([shelf(PLAIN, 1)], maker.create, maker.ended.append)
    try:
        assert maker.waiting.wait(120)
        pool.reshape([])
        maker.hold.set()
        until(lambda: len(maker.ended) == 1)
        assert pool.sizes() == {}
    finally:
        maker.hold.set()
        pool.close()
