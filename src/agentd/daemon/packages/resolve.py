"""The sandbox that finds and unpacks packages: with the network of the index, and nothing of the
caller's but the names that are asked for."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import msgspec

from agentd.daemon.packages import inside, pip
from agentd.daemon.packages.driver import MEMORY
from agentd.daemon.packages.python import TargetPython
from agentd.daemon.packages.rules import PackageRules
from agentd.guest.tar import TarError
from agentd.guest.unpack import Unpacker
from agentd.model.errors import Refused, SandboxError, Unavailable
from agentd.model.limits import Limits
from agentd.model.mount import Mount, MountMode
from agentd.model.packages import LockedPackage
from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox import progress
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.manager import Manager

SECONDS = 900.0  # of each of both runs
_GRACE = 60.0
_ROOM = 256 << 20  # for pip itself
_MAX_OUTPUT = 1 << 20
_RESOLVING = "resolving packages"
_DRIVER = "/tmp/driver.py"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class PackageResolver:
    """Resolves and unpacks in a sandbox for one request; made by ``opened``."""

    def __init__(
        self,
        handle: SandboxHandle,
        python: TargetPython,
        rules: PackageRules,
        packages: Sequence[str],
    ) -> None:
        self._handle = handle
        self._python = python
        self._rules = rules
        self._packages = packages

    def lock(self) -> tuple[LockedPackage, ...]:
        """Return which wheels the request is. Raises InvalidInput, Unavailable, SandboxError."""
        progress.report(_RESOLVING)
        self._pip(pip.resolving(self._python, self._rules.index, self._packages), quiet=True)
        report = self._handle.guest.files.read(pip.REPORT, length=pip.MAX_REPORT + 1)
        return pip.locked(report)

    def unpack(self, packages: tuple[LockedPackage, ...], path: str) -> None:
        """Fetch them, and write them as the folder ``path``, new. Raises as ``lock`` does."""
        files = self._handle.guest.files
        files.write(pip.LOCK, pip.lock_text(packages).encode())
        files.mkdir(pip.SITE, parents=True)
        compiled = self._has_same_bytecode()
        self._pip(pip.unpacking(self._python, self._rules.index, compiled=compiled))
        progress.report("keeping packages")
        parent = os.open(os.path.dirname(path), _FOLDER)
        unpacker = Unpacker(parent, os.fsencode(os.path.basename(path)), strict=True)
        try:
            for piece in files.read_tar(pip.SITE):
                unpacker.write(piece)
            for _ in unpacker.finish():
                pass
        except TarError as error:
            raise SandboxError(f"packages may not come out of their sandbox: {error}") from None
        finally:
            unpacker.close()
            os.close(parent)

    def _has_same_bytecode(self) -> bool:
        request = ExecRequest(
            ("python3", "-I", "-c", "import sys; print(sys.implementation.cache_tag)")
        )
        told = inside.run(self._handle, request).text.strip()
        return told == f"cpython-{self._python.minor.replace('.', '')}"

    def _pip(self, words: Sequence[str], *, quiet: bool = False) -> None:
        markers = msgspec.json.encode(self._python.markers()).decode()
        argv = (
            "python3",
            "-I",
            "-B",  # what is compiled beside pip is read, and nothing is written there
            _DRIVER,
            pip.PIP,
            self._python.executable,
            markers,
            *words,
        )
        output = _Output(quiet=quiet)
        request = ExecRequest(argv, timeout=SECONDS, env={"PYTHONUNBUFFERED": "1"})
        result = inside.run(self._handle, request, output, output.tick)
        if result.ok:
            return
        if result.cause.code is CauseCode.TIMEOUT:
            raise Unavailable(
                f"packages were not there within {SECONDS:.0f} s",
                remediation="ask again, or use an index that is nearer",
            )
        pip.raise_failure(output.text(), self._packages, self._python, self._rules.index)


class _Output:
    """What a run of pip says: how far it is goes to whoever listens, and its end is kept."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._kept = bytearray()
        self._line = b""
        self._stage = "fetching packages"

    def __call__(self, stream: str, data: bytes) -> None:
        self._kept = (self._kept + data)[-_MAX_OUTPUT:]
        if self._quiet:
            return
        *lines, self._line = (self._line + data[-_MAX_OUTPUT:]).split(b"\n")
        for line in lines[-64:]:
            found = pip.stage_of(line.decode(errors="replace").strip())
            if found is not None:
                self._stage = found[0] or self._stage
                progress.report(self._stage, found[1])

    def tick(self) -> None:
        """Say again how far it is: who listens may give it up."""
        progress.report(_RESOLVING if self._quiet else self._stage)

    def text(self) -> str:
        return self._kept.decode(errors="replace")


@contextlib.contextmanager
def opened(
    manager: Manager, python: TargetPython, rules: PackageRules, packages: Sequence[str]
) -> Iterator[PackageResolver]:
    """Open a sandbox for it. Raises what refuses that: not every wall has a network of rules."""
    spec = SandboxSpec(
        isolation=rules.isolation,
        net="restricted",
        egress=rules.egress,
        egress_bounds=rules.bounds,
        mounts=(Mount(pip.folder(), f"{pip.PIP}/pip", MountMode.RO),),
        limits=Limits(disk=rules.size + _ROOM),
    )
    handle = _made(manager, spec, rules)
    try:
        renew = getattr(handle.wall, "renew", None)
        if renew is not None:  # a supervisor has it, and would end it
            renew(2 * SECONDS + _GRACE)
        handle.guest.files.write(_DRIVER, inside.text("driver").encode())
        yield PackageResolver(handle, python, rules, packages)
    finally:
        manager.destroy(handle)


def _made(manager: Manager, spec: SandboxSpec, rules: PackageRules) -> SandboxHandle:
    """What it writes counts as memory: the usual limit is too low for it, where one is enforced."""
    memory = Limits(disk=rules.size + _ROOM, memory=rules.size + 2 * MEMORY)
    try:
        return manager.create(msgspec.structs.replace(spec, limits=memory))
    except Refused:
        return manager.create(spec)
