"""sys.*: what the host asks of the agent and its system; docs/guest-protocol.md."""

import binascii
import errno
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl

from agentd.guest.loop import Loop, Timer
from agentd.guest.operation import Channel, RequestError, Starter, get_int
from agentd.guest.resolve import get_path, open_path
from agentd.guest.stepped import plain

MAX_ENTROPY = 4096
MAX_DISKS = 16
# Processes looked at for sys.usage: about 20 us each.
MAX_PROCESSES = 4096
MAX_LEASE_MS = 366 * 86_400_000
# Lets the loop write out the answer before the system goes down.
SHUTDOWN_DELAY_S = 0.05

# <linux/random.h>, the numbers of x86_64 and aarch64.
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_RANDOM = "/dev/urandom"


class SystemContext:
    """The facts that system operations need of their agent.

    ``pid1``: a PID namespace of its own, the agent its init or that one's child. ``paths``: whose
    disks sys.usage tells of. ``on_shutdown`` is called once the answer is on its way.
    ``signal_all(signal)`` reaches every process but the agent, ``stand_still(bool)`` has the time
    limits of its commands stand still.
    """

    def __init__(
        self,
        *,
        pid1: bool,
        paths: list[str],
        on_shutdown: Callable[[], None],
        signal_all: Callable[[int], None] | None = None,
    ) -> None:
        self.pid1 = pid1
        self.paths = paths
        self.on_shutdown = on_shutdown
        self.signal_all = signal_all or signal_namespace
        self.stand_still: Callable[[bool], object] = bool
        self.lease: Timer | None = None


def stop_agent(loop: Loop, pid1: bool) -> Callable[[], None]:
    """Returns the usual ``on_shutdown``: the init that forked us ends all; without one, we end."""

    def stop() -> None:
        if pid1 and os.getppid() == 1:
            os.kill(1, signal.SIGTERM)
        else:
            loop.stop()

    return stop


def signal_namespace(number: int, kill: Callable[[int, int], None] = os.kill) -> None:
    """Signals all but the caller and PID 1 in one go (kill(2) of -1), so that no fork escapes it.

    SIGCONT wakes those too that a command had stopped itself.
    """
    with suppress(ProcessLookupError):  # there is no other process
        kill(-1, number)


def operations(context: SystemContext) -> dict[str, Starter]:
    return {
        "sys.ping": plain(lambda channel, _: channel.finish("result", unix_ns=time.time_ns())),
        "sys.info": plain(lambda channel, _: channel.finish("result", **info(context))),
        "sys.usage": plain(lambda channel, request: _usage(context, channel, request)),
        "sys.clock": plain(_clock),
        "sys.reseed": plain(_reseed),
        "sys.freeze": plain(lambda channel, _: _signal(context, channel, signal.SIGSTOP)),
        "sys.thaw": plain(lambda channel, _: _signal(context, channel, signal.SIGCONT)),
        "sys.lease": plain(lambda channel, request: _lease(context, channel, request)),
        "sys.shutdown": plain(lambda channel, _: _shutdown(context, channel)),
    }


def info(context: SystemContext) -> dict[str, object]:
    """Returns the fields of sys.info. Memory in bytes; None where /proc does not tell."""
    system = os.uname()
    memory = _meminfo()
    return {
        "hostname": system.nodename,
        "kernel": system.release,
        "machine": system.machine,
        "uptime_ms": time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
        "pid1": context.pid1,
        "python": sys.version.split()[0],
        "processes": len(_processes()),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_total_bytes": memory.get("MemTotal"),
        "memory_available_bytes": memory.get("MemAvailable"),
    }


def disk(path: str) -> dict[str, object]:
    """Does statvfs(3) of the filesystem of ``path``; ``available`` is for ordinary users."""
    fd = open_path(path, os.O_PATH)
    try:
        status = os.statvfs(fd)
    finally:
        os.close(fd)
    return {
        "path": path,
        "total_bytes": status.f_blocks * status.f_frsize,
        "used_bytes": (status.f_blocks - status.f_bfree) * status.f_frsize,
        "available_bytes": status.f_bavail * status.f_frsize,
        "inodes": status.f_files,
        "inodes_free": status.f_ffree,
    }


def _usage(context: SystemContext, channel: Channel, request: dict[str, object]) -> None:
    times = os.times()
    # Elsewhere /proc shows the processes of others.
    pids = _processes()[:MAX_PROCESSES] if context.pid1 else [str(os.getpid())]
    channel.finish(
        "result",
        cpu_ms=1000.0 * sum(times[:4]),  # the agent's and its reaped children's, user and system
        memory_bytes=sum(_resident(pid) for pid in pids),
        processes=len(pids),
        disks=[disk(path) for path in _paths(context, request)],
    )


