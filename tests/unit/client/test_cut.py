"""What is given up before its connection is there begins nothing, and waits for none."""

import os
import threading
from pathlib import Path

import pytest

from agentd.client.cut import Cut, GivenUp
from agentd.client.http import connection
from agentd.client.http.address import Address
from agentd.client.http.connection import Pool


class Held:
    is_cut = False

    def cut(self) -> None:
        self.is_cut = True


def test_what_was_given_up_before_holds_no_connection() -> None:
    given_up = Cut()
    given_up.set()
    with pytest.raises(GivenUp), given_up.holding(Held()):
        pytest.fail("it went on")


def test_who_gives_up_waits_for_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_OPEN", 0)
    pool, given_up, found = Pool(Address(path=os.fspath(tmp_path / "s"))), Cut(), []

    def ask() -> None:
        with pytest.raises(GivenUp):
            given_up.run(pool.take)
        found.append("given up")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    given_up.set()
    thread.join(120)
    assert found == ["given up"]
