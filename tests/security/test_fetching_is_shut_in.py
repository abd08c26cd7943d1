"""Threat: a registry, or an image, has the program that reads it run code.

Control: skopeo and umoci run in a cell: a user and a root of their own, no capability, a filter.
"""

import os
import select
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.oci import Images

# Of a process that waits for a registry's answer, this is to be true whatever it would do.
_STATUS = {"Seccomp": "2", "NoNewPrivs": "1", **dict.fromkeys(("CapEff", "CapPrm", "CapBnd"), "0")}


@pytest.fixture
def registry() -> Iterator[socket.socket]:
    """One that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in map(int, found) for each in (child, *children(child))]


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: " ".join(value.split()) for name, _, value in (x.partition(":") for x in lines)}


@pytest.mark.needs("skopeo", "umoci")
@pytest.mark.root
def test_what_fetches_has_nothing_of_the_host(tmp_path: Path, registry: socket.socket) -> None:
    images = Images(tmp_path)
    place = f"127.0.0.1:{registry.getsockname()[1]}"
    pull = images.start("pull", f"docker://{place}/x:1", "--insecure")
    try:
        ready, _, _ = select.select([registry, pull.stdout], [], [], 120)
        assert registry in ready, pull.communicate()  # it fetches, and waits
        connection, _ = registry.accept()
        with connection:
            (skopeo,) = [
                pid
                for pid in children(pull.pid)
                if Path(f"/proc/{pid}/comm").read_text() == "skopeo\n"
            ]
            told = status(skopeo)
            for name, wanted in _STATUS.items():
                assert told[name].lstrip("0") == wanted.lstrip("0"), (name, told[name])
            assert len(set(told["Uid"].split())) == 1 and int(told["Uid"].split()[0]) > 1 << 30
            assert told["NSpid"].split()[-1] == "1"
            for path in ("/root", "/boot", str(tmp_path), __file__):
                assert not os.path.exists(f"/proc/{skopeo}/root{path}"), path
            for kind in ("user", "mnt", "pid", "ipc", "uts"):
                assert os.readlink(f"/proc/{skopeo}/ns/{kind}") != os.readlink(
                    f"/proc/self/ns/{kind}"
                )
            environ = Path(f"/proc/{skopeo}/environ").read_bytes()
            assert sys.prefix.encode() not in environ and str(tmp_path).encode() not in environ
    finally:
        pull.kill()
        pull.communicate()
