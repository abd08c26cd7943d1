"""Timers, calls at the end of a round, signals, and callbacks that fail."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from agentd.guest.loop import READ, Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_timers_fire_in_order_and_not_when_cancelled(loop: Loop) -> None:
    fired: list[int] = []
    loop.after(0.02, lambda: fired.append(2))
    loop.after(0.01, lambda: fired.append(1))
    loop.after(0.015, lambda: fired.append(9)).cancel()
    loop.run()
    assert fired == [1, 2]


def test_cancelled_timers_do_not_pile_up(loop: Loop) -> None:
    for _ in range(10_000):
        loop.after(3600, lambda: None).cancel()
    assert len(loop._timers) < 200


def test_soon_runs_after_the_round(loop: Loop) -> None:
    order: list[str] = []
    reader, writer = os.pipe()
    os.write(writer, b"x")

    def ready(_: int) -> None:
        loop.soon(lambda: order.append("soon"))
        order.append("ready")
        loop.forget(reader)

    loop.watch(reader, READ, ready)
    loop.run()
    assert order == ["ready", "soon"]
    os.close(reader)
    os.close(writer)


def test_signals_are_delivered_and_handlers_put_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    loop = Loop()
    got: list[int] = []

    def on_signal() -> None:
        got.append(1)
        loop.stop()

    loop.on_signal(signal.SIGUSR1, on_signal)
    # To this thread: another one would die of it.
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    loop.run()
    loop.close()
    assert got == [1]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_callback_that_raises_is_reported_and_forgotten() -> None:
    errors: list[Exception] = []
    loop = Loop(on_error=errors.append)
    reader, writer = os.pipe()
    os.write(writer, b"x")

    def fail(_: int) -> None:
        raise ValueError("broken")

    loop.watch(reader, READ, fail)
    loop.run()
    loop.close()
    os.close(reader)
    os.close(writer)
    assert [str(error) for error in errors] == ["broken"]


def test_it_ends_when_only_a_cancelled_timer_is_left(loop: Loop) -> None:
    late = loop.after(3600, lambda: None)
    loop.after(0, late.cancel)
    loop.run()
    assert late.callback is None
