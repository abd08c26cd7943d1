"""After the end nothing is left, and what is asked then is answered clearly."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentd import Sandbox, SandboxError
from agentd.testing.walls.claims import own_kernel


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Where sandboxes made in this test put what they keep on the host."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def token() -> Iterator[str]:
    """A number of seconds nobody else sleeps."""
    yield f"86{int.from_bytes(os.urandom(4)):010d}"


def sleepers(token: str) -> list[int]:
    """Every process of the machine with the token on its command line."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if token.encode() in line.split(b"\0"):
                found.append(int(entry))
    return found


def test_close_ends_every_process_however_it_hid(sandbox: Sandbox, token: str) -> None:
    if own_kernel(sandbox):
        pytest.skip("the host's kernel sees the machine, and not what runs in it")
    # A child, an orphan, one in a session of its own, one that ignores what can be ignored.
    sandbox.run(
        f"sleep {token} & (sleep {token} &) ; setsid sleep {token} & "
        f"(trap '' TERM INT HUP; setsid sleep {token} >/dev/null 2>&1 &); echo started"
    )
    assert wait(lambda: len(sleepers(token)) == 4), sleepers(token)
    sandbox.close()
    assert wait(lambda: not sleepers(token)), sleepers(token)


def test_close_ends_what_runs_in_the_foreground(make: Callable[..., Sandbox], token: str) -> None:
    sandbox = make()
    with sandbox.start(f"echo up; sleep {token}") as process:
        assert next(iter(process)).data == b"up\n"
        sandbox.close()
        result = process.wait()
    assert result.status in {"failed", "error"}
    assert wait(lambda: not sleepers(token))


def wait(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_close_leaves_no_file(make: Callable[..., Sandbox], temporary: Path) -> None:
    sandbox = make()
    if sandbox.url:
        pytest.skip("what it keeps on the host is the daemon's")
    sandbox.run("mkdir -p a/b; echo x > a/b/c; chmod 0 a/b; touch $HOME/x; ln -s / root")
    sandbox.close()
    assert list(temporary.iterdir()) == []


def test_close_is_idempotent(sandbox: Sandbox) -> None:
    sandbox.close()
    sandbox.close()
    sandbox.kill()


def test_use_after_close_is_a_clear_error(sandbox: Sandbox) -> None:
    name = sandbox.id
    sandbox.close()
    for use in (
        lambda: sandbox.run(["true"]),
        lambda: sandbox.start(["true"]),
        lambda: sandbox.files.read("/etc/passwd"),
        sandbox.ping,
    ):
        with pytest.raises(SandboxError) as caught:
            use()
        assert name in str(caught.value)
        assert "ended" in str(caught.value)
