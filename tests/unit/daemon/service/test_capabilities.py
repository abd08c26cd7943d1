import select
from types import SimpleNamespace

import msgspec

from agentd.capability.registry import Registry
from agentd.daemon.service.capabilities import readable_once, view, views
from agentd.model import context


def test_what_works_comes_first_and_what_does_not_says_why():
    broken = SimpleNamespace(name="acme.broken.v1", value="acme_nowhere:CAPABILITY")
    found = views(Registry(points=lambda: [broken]))
    *good, bad = found
    assert "shell.exec.v1" in [view.name for view in good]
    assert not any(view.blocker for view in good)
    assert bad.name == "acme.broken.v1" and "acme_nowhere" in bad.blocker
    assert (bad.parameters, bad.needs, bad.examples) == ({}, {}, ())


def test_a_view_is_all_that_a_caller_needs():
    about = Registry().get("fs.write.v1").about
    told = view(about)
    assert (told.name, told.summary) == (about.name, about.summary)
    assert told.needs == {"level": "process", "network": False, "writes": True, "sandbox": True}
    assert told.parameters == about.schema
    assert [e["parameters"] for e in told.examples] == [e.parameters for e in about.examples]
    assert msgspec.json.decode(msgspec.json.encode(told))["name"] == "fs.write.v1"


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
