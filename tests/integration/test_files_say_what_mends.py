"""What files refuse says what to do about it, at every door."""

import errno
from collections.abc import Callable
from typing import Any

import pytest
from tests.security.daemons import Daemon, fixture

from agentd import OperationFailed, Sandbox

daemon = fixture()

_REFUSED: dict[int, Callable[[Sandbox], Any]] = {
    errno.ENOENT: lambda s: s.files.read("/workspace/none"),
    errno.EISDIR: lambda s: s.files.read("/workspace"),
    errno.ENOTDIR: lambda s: s.files.write("/workspace/file/x", b""),
    errno.EEXIST: lambda s: s.files.mkdir("/workspace/folder"),
    errno.ENOTEMPTY: lambda s: s.files.remove("/workspace/folder"),
    errno.ELOOP: lambda s: s.files.read("/workspace/round"),
    errno.ENAMETOOLONG: lambda s: s.files.write("/workspace/" + "x" * 256, b""),
    errno.EROFS: lambda s: s.files.write("/usr/x", b""),
    errno.EINVAL: lambda s: s.files.move("/workspace/folder", "/workspace/folder/in"),
    errno.ECONNREFUSED: lambda s: s.ports.open(81),
}


@pytest.mark.parametrize("at", ["here", "a daemon"])
def test_a_refusal_has_a_remediation(daemon: Daemon, at: str) -> None:
    where: dict[str, Any] = {"embedded": True} if at == "here" else {"url": daemon.url}
    with Sandbox.create(**where) as sandbox:
        sandbox.run("echo x > file; mkdir folder; echo x > folder/in; ln -s round round")
        for number, ask in _REFUSED.items():
            with pytest.raises(OperationFailed) as failed:
                ask(sandbox)
            assert failed.value.errno == number, failed.value
            assert failed.value.remediation, failed.value


def test_the_command_line_says_it_too(daemon: Daemon) -> None:
    box = daemon.sandbox()
    done = daemon.cli("cp", f"{box}:/workspace/none", str(daemon.folder / "got"))
    assert done.returncode == 125
    assert b"correct the path" in done.stderr, done.stderr
