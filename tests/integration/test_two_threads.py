"""One thread reads what a command writes, and another one writes what it reads."""

import threading

import pytest

from agentd import Sandbox

LINES = [b"%d\n" % number for number in range(20_000)]


@pytest.mark.timeout(900)
def test_nothing_is_lost_nor_sent_twice() -> None:
    got: list[bytes] = []
    with Sandbox.create(embedded=True) as sandbox, sandbox.start(["cat"], stdin=True) as process:
        reader = threading.Thread(target=lambda: got.extend(chunk.data for chunk in process))
        reader.start()
        for line in LINES:
            process.write(line)
        process.close_stdin()
        reader.join(200)
        assert not reader.is_alive()
    assert b"".join(got) == b"".join(LINES)
