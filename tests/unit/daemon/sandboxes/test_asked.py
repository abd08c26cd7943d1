"""How many connections that wait are decided on at a time, and whose."""

import threading
from types import SimpleNamespace
from typing import Any

from agentd.daemon.sandboxes.asked import MOST, MOST_OF_ONE, AskedConnections
from agentd.model import context


class _Slow:
    """Decides on nothing before it is let go; ends with who asked, as an approval does."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def open(self, act: Any, **_: Any) -> Any:
        self.asked.append(act.who.name)
        gone = threading.Event()
        with context.client().telling(gone.set):
            gone.wait(60)
        return SimpleNamespace(within=lambda _: None)


class _Link:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def tell(self, _op: str, **fields: Any) -> None:
        self.told.append(fields)


def _live(number: int, owner: str) -> Any:
    from agentd.model.isolation import IsolationLevel
    from agentd.model.spec import SandboxSpec

    handle = SimpleNamespace(
        spec=SandboxSpec(), level=IsolationLevel.NAMESPACE, id=f"sbx-{number}", backend="linux"
    )
    record = SimpleNamespace(principal=owner, labels={})
    return SimpleNamespace(wall=SimpleNamespace(id=f"wall-{number}"), handle=handle, record=record)


def test_no_owner_keeps_the_others_from_being_decided_on() -> None:
    lives = [_live(n, f"owner-{n}") for n in range(MOST // MOST_OF_ONE + 1)]
    gate, link, asked = _Slow(), _Link(), AskedConnections()

    def ask(wall: int, port: int) -> None:
        asked.tell({"id": f"wall-{wall}", "host": "x.example", "port": port, "rule": "ask public"})

    ask(0, 1)  # before it is started
    asked.start(link, gate, lambda: lives)  # type: ignore[arg-type]
    for port in range(2, MOST_OF_ONE + 2):
        ask(0, port)
    (first,) = link.told
    assert first["port"] == MOST_OF_ONE + 1 and not first["allowed"] and first["seconds"]
    assert first["reason"] == f"{MOST_OF_ONE} connections of owner-0 wait to be decided on"
    for wall in range(1, len(lives)):
        for port in range(MOST_OF_ONE):
            ask(wall, port)
    assert {one["id"] for one in link.told[1:]} == {f"wall-{len(lives) - 1}"}
    assert {one["reason"] for one in link.told[1:]} == {f"{MOST} connections wait to be decided on"}
    ask(99, 1)
    assert link.told[-1]["reason"] == "its sandbox is not there"
    assert link.told[-1]["seconds"] == 0
    count = len(link.told)
    asked.close()
    for thread in threading.enumerate():
        if thread.name == "asked":
            thread.join(60)
    assert len(link.told) == count  # the next daemon is asked
    assert len(gate.asked) == MOST
