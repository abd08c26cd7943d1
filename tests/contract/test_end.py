"""After the end nothing is left, and what is asked then is answered clearly."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.client.local import LocalSandbox
from agentd.client.sandbox import Sandbox
from agentd.daemon.pipeline import Pipeline
from agentd.model.cause import CauseCode
from agentd.model.errors import AgentdError, SandboxError
from agentd.model.principal import local


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


def _sleepers(token: str) -> list[int]:
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


def test_close_ends_every_process_however_it_hid(
    kind: Any, make: Callable[..., Sandbox], handle_of: Callable[[Sandbox], Any], token: str
) -> None:
    sandbox = make()
    # A child, an orphan, one in a session of its own, one that ignores what can be ignored.
    sandbox.run(
        f"sleep {token} & (sleep {token} &) ; setsid sleep {token} & "
        f"(trap '' TERM INT HUP; setsid sleep {token} >/dev/null 2>&1 &); echo started"
    )
    if kind.machine:  # the host's kernel sees the machine and not what runs in it
        counted = f"grep -lx sleep.{token}. /proc/[0-9]*/cmdline | wc -l"
        assert _wait(lambda: sandbox.run(counted).text == "4\n"), sandbox.run(counted)
        wall = handle_of(sandbox).wall
        sandbox.close()
        assert not wall.alive()
        return
    assert _wait(lambda: len(_sleepers(token)) == 4), _sleepers(token)
    sandbox.close()
    assert _wait(lambda: not _sleepers(token)), _sleepers(token)


def test_close_ends_what_runs_in_the_foreground(make: Callable[..., Sandbox], token: str) -> None:
    sandbox = make()
    with sandbox.start(f"echo up; sleep {token}") as process:
        assert next(iter(process)).data == b"up\n"
        sandbox.close()
        result = process.wait()
    assert result.status in {"failed", "error"}
    assert _wait(lambda: not _sleepers(token))


def _wait(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_close_leaves_no_file(make: Callable[..., Sandbox], temporary: Path) -> None:
    sandbox = make()
    sandbox.run("mkdir -p a/b; echo x > a/b/c; chmod 0 a/b; touch $HOME/x; ln -s / root")
    sandbox.close()
    assert list(temporary.iterdir()) == []


def test_close_is_idempotent(sandbox: Sandbox) -> None:
    sandbox.close()
    sandbox.close()
    sandbox.kill()


@pytest.mark.parametrize(
    "use",
    [
        lambda sandbox: sandbox.run(["true"]),
        lambda sandbox: sandbox.start(["true"]),
        lambda sandbox: sandbox.files.read("/etc/passwd"),
        lambda sandbox: sandbox.ping(),
    ],
    ids=["run", "start", "files", "ping"],
)
def test_use_after_close_is_a_clear_error(
    sandbox: Sandbox, use: Callable[[Sandbox], object]
) -> None:
    name = sandbox.id
    sandbox.close()
    with pytest.raises(SandboxError) as caught:
        use(sandbox)
    assert name in str(caught.value)
    assert "ended" in str(caught.value)


def test_a_wall_that_dies_is_a_cause_of_its_own(
    sandbox: Sandbox, end_agent: Callable[[Sandbox], None], token: str
) -> None:
    with sandbox.start(f"echo up; sleep {token}") as process:
        chunks = iter(process)
        assert next(chunks).data == b"up\n"
        end_agent(sandbox)
        result = process.wait()
    assert result.cause.code is CauseCode.BACKEND_LOST
    assert result.status == "error"
    assert result.cause.remediation
    with pytest.raises(AgentdError) as caught:
        sandbox.run(["true"])
    assert caught.value.code == "backend_lost"
    sandbox.close()
    assert _wait(lambda: not _sleepers(token))


def test_a_sandbox_that_was_forgotten_is_ended_with_a_warning(
    make: Callable[..., Sandbox], handle_of: Callable[[Sandbox], Any], pipeline: Pipeline
) -> None:
    who = local("test")
    handle = pipeline.open(who, handle_of(make()).spec)
    sandbox = Sandbox(LocalSandbox(pipeline, handle, who))
    with pytest.warns(ResourceWarning, match=handle.id):
        del sandbox
    assert handle not in pipeline.manager.sandboxes()
