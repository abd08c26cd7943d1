import select

from agentd.daemon.calls.ends import readable_once
from agentd.model import context


def is_readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def test_a_call_is_told_once_who_waits_for_it_has_gone() -> None:
    gone = context.Gone()
    with readable_once(gone) as first, readable_once(context.NEVER) as other:
        assert not is_readable(first)
        gone.set()
        gone.set()
        assert is_readable(first) and not is_readable(other)
    with readable_once(gone) as late:
        assert is_readable(late)


def test_nothing_is_written_once_the_call_has_ended() -> None:
    """No descriptor is written to that is somebody else's by now."""
    gone = context.Gone()
    with readable_once(gone) as first:
        pass
    with readable_once(context.NEVER) as second:
        assert first == second
        gone.set()
        assert not is_readable(second)
