import errno
import threading

import pytest

from agentd.sandbox import finisher
from agentd.sandbox.finisher import Finisher


def test_calls_are_made_in_a_thread_and_waited_for_at_the_end() -> None:
    made: list[str] = []
    gate = threading.Event()
    found = Finisher()
    found.soon(lambda: gate.wait(120) and made.append(threading.current_thread().name))
    assert made == []
    gate.set()
    found.close()
    assert made == ["finisher"]
    found.close()


def test_what_fails_does_not_stop_the_next() -> None:
    made: list[int] = []

    def fail() -> None:
        raise OSError(errno.EBUSY, "still in use")

    found = Finisher()
    found.soon(fail)
    found.soon(lambda: made.append(1))
    found.close()
    assert made == [1]


def test_too_many_are_made_by_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finisher, "MAX_WAITING", 2)
    gate, made = threading.Event(), []
    found = Finisher()
    found.soon(lambda: gate.wait(120) and made.append("held"))
    found.soon(lambda: made.append("behind it"))
    found.soon(lambda: made.append(threading.current_thread().name))
    assert made == [threading.current_thread().name]
    gate.set()
    found.close()
    assert made[1:] == ["held", "behind it"]


def test_after_the_end_they_are_made_at_once() -> None:
    made: list[str] = []
    found = Finisher()
    found.close()
    found.soon(lambda: made.append(threading.current_thread().name))
    assert made == [threading.current_thread().name]
