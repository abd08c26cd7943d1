"""Names of sandboxes: while one is made, who else wants it waits, so long and so many."""

import threading

import pytest

from agentd.daemon.sandboxes import names
from agentd.daemon.sandboxes.names import Names
from agentd.model.errors import Conflict, Full


def test_who_does_not_wait_is_told_that_it_is_taken() -> None:
    known = Names()
    with (
        known.making("ann", "box"),
        pytest.raises(Conflict, match="'box' already"),
        known.making("ann", "box"),
    ):
        pass
    with known.making("ann", "box"), known.making("bob", "box"):
        pass


def test_it_is_waited_for_as_long_as_was_asked() -> None:
    known = Names()
    with (
        known.making("ann", "box"),
        pytest.raises(Conflict, match="still being made"),
        known.making("ann", "box", wait=0.01),
    ):
        pass


def test_of_one_principal_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_WAITING_OF_ONE", 1)
    known, went_on = Names(), threading.Event()

    def wait() -> None:
        with known.making("ann", "box", wait=120):
            went_on.set()

    waiting = threading.Thread(target=wait)
    with known.making("ann", "box"), known.making("bob", "box"):
        waiting.start()
        while not known._waiting["ann"]:
            threading.Event().wait(0.01)
        with pytest.raises(Full, match="1 requests of ann"), known.making("ann", "box", wait=120):
            pass
        with (
            pytest.raises(Conflict, match="still being made"),
            known.making("bob", "box", wait=0.01),
        ):
            pass
        assert not went_on.is_set()
    waiting.join(120)
    assert went_on.is_set()
