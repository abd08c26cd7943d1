import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agentd.model.errors import SandboxError
from agentd.model.limits import Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.pool import SandboxPool, ShelfSpec, shelf_key

PLAIN = SandboxSpec()
LONG = 3600.0


class Factory:
    """Makes handles that only remember what was done with them."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.destroyed: list[Any] = []
        self.fail = False
        self.failures = 0
        self.gate = threading.Event()
        self.gate.set()

    def create(self, spec: SandboxSpec) -> Any:
        self.gate.wait(120)
        if self.fail:
            self.failures += 1
            raise SandboxError("no room")
        handle = SimpleNamespace(spec=spec, ran=[], alive=True, unreported_ms=5.0)
        handle.wall = SimpleNamespace(alive=lambda: handle.alive)
        handle.guest = SimpleNamespace(run=lambda request: handle.ran.append(request.argv))
        self.made.append(handle)
        return handle

    def destroy(self, handle: Any) -> None:
        self.destroyed.append(handle)


@pytest.fixture
def factory() -> Factory:
    return Factory()


@pytest.fixture
def pool_of(factory: Factory) -> Iterator[Callable[..., SandboxPool]]:
    made: list[SandboxPool] = []

    def make(least: int = 2, most: int = 4, ttl: float = LONG) -> SandboxPool:
        made.append(
            SandboxPool([ShelfSpec(PLAIN, least, most, ttl)], factory.create, factory.destroy)
        )
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def ready(pool: SandboxPool) -> int:
    return sum(pool.sizes().values())


def test_it_is_filled_and_every_one_has_run_something(
    pool_of: Callable[..., SandboxPool], factory: Factory
) -> None:
    pool = pool_of(least=2)
    until(lambda: ready(pool) == 2)
    assert [handle.ran for handle in factory.made] == [[("true",)], [("true",)]]
    assert {handle.unreported_ms for handle in factory.made} == {0.0}


def test_none_is_handed_out_twice_and_the_shelf_is_filled_again(
    pool_of: Callable[..., SandboxPool], factory: Factory
) -> None:
    pool = pool_of(least=2)
    until(lambda: ready(pool) == 2)
    first, second = pool.claim(PLAIN), pool.claim(PLAIN)
    assert first is not None and second is not None and first is not second
    until(lambda: ready(pool) >= 2)
    assert not any(pool.owns(handle) for handle in (first, second))
    pool.close()
    assert first not in factory.destroyed and second not in factory.destroyed
    assert {id(h) for h in factory.destroyed} == {id(h) for h in factory.made} - {
        id(first),
        id(second),
    }


def test_while_claims_come_only_a_low_shelf_is_filled(
    pool_of: Callable[..., SandboxPool], factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.sandbox.pool._CALM_SECONDS", LONG)
    pool = pool_of(least=8, most=8)
    until(lambda: ready(pool) == 8)
    for _ in range(6):
        assert pool.claim(PLAIN) is not None
    until(lambda: ready(pool) == 3)  # a quarter, and the one that is made of it
    assert len(factory.made) == 9
    monkeypatch.setattr("agentd.sandbox.pool._CALM_SECONDS", 0.0)
    until(lambda: ready(pool) == 8)


def test_a_shelf_that_runs_low_grows_before_it_is_empty(
    pool_of: Callable[..., SandboxPool], factory: Factory
) -> None:
    pool = pool_of(least=4, most=6)
    until(lambda: ready(pool) == 4)
    factory.gate.clear()
    for _ in range(2):
        assert pool.claim(PLAIN) is not None
    factory.gate.set()
    until(lambda: ready(pool) == 4)
    factory.gate.clear()
    for _ in range(4):  # at one and at none left it is low
        assert pool.claim(PLAIN) is not None
    factory.gate.set()
    until(lambda: ready(pool) == 6)


def test_an_empty_shelf_gives_none_and_grows_to_its_bound(
    pool_of: Callable[..., SandboxPool], factory: Factory
) -> None:
    pool = pool_of(least=1, most=3)
    until(lambda: ready(pool) == 1)
    factory.gate.clear()
    assert pool.claim(PLAIN) is not None
    assert [pool.claim(PLAIN) for _ in range(5)] == [None] * 5
    factory.gate.set()
    until(lambda: ready(pool) == 3)


def test_what_took_long_to_make_stands_ready_for_a_while(
    factory: Factory, pool_of: Callable[..., SandboxPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.sandbox.pool._CHECK_SECONDS", 0.0)
    looks: list[Any] = []

    def create(spec: SandboxSpec) -> Any:
        (shelf,) = pool._shelves.values()
        shelf.asked -= 60  # as an emulated machine takes to boot
        handle = factory.create(spec)
        handle.wall.alive = lambda: not looks.append(handle)
        return handle

    pool = pool_of(least=0, most=2)
    pool._create = create
    assert pool.claim(PLAIN) is None
    until(lambda: bool(factory.destroyed) or len(looks) >= 3)
    assert not factory.destroyed and ready(pool) == 1


def test_environment_and_command_bounds_are_the_claimers(
    pool_of: Callable[..., SandboxPool],
) -> None:
    pool = pool_of()
    until(lambda: ready(pool) == 2)
    asked = SandboxSpec(env={"A": "1"}, limits=Limits(timeout=2.0, output=10))
    handle = pool.claim(asked)
    assert handle is not None
    assert handle.spec == asked


@pytest.mark.parametrize(
    "change",
    [
        {"net": "host"},
        {"user": "root"},
        {"limits": Limits(memory=1 << 28)},
        {"image": "other"},
        {"hostname": "other"},
    ],
    ids=str,
)
def test_what_makes_another_wall_is_not_served(
    pool_of: Callable[..., SandboxPool], change: dict[str, Any]
) -> None:
    pool = pool_of()
    until(lambda: ready(pool) == 2)
    asked = msgspec.structs.replace(PLAIN, **change)
    assert shelf_key(asked) != shelf_key(PLAIN)
    assert pool.claim(asked) is None


def test_old_and_dead_ones_are_replaced(
    pool_of: Callable[..., SandboxPool], factory: Factory
) -> None:
    pool = pool_of(least=1, ttl=LONG)
    until(lambda: ready(pool) == 1)
    factory.made[0].alive = False
    until(lambda: factory.destroyed == [factory.made[0]])
    until(lambda: ready(pool) == 1 and len(factory.made) == 2)
    aging = pool_of(least=1, ttl=0.05)
    until(lambda: ready(aging) == 1)
    until(lambda: len(factory.destroyed) >= 3)


def test_a_failure_is_not_tried_again_at_once(
    pool_of: Callable[..., SandboxPool], factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.sandbox.pool._RETRY_SECONDS", 3600.0)
    factory.fail = True
    pool = pool_of(least=1)
    until(lambda: factory.failures > 0)
    factory.fail = False
    time.sleep(0.1)
    assert pool.claim(PLAIN) is None
    assert factory.made == []


def test_without_shelves_nothing_is_claimed_and_no_thread_runs(factory: Factory) -> None:
    pool = SandboxPool([], factory.create, factory.destroy)
    assert pool.claim(PLAIN) is None
    assert pool.sizes() == {}
    pool.close()
