"""Attacks run behind a wall, whole or with named controls left out.

``sandbox(backend, without={...})`` gives a ``Box``. An attack is Python source; it starts with
``PRELUDE``, which has ``NR`` (system call numbers by name), ``call(name, *args)`` (a raw system
call: its result, or the name of its errno) and ``said(name, value)`` for what it found out.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from tests import gvisor, rootfs

from agentd.client import build
from agentd.linux import abi
from agentd.linux.seccomp.tables import numbers
from agentd.model.egress import EgressBounds, StaticHost
from agentd.model.errors import Refused
from agentd.model.result import Exit
from agentd.model.spec import ExecRequest
from agentd.sandbox.backends.gvisor.backend import GvisorBackend
from agentd.sandbox.backends.linux.backend import LinuxBackend
from agentd.sandbox.backends.oci.backend import OciBackend
from agentd.sandbox.backends.process import HostBackend, LandlockBackend
from agentd.sandbox.backends.qemu.backend import QemuBackend
from agentd.sandbox.ports import Wall
from agentd.transport.guest import Guest

# make test-root: where a test names no user, the linux wall's is root.
AS_ROOT = os.environ.get("AGENTD_TEST_AS_ROOT") == "1"
PYTHON = "/usr/bin/python3"
BACKENDS = {
    "host": HostBackend,
    "landlock": LandlockBackend,
    "linux": LinuxBackend,
    "oci": OciBackend,
    "gvisor": GvisorBackend,
    "qemu": lambda without: QemuBackend(),  # has no controls that are left out from here
}
PRELUDE = f"""
import ctypes, errno, os, signal, socket, struct, sys
NR = {numbers(abi.MACHINE)!r}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
def call(name, *args):
    words = [a if isinstance(a, bytes) else ctypes.c_long(a) if isinstance(a, int) else a
             for a in args]
    number = NR[name] if isinstance(name, str) else name
    result = _libc.syscall(ctypes.c_long(number), *words)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else result
def tried(action, *args):
    try:
        return action(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
def opens(path, flags=os.O_RDONLY):
    got = tried(os.open, path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if isinstance(got, int):
        os.close(got)
        return "opened"
    return got
def said(name, value):
    print(name, value, sep="=", flush=True)
"""


@dataclass(frozen=True)
class Ran:
    """How a command in a box ended, and what it wrote."""

    exit: Exit
    stdout: str
    stderr: str

    @property
    def said(self) -> dict[str, str]:
        """What the attack reported; one that did not come to its end has failed by itself."""
        assert self.exit.ok, f"{self.exit}\n{self.stdout}\n{self.stderr}"
        return dict(line.split("=", 1) for line in self.stdout.splitlines() if "=" in line)


@dataclass(frozen=True)
class Box:
    wall: Wall
    guest: Guest
    seconds: float = 120.0

    @property
    def workspace(self) -> str:
        return self.wall.workspace

    def run(self, attack: str | Sequence[str], *args: str, **request: Any) -> Ran:
        """A script with its ``sys.argv[1:]``, or an argv; 1 MiB a stream at most."""
        argv = (PYTHON, "-I", "-c", PRELUDE + attack) if isinstance(attack, str) else attack
        fields: dict[str, Any] = {
            "cwd": self.workspace,
            "timeout": self.seconds,
            "output_limit": 1 << 20,
        } | request
        exit_, out, err, _ = self.guest.run(ExecRequest((*argv, *args), **fields))
        return Ran(exit_, out.decode(errors="replace"), err.decode(errors="replace"))

    def attack(self, script: str, *args: str, **request: Any) -> dict[str, str]:
        """What the script ``said``."""
        return self.run(script, *args, **request).said


@dataclass
class _Yard:
    """The boxes of one test. Those of the same backend and controls are siblings."""

    backends: dict[tuple[str, frozenset[str]], Any] = field(default_factory=dict)
    boxes: list[Box] = field(default_factory=list)

    def make(
        self,
        backend: str,
        without: Collection[str] = (),
        hosts: Collection[StaticHost] = (),
        **spec: Any,
    ) -> Box:
        """``spec`` as of ``build.sandbox_spec``: ``user``, ``net``, ``mounts``, ``memory``...;
        ``hosts`` are an operator's, of a network with rules."""
        if AS_ROOT and backend == "linux":
            spec = {"user": "root"} | spec
        if rootfs.IMAGE and backend == "linux":
            spec = {"image": rootfs.name_of(rootfs.IMAGE)} | spec
            if "ids" in without:
                pytest.skip(
                    "sandboxes that share a user are none that an image's folder is open to"
                )
        key = (backend, frozenset(without))
        if key not in self.backends:
            self.backends[key] = BACKENDS[backend](without=key[1])
            found = self.backends[key].probe()
            if not found.usable:
                pytest.skip(f"{backend}: {'; '.join(b.what for b in found.blockers)}")
        of = self.backends[key]
        wanted = build.sandbox_spec(backend=backend, **spec)
        bounds = EgressBounds(hosts=tuple(hosts))
        try:
            plan = of.plan(msgspec.structs.replace(wanted, egress_bounds=bounds))
        except Refused as refusal:
            if backend != "gvisor":
                raise
            pytest.skip(f"gvisor refuses what is asked for: {refusal}")
        wall = of.launch(plan)
        guest = Guest(wall.open_stream, passes_descriptors=wall.passes_descriptors)
        box = Box(wall, guest, 300.0 if backend == "qemu" else 120.0)
        self.boxes.append(box)
        return box

    def close(self) -> None:
        for box in self.boxes:
            box.guest.close()
            box.wall.kill()
        for backend in self.backends.values():
            backend.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Over an image, those that have no box of it are what they are without. What every run asks of
    gVisor is in agentd selftest."""
    folder = os.path.dirname(__file__) + os.sep
    here = [item for item in items if str(item.path).startswith(folder)]
    out = {item for item in here if rootfs.IMAGE and "sandbox" not in _fixtures(item)}
    out |= {item for item in here if not gvisor.ALL and _of(item) == "gvisor"}
    config.hook.pytest_deselected(items=list(out))
    items[:] = [item for item in items if item not in out]


def _fixtures(item: pytest.Item) -> Sequence[str]:
    found: Sequence[str] = getattr(item, "fixturenames", ())
    return found


def _of(item: pytest.Item) -> str:
    call = getattr(item, "callspec", None)
    return str(call.params.get("enclosed", "")) if call else ""


@pytest.fixture(scope="session", autouse=True)
def image() -> Iterator[str]:
    """The name of the image that boxes of the linux wall start of; or none."""
    with rootfs.of_the_run() as name:
        yield name


@pytest.fixture
def sandbox() -> Iterator[Callable[..., Box]]:
    """``sandbox(backend, without=(), **spec)``: a fresh Box, ended with the test."""
    yard = _Yard()
    try:
        yield yard.make
    finally:
        yard.close()


@pytest.fixture(params=["linux", "landlock", "oci"])
def walled(request: pytest.FixtureRequest) -> str:
    """The name of every backend that confines."""
    name: str = request.param
    return name


@pytest.fixture(params=["linux", "landlock", "oci", "gvisor"])
def enclosed(request: pytest.FixtureRequest) -> str:
    """The same and gVisor's: for attacks that are told by what they reach. Others are told by the
    words of this kernel's refusal, where gVisor's has words of its own."""
    name: str = request.param
    return name


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host's that is no concern of any sandbox; of our own user."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": os.defpath},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        yield process
        process.kill()
