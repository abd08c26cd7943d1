"""Whoever may open /dev/kvm has machines in it, whatever its mode: what confines the monitor never
opens it. Each case has the device with that mode and group, in a mount namespace of its own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import NOBODY, OrdinaryUser
from tests.machine.patience import patient

pytestmark = [
    pytest.mark.pending_kvm,
    pytest.mark.root,
    pytest.mark.needs("setpriv"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed"),
]
_GROUP = 4344
_SECONDS = 1800
# A folder for the device, its mode, its group; then a command.
_DEVICE = """
mount -t tmpfs -o mode=755 kvm "$1"
cp -a /dev/kvm "$1/kvm"
chmod "$2" "$1/kvm"
chown "0:$3" "$1/kvm"
mount --bind "$1/kvm" /dev/kvm
shift 3
exec "$@"
"""
_USED = """
import json
from agentd import Sandbox
say = {}
with Sandbox.create(isolation="microvm", backend="qemu", memory="64M", embedded=True) as sandbox:
    say["detail"] = sandbox.enforcement["virtual_machine"].detail
    say["run"] = sandbox.run("cat", stdin="on").text
    sandbox.files.write("/workspace/file", b"kept")
    sandbox.run("sleep 600 & echo $! > pid", check=True)
    with sandbox.snapshot() as kept, Sandbox.create(snapshot=kept, embedded=True) as again:
        say["snapshot"] = again.run("cat file; kill -0 $(cat pid) && echo ' on'").text
    (copy,) = sandbox.fork()
    with copy:
        say["fork"] = copy.run("cat file; kill -0 $(cat pid) && echo ' on'").text
    say["after"] = sandbox.run("cat file").text
print(json.dumps(say))
"""


class Machines:
    """What agentd does as root or as an ordinary user where the device is so."""

    def __init__(self, home: Path, python: list[str], path: str) -> None:
        self.user = OrdinaryUser(home, python, path)
        self._python = python
        (home / "device").mkdir()
        self._folder = str(home / "device")

    def ask(self, mode: str, who: list[str], *args: str) -> Any:
        """What it printed, from JSON. ``who``: options of setpriv, none for root."""
        drop, python, env = ["setpriv", *who], self._python, self.user.env
        if not who:
            drop, python, env = [], [sys.executable], dict(os.environ)
        argv = ["unshare", "--mount", "sh", "-ec", _DEVICE, "sh", self._folder, mode, str(_GROUP)]
        done = subprocess.run(
            [*argv, *drop, *python, *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            cwd="/",
            env=env,
            check=False,
        )
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def said(self, mode: str, who: list[str]) -> str:
        """What ``agentd doctor`` says of QEMU."""
        told = self.ask(mode, who, "-m", "agentd", "doctor", "--json")
        (found,) = (each for each in told["backends"] if each["name"] == "qemu")
        return " ".join(found["notes"])


@pytest.fixture(scope="module")
def machines(_user_python: tuple[list[str], str]) -> Iterator[Machines]:
    with tempfile.TemporaryDirectory(prefix="agentd-home-") as name:
        home = Path(name)
        made = Machines(home, *_user_python)
        os.chown(home, NOBODY, NOBODY)
        made.user.take_image()
        yield made


ALONE = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
IN_GROUP = [f"--reuid={NOBODY}", f"--regid={NOBODY}", f"--groups={_GROUP}"]


@pytest.mark.timeout(_SECONDS)
@pytest.mark.parametrize(
    ("mode", "who"),
    [
        pytest.param("600", [], id="0600-root"),
        pytest.param("660", [], id="0660-root"),
        pytest.param("660", IN_GROUP, id="0660-in-the-group"),
        pytest.param("666", ALONE, id="0666-anybody"),
    ],
)
def test_who_may_open_it_has_machines_in_it(machines: Machines, mode: str, who: list[str]) -> None:
    assert "accel=kvm" in machines.said(mode, who)
    used = machines.ask(mode, who, "-c", patient(_USED))
    assert "accel=kvm" in used.pop("detail")
    copied = "kept on\n"
    assert used == {"run": "on", "snapshot": copied, "fork": copied, "after": "kept"}


@pytest.mark.parametrize(("mode", "who"), [("660", ALONE), ("600", IN_GROUP)])
def test_who_may_not_is_told_so_and_has_none_in_it(
    machines: Machines, mode: str, who: list[str]
) -> None:
    said = machines.said(mode, who)
    assert "accel=tcg" in said
    assert f"uid {NOBODY} may not open /dev/kvm" in said
