"""Programs as they are, in the namespace wall: what they ask of the kernel is there."""

import shutil
from collections.abc import Iterator

import pytest

from agentd.client.sandbox import Sandbox


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox.create(isolation="namespace", backend="linux") as made:
        yield made


def needs(program: str) -> None:
    if not any(shutil.which(program, path=path) for path in ("/usr/bin", "/usr/sbin", "/bin")):
        pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize(("program", "arguments", "said"), [
    ("node", ["-e", "console.log(Object.keys(os.networkInterfaces()))"], "lo"),
    ("python3", ["-c", "import socket; print(socket.if_nameindex())"], "'lo'"),
    ("ip", ["addr"], "127.0.0.1/8"),
    ("ip", ["route", "get", "127.0.0.1"], "dev lo"),
])  # fmt: skip
def test_a_program_lists_the_interfaces(
    box: Sandbox, program: str, arguments: list[str], said: str
) -> None:
    needs(program)
    ran = box.run([program, *arguments])
    assert ran.ok and said in ran.text, (ran.text, ran.stderr)


def test_ip_changes_none(box: Sandbox) -> None:
    needs("ip")
    for words in ("addr add 127.0.0.9/8 dev lo", "link set lo down", "link add d0 type dummy"):
        ran = box.run(["ip", *words.split()])
        assert not ran.ok and b"Operation not permitted" in ran.stderr, words
