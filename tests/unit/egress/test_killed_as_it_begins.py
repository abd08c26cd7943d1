"""What serves sandboxes' networks is killed again just as it begins: the next one serves them."""

import os
import signal
import socket
from pathlib import Path

import pytest
from tests.captured import Captured, Names, Served, echo, eventually
from tests.integration.test_networks_that_were_closed import relay_of
from tests.unit.egress.terminator.world import judging, read_head

from agentd.egress import deaths, terminating
from agentd.egress.compile import compile_table
from agentd.egress.keeper import RelayKeeper
from agentd.model.egress import EgressBounds, StaticHost

GET = "GET / HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n"


class Killing:
    """Asked who a new relay is, it kills that as often as it is told to."""

    left = 0

    def __call__(self) -> None:
        if self.left:
            self.left -= 1
            eventually(lambda: relay_of(os.getpid()))  # its words are there a moment after it is
            pid = relay_of(os.getpid())
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("times", [1, deaths.MOST - 1])
def test_a_relay_that_is_killed_before_it_is_told_who_it_is(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deaths, "WITHIN", 3600.0)  # a busy machine starts one in its own time
    served, inside, names, killing = Served(echo), Captured(), Names(), Killing()
    bounds = EgressBounds(hosts=(StaticHost("db.internal", "127.0.0.1", served.port),))
    keeper = RelayKeeper(killing, files=names)  # type: ignore[arg-type]
    try:
        admitted = keeper.admit(inside.sockets, compile_table(["db.internal:*"], bounds))
        assert inside.ask("talk('db.internal', 82, b'x')") == "x"
        killing.left, before = times, keeper.pid  # whose death is one more
        os.kill(before, signal.SIGKILL)
        eventually(lambda: not killing.left and keeper.pid != before)
        if times == 1:
            assert inside.ask("talk('db.internal', 82, b'y')") == "y"
        else:
            eventually(lambda: admitted.connections().rows[-1]["ended"])
            reason = admitted.connections().rows[-1]["reason"]
            assert reason.startswith(
                "its network was closed: it died 5 times within 3600 s, at last"
            )
        admitted.close()
    finally:
        keeper.close()
        names.close()
        inside.close()
        served.close()


def test_a_terminator_that_is_killed_before_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(sock: socket.socket) -> None:
        if read_head(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    once = tmp_path / "kill"
    kills = (
        f"import os; os.path.exists({str(once)!r}) and "
        f"(os.unlink({str(once)!r}), os.kill(os.getpid(), {signal.SIGKILL:d}))"
    )
    module = terminating.MODULE
    with judging(tmp_path) as own, own.program(serve, ["read api.example.com"]) as it:
        assert "ok" in str(it.ask(f"once({GET!r})"))
        monkeypatch.setattr(terminating, "MODULE", f"{module} import main; {kills}; from {module}")
        once.touch()
        os.kill(it.keeper.terminating.pid, signal.SIGKILL)
        eventually(lambda: not once.exists())
        eventually(lambda: "ok" in str(it.ask(f"attempt(once, {GET!r})")))
