"""Games with paths: what an fs capability answers is what the sandbox itself could have had."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.capability.builtin import fs
from agentd.model.capability import CallFailed
from agentd.model.errors import AgentdError, InvalidInput, OperationFailed

WALLS = pytest.mark.parametrize("backend", ["landlock", "linux"], indirect=True)
SECRET = "not-for-the-sandbox-" + secrets.token_hex(8)
READING = ("fs.read.v1", "fs.list.v1", "fs.edit.v1", "fs.search.v1")


def call(box: Any, name: str, path: str) -> dict[str, Any]:
    """A call of any of them at a path; for the writing ones with something to write."""
    more: dict[str, Any] = {
        "fs.write.v1": {"content": "x"},
        "fs.edit.v1": {"edits": [{"search": SECRET, "replace": "x"}]},
        "fs.search.v1": {"pattern": SECRET},
    }
    value: dict[str, Any] = box.call(name, path=path, **more.get(name, {}))
    return value


@pytest.fixture
def secret() -> Iterator[Path]:
    """A file of the host's that no sandbox was given, readable by everybody."""
    with tempfile.TemporaryDirectory(prefix="host-secret-", dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)  # noqa: S103  so that only a wall stands before it
        path = Path(folder, "secret.txt")
        path.write_text(SECRET)
        yield path


def _ways(secret: Path, workspace: str) -> dict[str, str]:
    up = "../" * 30
    return {
        "as it is": str(secret),
        "up from the workspace": f"{up}{str(secret)[1:]}",
        "up and down": f"{workspace}/x/../{up}{str(secret)[1:]}",
        "a link to it": "link",
        "a link to its directory": "folder/secret.txt",
        "a link by the way up": "up/" + str(secret)[1:],
        "the root of a process": f"/proc/self/root{secret}",
        "the root of the first process": f"/proc/1/root{secret}",
        "a link to the root of a process": f"root{secret}",
    }


@WALLS
@pytest.mark.parametrize("name", [*READING, "fs.write.v1"])
def test_no_way_out(box: Any, secret: Path, name: str) -> None:
    up = "../" * 30
    box.sh(f"mkdir x; ln -s {secret} link; ln -s {secret.parent} folder; ln -s {up} up")
    box.sh("ln -s /proc/self/root root")
    for way, path in _ways(secret, box.inside.workspace).items():
        try:
            value = call(box, name, path)
        except (CallFailed, InvalidInput):
            value = {}
        assert SECRET not in repr(value), way
        assert not value.get("matches"), way
    assert secret.read_text() == SECRET
    assert sorted(os.listdir(secret.parent)) == ["secret.txt"]


@pytest.mark.parametrize("backend", ["host"], indirect=True)
@pytest.mark.parametrize("name", READING)
def test_the_wall_is_what_stops_them(box: Any, secret: Path, name: str) -> None:
    """The same ways, without one: that the test above would see what comes through."""
    box.sh(f"mkdir x; ln -s {secret} link; ln -s {secret.parent} folder; ln -s {'../' * 30} up")
    through = set()
    for way, path in _ways(secret, box.inside.workspace).items():
        secret.write_text(SECRET)  # an edit that came through has changed it
        if "/proc/" in path or way == "a link to the root of a process":
            continue
        try:
            if name == "fs.list.v1":
                value = call(box, name, os.path.dirname(path) or path)
                seen = any(entry["path"] == "secret.txt" for entry in value["entries"])
            else:
                value = call(box, name, path)
                seen = True
        except CallFailed:
            continue
        through |= {way} if seen else set()
    assert len(through) >= 4


@WALLS
@pytest.mark.parametrize("name", [*READING, "fs.write.v1"])
@pytest.mark.parametrize("path", ["../../etc/shadow", "/etc/shadow", "/proc/self/root/etc/shadow"])
def test_shadow(box: Any, name: str, path: str) -> None:
    with pytest.raises(CallFailed) as caught:
        call(box, name, path)
    assert caught.value.code in {
        "not_found", "forbidden", "not_directory", "too_many_links", "read_only", "failed"
    }  # fmt: skip


def test_the_links_of_proc_are_not_followed(box: Any) -> None:
    box.sh("ln -s /proc/self/root/etc out; ln -s /proc/self/fd/0 zero")
    for path in ("/proc/self/root/etc/hostname", "out/hostname", "zero", "/proc/self/cwd/x"):
        with pytest.raises(CallFailed) as caught:
            box.call("fs.read.v1", path=path)
        assert caught.value.code in {"too_many_links", "forbidden", "not_found"}, path


def test_passwd_by_a_link_is_the_sandbox_s_own(box: Any) -> None:
    box.sh("ln -s /etc/passwd link")
    value = box.call("fs.read.v1", path="link")
    assert value["content"] == box.sh("cat /etc/passwd").text
    assert value["size"] == value["length"]
    assert box.call("fs.list.v1", path=".")["entries"][0]["target"] == "/etc/passwd"


