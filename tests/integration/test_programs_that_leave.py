"""What becomes of what a program holds by the SDK when it is cancelled, forks or forgets it."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.security.daemons import WAIT, Daemon, running, until

QUOTA = "[quotas.principals.ann]\nsandboxes = 1\n"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running(QUOTA) as made:
        yield made


def program(text: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text, *words],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


CANCELLED = """
import asyncio, sys
from agentd import AsyncSandbox

async def main():
    try:
        async with asyncio.timeout(1):
            await AsyncSandbox.create(url=sys.argv[1], api_key=sys.argv[2], wait="1h")
    except TimeoutError:
        print("timed out")

asyncio.run(main())
"""


def test_a_loop_ends_though_a_sandbox_was_waited_for(daemon: Daemon) -> None:
    key = daemon.key("ann")
    box = daemon.sandbox(key)
    assert program(CANCELLED, daemon.url, key) == "timed out\n"
    # Nobody has its turn any more: there is one, and it was there before.
    until(lambda: daemon.ask("GET", "/v1/stats").json["queue"] == 0)
    assert daemon.ask("DELETE", f"/v1/sandboxes/{box}", key=key).status == 204
    assert daemon.ask("GET", "/v1/sandboxes", key=key).json["sandboxes"] == []


FORKED = """
import gc, os, sys
from agentd import Client, Sandbox

where = {"url": sys.argv[1]} if len(sys.argv) > 1 else {"embedded": True}
sandbox = Sandbox.create(**where)
client = Client(sys.argv[1]) if len(sys.argv) > 1 else None
assert sandbox.run("echo before").text == "before\\n"
child = os.fork()
if child == 0:
    status = 1
    try:
        if client is not None:
            for _ in range(10):
                assert client.sandboxes.get(sandbox.id).state == "ready"
        del sandbox
        gc.collect()
        status = 0
    finally:
        os._exit(status)
_, status = os.waitpid(child, 0)
assert status == 0, status
for _ in range(10):
    assert sandbox.run("echo after").text == "after\\n"
if client is not None:
    client.close()
sandbox.close()
print("done")
"""


@pytest.mark.parametrize("where", ["embedded", "daemon"])
def test_a_forked_child_leaves_its_parents_sandbox_alone(daemon: Daemon, where: str) -> None:
    assert program(FORKED, *([daemon.url] if where == "daemon" else [])).endswith("done\n")


FORGOTTEN = """
import gc, os, sys, warnings
from agentd import Client, Sandbox

warnings.simplefilter("ignore")
def open_files():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

Client(sys.argv[1]).machine.version()
before = open_files()
for _ in range(5):
    client = Client(sys.argv[1])
    client.machine.version()
    del client
    sandbox = Sandbox.create(url=sys.argv[1])
    sandbox.run("true")
    sandbox.ports.url(8080)
    sandbox.kill()
    del sandbox
assert open_files() <= before + 1, (before, open_files())
with Client(sys.argv[1]) as client:
    assert client.sandboxes.list() == ()
print("done")
"""


def test_what_is_forgotten_keeps_no_descriptor(daemon: Daemon) -> None:
    assert program(FORGOTTEN, daemon.url).endswith("done\n")
