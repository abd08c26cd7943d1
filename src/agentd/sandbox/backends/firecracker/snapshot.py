"""A machine's state on disk: what Firecracker writes, and what must be the same to use it again.

Its format changes with nearly every release, and it moves between equal CPUs only
(docs/snapshotting/versioning.md). The memory file is mapped privately for as long as a restored
machine lives, so it must not change; it may lose its name.
"""

import contextlib
import os

import msgspec

from agentd.linux import paths
from agentd.model import typed
from agentd.model.errors import Refused, SandboxError
from agentd.model.system import os_errors_as
from agentd.sandbox import sparse
from agentd.sandbox.backends.firecracker import config
from agentd.sandbox.backends.firecracker.jailer import Root
from agentd.sandbox.backends.firecracker.plan import FirecrackerPlan
from agentd.sandbox.backends.firecracker.process import FirecrackerProcess
from agentd.sandbox.backends.firecracker.version import Version
from agentd.sandbox.backends.vm import states

_ABOUT = "firecracker.json"
_MAX_ABOUT = 64 << 10
_MAX_STATE = 256 << 20
_BLOCK = 128 << 10
_ZEROES = bytes(_BLOCK)
_AGAIN = "take the snapshot again here"


class SavedMachine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``image`` is the digest of the image that was booted; ``memory`` is in bytes."""

    version: str
    cpu: str
    image: str
    memory: int
    vcpus: int


def of(plan: FirecrackerPlan, version: Version, image: str) -> SavedMachine:
    return SavedMachine(str(version), cpu_model(), image, plan.memory, plan.vcpus)


def cpu_model() -> str:
    """Name its maker, family, model and stepping, or the like on other architectures."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    found: dict[str, str] = {}
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if not line.strip():
                break  # the first CPU's
            if name.strip() in wanted:
                found[name.strip()] = value.strip()
    return " ".join(found.get(name, "") for name in wanted if name in found)


def collect(root: Root, folder: str, about: SavedMachine) -> None:
    """Moves it out of the jail into ``folder``, safely on disk. Raises SandboxError.

    A copy: whoever has the monitor may hold the jail's own open and write to it later.
    """
    with os_errors_as(SandboxError, "the snapshot cannot be kept"):
        _copy(root, config.NEW_STATE, f"{folder}/{config.STATE}", _MAX_STATE)
        _copy(root, config.NEW_MEMORY, f"{folder}/{config.MEMORY}", about.memory)
        _write(f"{folder}/{_ABOUT}", msgspec.json.encode(about))
        paths.sync(folder)


def take(monitor: FirecrackerProcess, memory: int) -> None:
    """Have Firecracker write both; the machine stands still meanwhile. Raises SandboxError."""
    seconds = states.seconds(memory)
    monitor.request(config.state("Paused"))
    try:
        monitor.request(config.snapshot(), seconds)
    except BaseException:
        with contextlib.suppress(SandboxError):  # not what there is to say of it
            monitor.request(config.state("Resumed"), seconds)  # it may still be at the other
        raise
    monitor.request(config.state("Resumed"))


def pack(root: Root, target: int, memory: int) -> None:
    """Both out of the jail into one empty file, the state behind ``memory`` bytes."""
    with os_errors_as(SandboxError, "the template cannot be kept"):
        # The folder keeps others out; the monitor it is bound to is another user.
        os.fchmod(target, 0o444)
        for name, most, place in (
            (config.NEW_MEMORY, memory, 0),
            (config.NEW_STATE, _MAX_STATE, memory),
        ):
            source, size = root.open_file(name, most)
            try:
                os.truncate(target, place + size)
                _copy_data(source, target, size, place)
            finally:
                os.close(source)
        os.fsync(target)


def copy_rest(source: int, target: int, start: int) -> None:
    """Copy what follows ``start`` bytes of it. Raises OSError."""
    while data := os.pread(source, _BLOCK, start):
        os.write(target, data)
        start += len(data)


def discard(root: Root) -> None:
    """Remove what Firecracker wrote; quiet where there is nothing."""
    for name in (config.NEW_STATE, config.NEW_MEMORY):
        root.remove_file(name)


def check(folder: str, plan: FirecrackerPlan, version: Version) -> SavedMachine:
    """Return whether this machine can build ``plan`` from it. Raises Refused, SandboxError."""
    about = read(folder)
    for what, there, here in (
        ("of Firecracker", about.version, str(version)),
        ("of CPU", about.cpu, cpu_model()),
        ("of memory size", f"{about.memory}", f"{plan.memory}"),
        ("of number of CPUs", f"{about.vcpus}", f"{plan.vcpus}"),
    ):
        if there != here:
            kind = what.removeprefix("of ")
            raise Refused(
                f"the snapshot is of another {kind}",
                cause=f"{there}, and here it is {here}",
                remediation=_AGAIN,
            )
    return about


def read(folder: str) -> SavedMachine:
    """Raises SandboxError."""
    try:
        with open(f"{folder}/{_ABOUT}", "rb") as file:
            return typed.decoder(SavedMachine).decode(file.read(_MAX_ABOUT))
    except (OSError, msgspec.MsgspecError) as error:
        raise SandboxError(
            "the snapshot is not one of backend firecracker", cause=str(error), remediation=_AGAIN
        ) from error


def binds(folder: str) -> dict[str, str]:
    """Name the files for the jail that is restored into."""
    return {name: f"{folder}/{name}" for name in (config.STATE, config.MEMORY)}


def _copy(root: Root, name: str, target: str, most: int) -> None:
    source, size = root.open_file(name, most)
    try:
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # The folder keeps others out; the monitor it is bound to is another user.
            os.fchmod(copy, 0o444)
            os.truncate(copy, size)
            _copy_data(source, copy, size, 0)
            os.fsync(copy)
        finally:
            os.close(copy)
    finally:
        os.close(source)


def _copy_data(source: int, copy: int, size: int, place: int) -> None:
    """Copy the data to ``place`` on. Holes stay holes and zeroes become some: Firecracker writes
    all of a machine's memory, most of which was never touched.
    """
    for start, end in sparse.stretches(source, size):
        at = start
        while at < end:
            data = os.pread(source, min(_BLOCK, end - at), at)
            if not data:
                raise OSError(0, "it was cut off while it was read")
            if data != _ZEROES[: len(data)]:
                _write_all(copy, data, place + at)
            at += len(data)


def _write_all(fd: int, data: bytes, place: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, place)
        view, place = view[done:], place + done


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
