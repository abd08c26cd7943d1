"""A sandbox that is ended while the store takes nothing."""

from types import SimpleNamespace

import pytest

from agentd.daemon.commands.ends import DESTROYED
from agentd.daemon.sandboxes.live import Live
from agentd.daemon.sandboxes.sandboxes import Sandboxes
from agentd.daemon.store.errors import StoreBusy
from agentd.model.limits import Limits


class Stub:
    """Notes what it is asked for. A store that is full, too."""

    def __init__(self):
        self.asked = []

    def close(self, handle):
        self.asked.append(handle)

    def submit(self, work, **how):
        raise StoreBusy("8192 writes wait for the store")

    def give_back(self, owner, limits):
        self.asked.append(owner)

    def sandbox_ended(self, live, reason):
        self.asked.append(reason)


def live():
    spec = SimpleNamespace(limits=Limits())
    record = SimpleNamespace(principal="alice", name="", spec=spec, save={})
    return SimpleNamespace(
        id="sbx-a", record=record, handle="its handle", begin_end=lambda reason: True
    )


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_runs_in_one_that_the_store_takes_no_note_of(fails: bool) -> None:
    """It was forgotten and went on, in nobody's quota; a second DELETE said that there was none."""
    stub, told = Stub(), []

    def on_end(live, reason):
        told.append(reason)
        if fails:
            raise RuntimeError("nobody foresaw this")

    made = Sandboxes(None, stub, None, stub, None, stub, None, on_end, stub)
    if fails:
        with pytest.raises(RuntimeError):
            made.end(live())
    else:
        made.end(live())
    assert told == ["destroyed"]
    assert stub.asked[-2:] == ["its handle", "alice"]


@pytest.mark.parametrize("is_idle", [False, True])
def test_one_that_is_not_ended_at_once_says_of_nothing_that_it_was(is_idle: bool) -> None:
    """Who is to end it otherwise may find no room: then it lives, and what is killed in it says
    why that was."""

    def end_if_idle(tell):
        if is_idle:
            tell()
            seen.append(handle.why)
        return is_idle

    seen: list[object] = []
    handle = SimpleNamespace(why=None, wall=SimpleNamespace(end_if_idle=end_if_idle))
    one = Live(handle, SimpleNamespace(id="sbx-a"), None)
    assert one.begin_end_if_idle("destroyed") is is_idle
    assert handle.why is (DESTROYED if is_idle else None)
    assert seen == [DESTROYED] * is_idle
