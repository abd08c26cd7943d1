"""The feed of events: what is kept, who sees it, and that what is missing is told."""

import pytest

from agentd.daemon.events import MAX_KEPT, MAX_OF_ONE, EventFeed
from agentd.model.errors import InvalidInput
from agentd.model.events import EventKind
from agentd.model.principal import Principal

ANN = Principal("ann", frozenset(("read",)), "key")
BOB = Principal("bob", frozenset(("read",)), "key")
EVE = Principal("eve", frozenset(("read", "approve")), "key")
ROOT = Principal("root", frozenset(("admin",)), "peer")


def _sandboxes(events: EventFeed, who: Principal, after: str = "", limit: int = 1000) -> list[str]:
    return [event.sandbox for event in events.read(who, after, limit).events]


def test_a_principal_sees_its_own_and_an_admin_all() -> None:
    events = EventFeed()
    events.publish(EventKind.CREATED, "ann", "sbx-a")
    events.publish(EventKind.CREATED, "bob", "sbx-b")
    events.publish(EventKind.APPROVAL, "bob", "sbx-c", state="pending")

    assert _sandboxes(events, ANN) == ["sbx-a"]
    assert _sandboxes(events, BOB) == ["sbx-b", "sbx-c"]
    assert _sandboxes(events, EVE) == ["sbx-c"]
    assert _sandboxes(events, ROOT) == ["sbx-a", "sbx-b", "sbx-c"]


@pytest.mark.parametrize("who", [ANN, ROOT], ids=["owner", "admin"])
def test_pages_follow_each_other_without_a_gap_or_a_repeat(who: Principal) -> None:
    events = EventFeed()
    for n in range(10):
        events.publish(EventKind.CREATED, "ann", f"sbx-{n}")
        events.publish(EventKind.CREATED, "bob", "")
    seen, after = [], ""
    while (page := events.read(who, after, 3)).events:
        assert not page.lost
        seen += [event.sandbox for event in page.events if event.sandbox]
        after = page.next
    assert seen == [f"sbx-{n}" for n in range(10)]

    events.publish(EventKind.ENDED, "ann", "sbx-3")
    assert _sandboxes(events, who, after) == ["sbx-3"]


def test_one_principal_pushes_out_its_own_events_alone() -> None:
    events = EventFeed()
    events.publish(EventKind.CREATED, "ann", "sbx-a")
    mark = {who.name: events.read(who).next for who in (ANN, BOB)}
    for n in range(MAX_OF_ONE + 1):
        events.publish(EventKind.CREATED, "bob", f"sbx-{n}")

    assert _sandboxes(events, ANN) == ["sbx-a"]
    assert not events.read(ANN, mark["ann"]).lost
    page = events.read(BOB, mark["bob"])
    assert page.lost and page.events[0].sandbox == "sbx-1"
    assert not events.read(BOB, page.next).lost


def test_all_together_are_bounded_and_the_oldest_go() -> None:
    events = EventFeed()
    events.publish(EventKind.CREATED, "ann", "sbx-a")
    begun = events.read(ANN).events[0].id
    events.publish(EventKind.CREATED, "ann", "sbx-b")
    for n in range(MAX_KEPT):
        events.publish(EventKind.CREATED, f"p{n % 64}", "")

    assert _sandboxes(events, ANN) == []
    assert events.read(ANN, begun).lost
    assert events.read(ROOT, begun, 1).lost


def test_an_id_of_another_daemons_life_tells_that_some_are_lost() -> None:
    before, events = EventFeed(), EventFeed()
    events._life = before._life + "0"
    before.publish(EventKind.CREATED, "ann", "sbx-a")
    events.publish(EventKind.CREATED, "ann", "sbx-b")

    page = events.read(ANN, before.read(ANN).next)
    assert page.lost and [event.sandbox for event in page.events] == ["sbx-b"]


@pytest.mark.parametrize("after", ["7", "evt-", "evt-a", "evt-a-b", "evt-a-1-2", "evt--1", "x-a-1"])
def test_what_is_no_id_is_refused(after: str) -> None:
    with pytest.raises(InvalidInput, match="is no event's id"):
        EventFeed().read(ANN, after)


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_limit_out_of_bounds_is_refused(limit: int) -> None:
    with pytest.raises(InvalidInput, match=f"limit {limit} is out of range"):
        EventFeed().read(ANN, limit=limit)


def test_who_listens_is_told_of_what_it_may_see_until_it_stops() -> None:
    events, told = EventFeed(), []
    stop = events.listen(ANN, lambda: told.append("ann"))
    events.listen(ROOT, lambda: told.append("root"))
    events.publish(EventKind.CREATED, "ann", "")
    events.publish(EventKind.CREATED, "bob", "")
    assert told == ["ann", "root", "root"]
    stop()
    events.publish(EventKind.CREATED, "ann", "")
    assert told[3:] == ["root"]