def _paths(context: SystemContext, request: dict[str, object]) -> list[str]:
    paths = request.get("paths")
    if paths is None:
        return context.paths
    if not isinstance(paths, list) or len(paths) > MAX_DISKS:
        raise RequestError(f"'paths' must be a list of at most {MAX_DISKS} absolute paths")
    return [get_path({"paths": path}, "paths") for path in paths]


def _clock(channel: Channel, request: dict[str, object]) -> None:
    if "unix_ns" not in request:
        raise RequestError("'unix_ns' is missing: nanoseconds since 1970")
    unix_ns = get_int(request, "unix_ns", 0, 0, (1 << 63) - 1)
    before = time.time_ns()
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, unix_ns)
    except PermissionError:
        raise RequestError(
            "setting the clock needs CAP_SYS_TIME in the initial user namespace", errno.EPERM
        ) from None
    channel.finish("result", step_ns=unix_ns - before)


def _reseed(channel: Channel, request: dict[str, object]) -> None:
    channel.finish("result", credited=add_entropy(parse_entropy(request)))


def add_entropy(entropy: bytes) -> bool:
    """Mix it into the kernel's generator; False where it counts for nothing and is not used yet.

    The agent keeps no generator of its own: it asks the kernel each time.
    """
    fd = os.open(_RANDOM, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        credited = _credit(fd, entropy)
        if not credited:
            os.write(fd, entropy)
    finally:
        os.close(fd)
    return credited


def parse_entropy(request: dict[str, object]) -> bytes:
    text = request.get("entropy")
    try:
        if not isinstance(text, str) or len(text) > 2 * MAX_ENTROPY:
            raise ValueError("not a short string")
        entropy = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        entropy = b""
    if not 0 < len(entropy) <= MAX_ENTROPY:
        raise RequestError(f"'entropy' must be base64 of 1 to {MAX_ENTROPY} bytes")
    return entropy


def _credit(fd: int, entropy: bytes) -> bool:
    """Add it as entropy and reseed at once (Linux 4.14); False where that is not allowed."""
    # struct rand_pool_info: bits, bytes, the bytes. Longer than 1024 bytes only as a bytearray.
    pool = bytearray(struct.pack("ii", 8 * len(entropy), len(entropy)) + entropy)
    try:
        ioctl(fd, _RNDADDENTROPY, pool)
        ioctl(fd, _RNDRESEEDCRNG)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTTY, errno.EINVAL):
            raise
        return False
    return True


def _signal(context: SystemContext, channel: Channel, number: int) -> None:
    if not context.pid1:
        raise RequestError(
            "the agent has no PID namespace of its own: it would signal the host's processes",
            errno.EPERM,
        )
    context.signal_all(number)
    channel.finish("result")


def _lease(context: SystemContext, channel: Channel, request: dict[str, object]) -> None:
    """The sandbox ends so many milliseconds from now, unless it is told again; null: never. With
    ``still`` it is about to be paused: no command's time is used up until it is told again."""
    value, still = request.get("ms"), request.get("still", False)
    if not isinstance(still, bool):
        raise RequestError("'still' must be true or false")
    milliseconds = None if value is None else get_int(request, "ms", 0, 1, MAX_LEASE_MS)
    if context.lease is not None:
        context.lease.cancel()
        context.lease = None
    context.stand_still(still)
    if milliseconds is not None:
        context.lease = channel.loop.after(milliseconds / 1000, context.on_shutdown)
    channel.finish("result")


def _shutdown(context: SystemContext, channel: Channel) -> None:
    channel.finish("result")
    channel.loop.after(SHUTDOWN_DELAY_S, context.on_shutdown)


def _processes() -> list[str]:
    try:
        return [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _resident(pid: str) -> int:
    """Bytes in memory; 0 for a process that has gone. Shared pages count in each."""
    try:
        pages = int(_read(f"/proc/{pid}/statm").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; {} where it is not mounted."""
    try:
        text = _read("/proc/meminfo").decode()
    except OSError:
        return {}
    fields = (line.split() for line in text.splitlines())
    return {line[0].rstrip(":"): 1024 * int(line[1]) for line in fields if len(line) > 2}


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 64 << 10)
    finally:
        os.close(fd)
