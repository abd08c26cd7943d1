import threading

import pytest

from agentd.daemon.config.schema import Quota, Quotas
from agentd.daemon.service import quotas as module
from agentd.daemon.service.quotas import Ledger
from agentd.model.errors import Full, QuotaExceeded
from agentd.model.limits import Limits

MIB = 1 << 20
SMALL = Limits(memory=64 * MIB, disk=32 * MIB)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ledger(clock: Clock, **quota: object) -> Ledger:
    quotas = Quotas(default=Quota(**quota), principals={"free": Quota()})  # type: ignore[arg-type]
    return Ledger(quotas, clock)


def test_sandboxes_memory_and_disk_are_counted_together_and_given_back(clock: Clock) -> None:
    book = ledger(clock, sandboxes=3, memory=128 * MIB, disk=1 << 40)
    book.take("a", SMALL)
    book.take("a", SMALL)
    with pytest.raises(
        QuotaExceeded, match="a may have 128 MiB of memory: has 128 MiB, and asks for 64 MiB"
    ):
        book.take("a", SMALL)
    book.take("b", SMALL)  # each has its own
    book.give_back("a", SMALL)
    book.take("a", SMALL)


def test_what_exists_already_is_counted_even_beyond_the_quota(clock: Clock) -> None:
    book = ledger(clock, sandboxes=1)
    for _ in range(3):
        book.take("a", SMALL, force=True)
    with pytest.raises(QuotaExceeded, match="1 sandboxes"):
        book.take("a", SMALL)


def test_a_default_limit_counts_as_what_it_is(clock: Clock) -> None:
    book = ledger(clock, memory=1024 * MIB)
    book.take("a", Limits())
    with pytest.raises(QuotaExceeded):
        book.take("a", Limits(memory=1))


def test_a_principal_of_its_own_quota_has_no_other(clock: Clock) -> None:
    book = ledger(clock, sandboxes=0)
    book.take("free", SMALL)
    with pytest.raises(QuotaExceeded):
        book.take("other", SMALL)


def test_requests_are_let_in_at_their_rate_and_told_when_to_come_back(clock: Clock) -> None:
    book = ledger(clock, requests=10.0, burst=2)
    book.request("a")
    book.request("a")
    with pytest.raises(QuotaExceeded) as caught:
        book.request("a")
    assert caught.value.retry_after == pytest.approx(0.1)
    clock.now += 0.11
    book.request("a")
    with pytest.raises(QuotaExceeded):
        book.request("a")
    clock.now += 100
    book.request("a")
    book.request("a")
    with pytest.raises(QuotaExceeded):
        book.request("a")


def test_commands_at_the_same_time_are_bounded(clock: Clock) -> None:
    book = ledger(clock, concurrency=1)
    with book.command("a"):
        with pytest.raises(QuotaExceeded, match="at the same time"), book.command("a"):
            raise AssertionError("it ran")
        with book.command("b"):
            pass
    with book.command("a"):
        pass


def test_cpu_time_is_bounded_in_an_hour(clock: Clock) -> None:
    book = ledger(clock, cpu_seconds=10.0)
    with book.command("a"):
        book.used_cpu("a", 11.0)
    clock.now += 600
    with pytest.raises(QuotaExceeded) as caught, book.command("a"):
        raise AssertionError("it ran")
    assert caught.value.retry_after == pytest.approx(3000.0)
    clock.now += 3000
    with book.command("a"):
        pass


def test_of_those_that_wait_for_room_one_principal_leaves_others_a_share(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 8)
    book, waiting = ledger(clock, sandboxes=1), list[threading.Thread]()

    def wait(name: str) -> None:
        with pytest.raises(Full):
            book.take(name, SMALL, wait=120.0)

    def waits(name: str) -> None:
        before = book.waiting
        waiting.append(threading.Thread(target=wait, args=(name,)))
        waiting[-1].start()
        while book.waiting == before:
            threading.Event().wait(0.01)

    for name in ("ann", "bob", "carol"):
        book.take(name, SMALL)
    for name in ("ann", "ann", "ann", "ann", "bob", "bob", "carol"):
        waits(name)
    for name, own in (("ann", 4), ("bob", 2), ("carol", 1)):
        with pytest.raises(Full, match=f"7 requests wait for room, {own} of them {name}'s"):
            book.take(name, SMALL, wait=120.0)
    book.close()
    for thread in waiting:
        thread.join()
