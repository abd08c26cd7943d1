"""The Python that sandboxes of a kind have: asked of one of them, once.

What it says is a sandbox's word. It chooses among wheels, and is checked to be of the form of what
it should be; a set of packages is for what was said, so that a lie is told to the liar alone.
"""

import contextlib
import os
import re
import shutil
from hashlib import sha256

import msgspec

from agentd.daemon.packages import inside
from agentd.model import typed
from agentd.model.errors import AgentdError, Refused, SandboxError
from agentd.model.mount import MountMode
from agentd.model.spec import DEFAULT_IMAGE, ExecRequest, SandboxSpec
from agentd.sandbox.manager import Manager
from agentd.sandbox.packages import PackageStore

_SECONDS = 60.0
_MAX_ANSWER = 64 << 10
_MACHINES = ("qemu", "firecracker")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_EXECUTABLE = re.compile(r"/[A-Za-z0-9_./+-]{1,200}")
_SOABI = re.compile(r"cpython-(3[0-9]{1,2}t?)-[a-z0-9_-]+")
_VERSION = re.compile(r"(3)\.([0-9]{1,2})\.([0-9]{1,2})[a-z0-9+]{0,8}")
_LIBC = re.compile(r"([0-9]{1,2})\.([0-9]{1,3})(\.[0-9]{1,3})?")
_PLATFORM = re.compile(r"linux-([a-z0-9_]{1,16})")
_FIX = "use an image with CPython 3.9 or newer, as python:3.13-slim"


class TargetPython(msgspec.Struct, frozen=True):
    """As ``probe`` prints it; ``path`` and ``pythonpath`` are the variables of commands there."""

    executable: str
    soabi: str
    platform: str
    libc: str
    libc_version: str
    implementation_name: str
    implementation_version: str
    python_full_version: str
    platform_machine: str
    path: str = ""
    pythonpath: str = ""

    @property
    def minor(self) -> str:
        """As "3.13"."""
        return ".".join(self.python_full_version.split(".")[:2])

    @property
    def abi(self) -> str:
        """As "cp313", or "cp313t" without the global lock."""
        found = _SOABI.fullmatch(self.soabi)
        return f"cp{found[1]}" if found else ""

    @property
    def platforms(self) -> tuple[str, ...]:
        """The tags of the platforms whose wheels it takes, the nearest first."""
        found = _LIBC.fullmatch(self.libc_version)
        machine = self.platform.removeprefix("linux-")
        major, minor = (int(found[1]), int(found[2])) if found else (0, 0)
        word = "manylinux" if self.libc == "glibc" else "musllinux"
        least = 5 if self.libc == "glibc" else 0  # manylinux1 is of glibc 2.5
        tags = [f"{word}_{major}_{n}_{machine}" for n in range(minor, least - 1, -1)]
        old = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
        if word == "manylinux":
            tags += [f"{name}_{machine}" for name, n in old.items() if minor >= n]
        return (*tags, f"linux_{machine}")

    @property
    def tag(self) -> str:
        """What a set of packages is for: whatever of it pip looks at, and where it is."""
        libc = f"{self.libc}_{self.libc_version}"
        return f"{self.abi} {self.python_full_version} {self.platform} {libc} {self.executable}"

    @property
    def told(self) -> str:
        return f"CPython {self.minor} on {self.platforms[0]}"

    def markers(self) -> dict[str, str]:
        return {
            "implementation_name": self.implementation_name,
            "implementation_version": self.implementation_version,
            "os_name": "posix",
            "platform_machine": self.platform_machine,
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": self.python_full_version,
            "platform_python_implementation": "CPython",
            "python_version": self.minor,
            "sys_platform": "linux",
        }


def of(manager: Manager, spec: SandboxSpec, backend: str, store: PackageStore) -> TargetPython:
    """Return the Python that a sandbox of ``spec`` has behind the wall ``backend``. Raises Refused
    where it has none that wheels are for, and what making a sandbox raises."""
    key = _key(spec, backend)
    found = None if key is None else store.recall_python(key, TargetPython)
    if found is None:
        found = _asked(manager, spec)
        if key is not None:
            store.remember_python(key, found)
    return _checked(found)


def _key(spec: SandboxSpec, backend: str) -> str | None:
    """What tells kinds of sandboxes apart that may differ in their Python; None where nothing
    does."""
    if {"PATH", "PYTHONPATH"} & spec.env.keys():
        return None  # of these there are as many as callers like
    if spec.image_digest:
        return _digest([spec.image_digest])
    if spec.image != DEFAULT_IMAGE or backend in _MACHINES:
        return _of_machine(spec.image)
    path = shutil.which("python3", path=_PATH)
    if path is None:
        return None
    real = os.path.realpath(path)
    found = os.stat(real)
    facts = [real, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]
    return _digest([path, backend, *map(str, facts)])


def _of_machine(name: str) -> str | None:
    """None for one that is to be built first: it may have another Python then."""
    from agentd.image import build  # late: it imports much
    from agentd.image.store import Store

    store = Store()
    with contextlib.suppress(AgentdError):
        if not build.is_stale(store, name):
            return _digest([store.manifest(name)[1].digest])
    return None


def _digest(parts: list[str]) -> str:
    return sha256(msgspec.json.encode(parts)).hexdigest()


def _asked(manager: Manager, spec: SandboxSpec) -> TargetPython:
    kept = {name: spec.env[name] for name in ("PATH", "PYTHONPATH") if name in spec.env}
    # By a PATH of its own it may be one that is mounted, which nothing is written to meanwhile.
    mounts = tuple(msgspec.structs.replace(m, mode=MountMode.RO) for m in spec.mounts)
    plain = msgspec.structs.replace(
        spec,
        mounts=mounts if "PATH" in kept else (),
        net="none",
        egress=(),
        packages=(),
        locked=(),
        secrets=(),
        env=kept,
        template="",
    )
    handle = manager.create(plain)
    try:
        asked = ExecRequest(
            ("python3", "-I", "-c", inside.text("probe")),
            timeout=_SECONDS,
            output_limit=_MAX_ANSWER,
        )
        result = inside.run(handle, asked)
    finally:
        manager.destroy(handle)
    if not result.ok:
        why = result.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        raise Refused(
            "there is no Python in the sandbox that packages could be for",
            cause=why or result.cause.message,
            remediation=_FIX,
        )
    try:
        return typed.decoder(TargetPython).decode(result.stdout)
    except msgspec.MsgspecError as error:
        raise SandboxError(
            "the sandbox's python3 does not say what it is", cause=str(error)
        ) from None


def _checked(found: TargetPython) -> TargetPython:
    """Raises Refused for one that no wheels are for, and for words that are none."""
    words = (found.implementation_name, found.implementation_version, found.platform_machine)
    sound = all(map(_WORD.fullmatch, words)) and _EXECUTABLE.fullmatch(found.executable)
    known = _VERSION.fullmatch(found.python_full_version) and _SOABI.fullmatch(found.soabi)
    placed = _PLATFORM.fullmatch(found.platform) and _LIBC.fullmatch(found.libc_version)
    ours = found.implementation_name == "cpython" and found.libc in ("glibc", "musl")
    if ours and sound and known and placed:
        return found
    raise Refused(
        f"packages cannot be chosen for the sandbox's Python, {found.soabi[:64]!r} "
        f"on {found.platform[:64]!r}",
        remediation=_FIX,
    )