@pytest.mark.parametrize("name", ["fs.read.v1", "fs.write.v1", "fs.edit.v1", "fs.search.v1"])
@pytest.mark.parametrize("file", ["fifo", "link-to-fifo", "/dev/zero", "/dev/tty", "/dev/null"])
def test_a_fifo_or_a_device_holds_nobody_up(box: Any, name: str, file: str) -> None:
    # The only time that there is: a test that waits for one of them never ends.
    box.sh("mkfifo fifo; ln -s fifo link-to-fifo")
    if name == "fs.write.v1" and file == "link-to-fifo":
        assert call(box, name, file) == {"size": 1}  # the link is replaced, the fifo stays
        assert box.sh("test -p fifo && test -f link-to-fifo && echo same").text == "same\n"
        return
    with pytest.raises(CallFailed) as caught:
        call(box, name, file)
    codes = {"not_a_file", "forbidden", "not_found", "read_only", "failed", "not_text"}
    assert caught.value.code in codes


def test_a_search_passes_by_what_is_no_file(box: Any) -> None:
    box.sh("mkfifo fifo; ln -s /etc/passwd link; ln -s . loop; echo root > file; mkdir d")
    value = box.call("fs.search.v1", pattern="root")
    assert [match["path"] for match in value["matches"]] == ["file"]
    assert value["files"] == 1


@WALLS
def test_a_link_that_comes_and_goes_lets_nothing_through(box: Any, secret: Path) -> None:
    from threading import Thread

    # A write that goes on in it may keep a directory for a while: what fails is tried again.
    swap = (
        f"while [ ! -e stop ]; do ln -sfn {secret.parent} d; rm -rf d; mkdir d;"
        " echo x > d/secret.txt; rm -rf d; done 2> errors; true"
    )
    swapper = Thread(target=box.sh, args=(swap,))
    swapper.start()
    outcomes, rounds = set(), 0
    try:
        while rounds < 60 or len(outcomes) < 2:  # a busy machine may have one of them wait for long
            rounds += 1
            for name in ("fs.read.v1", "fs.edit.v1", "fs.write.v1", "fs.list.v1"):
                path = "d" if name == "fs.list.v1" else "d/secret.txt"
                try:
                    value = call(box, name, path)
                    outcomes.add("answered")
                    assert SECRET not in repr(value)
                except CallFailed as error:
                    outcomes.add(error.code)
    finally:
        box.put("stop", "")
        swapper.join()
    assert secret.read_text() == SECRET


@pytest.mark.parametrize("name", [*READING, "fs.write.v1"])
@pytest.mark.parametrize("backend", ["host"], indirect=True)
def test_what_no_file_can_be_called(box: Any, name: str) -> None:
    for path in ("a\0b", "\0", "a" * 5000, "\u20ac" * 2000, ""):
        with pytest.raises(InvalidInput) as caught:
            call(box, name, path)
        assert not isinstance(caught.value, CallFailed)
    with pytest.raises(CallFailed) as failed:
        call(box, name, "a" * 300)
    assert failed.value.code in {"name_too_long", "forbidden"}


def test_links_in_a_circle(box: Any) -> None:
    box.sh("ln -s a b; ln -s b a")
    for name in READING:
        with pytest.raises(CallFailed) as caught:
            call(box, name, "a")
        assert caught.value.code in {"too_many_links", "forbidden", "not_directory"}, name


class Lying:
    """An Inside whose agent says anything."""

    workspace = "/w"

    def __init__(self, **answers: Any) -> None:
        self.files = type("Files", (), {k: staticmethod(v) for k, v in answers.items()})()

    def path(self, path: str) -> str:
        return os.path.join("/w", path)


def test_an_agent_s_endless_links_have_an_end() -> None:
    entry = type("Entry", (), {"type": "link", "target": "x" * 200 + "/y"})()
    with pytest.raises(OperationFailed, match="lead nowhere"):
        fs.follow(Lying(stat=lambda path: entry), "/w/a")  # type: ignore[arg-type]


def test_a_link_to_a_name_that_is_no_text(box: Any) -> None:
    box.put("d/f", "x")
    box.sh("mv d/f \"$(printf 'd/a\\377')\"; ln -s \"$(printf 'd/a\\377')\" link")
    box.call("fs.edit.v1", path="link", edits=[{"search": "x", "replace": "y"}])
    assert box.call("fs.read.v1", path="link")["content"] == "y"
    box.sh("rm d/*")
    with pytest.raises(CallFailed) as caught:
        call(box, "fs.edit.v1", "link")
    assert caught.value.code == "not_found" and "\ufffd" in caught.value.message


def test_an_agent_that_drips_is_not_waited_for() -> None:
    closed = []

    def drip(path: str, offset: int, length: int) -> Iterator[bytes]:
        try:
            while True:
                yield b""
        finally:
            closed.append(True)

    with pytest.raises(CallFailed) as caught:
        fs.read(Lying(read_iter=drip), "/w/a", 0, 10, fs.CallDeadline(0.05))  # type: ignore[arg-type]
    assert caught.value.code == "timeout" and closed == [True]


def test_an_errno_that_we_have_no_word_for() -> None:
    with pytest.raises(CallFailed) as caught, fs.refusals():
        raise OperationFailed("x: odd", errno=71)
    assert caught.value.code == "failed"
    with pytest.raises(AgentdError, match="else"), fs.refusals():
        raise AgentdError("something else")
