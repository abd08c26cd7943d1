"""PID 1 of a virtual machine: mounts, reaps, keeps the agent running, shuts down.

It does no more than that, because the kernel panics when PID 1 ends: what can go wrong for the
agent goes wrong in its child. Nothing here raises, and every warning is followed by going on.
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from typing import NoReturn

from agentd.linux import abi
from agentd.linux.kernel import KERNEL, Kernel

HOSTNAME = "agentd-vm"
NAME = "agentd-guest"
# Under this name we are the first agent: its lines on stderr, its arguments (none), its mounts.
FIRST = "fc-guest-agent"
# The kernel starts init without one.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TERM_GRACE_S = 2.0
KILL_GRACE_S = 1.0
FIRST_DELAY_S = 0.1
MAX_DELAY_S = 5.0
# An agent that ran for so long was sound: its end starts a new series of delays.
SOUND_AFTER_S = 30.0

_PRIVATE = abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC
# A machine's root may do all anyway, and makes device nodes in /tmp (debootstrap, a chroot).
_TMPFS = 0
# (file system, mount point, flags, options), in order.
MOUNTS = (
    ("proc", "/proc", _PRIVATE, None),
    ("sysfs", "/sys", _PRIVATE, None),
    ("devtmpfs", "/dev", abi.MS_NOSUID, "mode=0755"),
    ("devpts", "/dev/pts", abi.MS_NOSUID | abi.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"),
    ("tmpfs", "/tmp", _TMPFS, "mode=1777"),
    ("tmpfs", "/run", _TMPFS, "mode=0755"),
    ("tmpfs", "/dev/shm", _TMPFS, "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", _PRIVATE, "nsdelegate"),
)
# devtmpfs makes /dev/ptmx itself, and since Linux 4.7 that node finds the devpts beside it.
LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
)

# Blocked, so that sigtimedwait gets them: a blocked signal reaches even PID 1, which is otherwise
# shielded from every signal without a handler (kernel/signal.c, sig_task_ignored).
_STOP = frozenset({signal.SIGTERM, signal.SIGINT})
_SIGNALS = _STOP | {signal.SIGCHLD}
# reboot(2): its number a machine, and its magic.
_SYS_REBOOT = {"x86_64": 169, "aarch64": 142}
_MAGIC1, _MAGIC2, _RB_AUTOBOOT = 0xFEE1DEAD, 0x28121969, 0x01234567
_EX_SOFTWARE = 70


class _Self:
    """The names of this process."""

    name = NAME


def become_the_first() -> None:
    """Be ``fc-guest-agent`` from now on, in this process and its children."""
    _Self.name = FIRST


def is_the_first() -> bool:
    return _Self.name == FIRST


def say(text: str) -> None:
    """Writes a line to stderr, our name before it; it is lost if stderr cannot take it."""
    with contextlib.suppress(OSError):
        os.write(2, f"{_Self.name}: {text}\n".encode(errors="backslashreplace"))


def boot(kernel: Kernel = KERNEL) -> None:
    """Make a bare kernel fit to run commands in. Warns on stderr of what fails, and goes on."""
    # Nothing may be written before descriptors 0 to 2 are there, and /dev/null is in a mount.
    warnings = [*mount_all(kernel), *make_links()]
    open_standard_descriptors()
    if is_the_first():
        say("Starting...")
        say("Running as init (PID 1), setting up filesystems...")
    for warning in warnings:
        say(warning)
    for name, step in (("host name", _set_hostname), ("loopback", _raise_loopback)):
        try:
            step(kernel)
        except (OSError, ImportError) as error:
            say(f"{name} not set: {error}")
    if not is_the_first():
        os.environ.setdefault("PATH", DEFAULT_PATH)


def mount_all(kernel: Kernel) -> list[str]:
    """Mount each of MOUNTS, making its mount point; returns a warning for each that failed."""
    warnings = []
    for fstype, target, flags, options in MOUNTS:
        if target == "/run" and is_the_first():
            options = "mode=1777"  # noqa: PLW2901  as the first agent's was
        try:
            os.makedirs(target, exist_ok=True)
            kernel.mount(fstype, target, fstype, flags, options)
        except OSError as error:
            # EBUSY: the kernel or the initramfs has mounted it already.
            if error.errno != errno.EBUSY:
                warnings.append(f"{target} not mounted as {fstype}: {error.strerror}")
    return warnings


def make_links() -> list[str]:
    """Make each of LINKS that is missing; returns a warning for each that failed."""
    warnings = []
    for source, path in LINKS:
        try:
            os.symlink(source, path)
        except FileExistsError:
            continue
        except OSError as error:
            warnings.append(f"{path} not made: {error.strerror}")
    return warnings


def open_standard_descriptors() -> None:
    """Opens /dev/null as 0, 1 and 2 where closed: a kernel without a console opens none."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            with contextlib.suppress(OSError):
                opened = os.open("/dev/null", os.O_RDWR)
                os.set_inheritable(opened, True)


def _set_hostname(kernel: Kernel) -> None:
    kernel.sethostname(HOSTNAME)


def _raise_loopback(kernel: Kernel) -> None:
    from agentd.linux.net import loopback_up

    loopback_up()


class Backoff:
    """How long to wait before the agent is started again: doubling, bounded."""

    def __init__(self) -> None:
        self._delay = FIRST_DELAY_S

    def after(self, lived_s: float) -> float:
        """Returns seconds to wait after an agent that lived for ``lived_s``."""
        if lived_s >= SOUND_AFTER_S:
            self._delay = FIRST_DELAY_S
        delay, self._delay = self._delay, min(self._delay * 2, MAX_DELAY_S)
        return delay


class Init:
    """The loop of PID 1. ``agent`` is what its child runs, and returns its exit status."""

    def __init__(self, agent: Callable[[], int], kernel: Kernel = KERNEL) -> None:
        self._agent = agent
        self._kernel = kernel
        self._backoff = Backoff()
        self._pid = 0
        self._started = 0.0
        self._start_at = 0.0

    def run(self) -> NoReturn:
        """Boot, then serve for ever; a SIGTERM or SIGINT shuts the machine down."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._guarded(lambda: boot(self._kernel))
        stopping = False
        while not stopping:
            stopping = self._guarded(self._turn)
        # No more restarts, whoever ends now.
        self._pid = 0
        while True:
            for step in (self._end_processes, os.sync, self._unmount, self._reboot):
                self._guarded(step)

    def _guarded(self, step: Callable[[], bool | None]) -> bool:
        try:
            return bool(step())
        except BaseException as error:  # an exception that leaves PID 1 panics the kernel
            with contextlib.suppress(BaseException):  # out of memory, even this may fail
                say(f"init goes on after {type(error).__name__}: {error}")
                time.sleep(FIRST_DELAY_S)
            return False

    def _turn(self) -> bool:
        """Reap, (re)start the agent if it is time, wait for a signal. True when asked to stop."""
        self._reap()
        wait = None
        if not self._pid:
            wait = self._start_at - time.monotonic()
            if wait <= 0:
                self._start()
                wait = None
        return _await_signal(wait) in _STOP

    def _start(self) -> None:
        # Set first: a fork that fails (EAGAIN) is tried again only after the delay.
        self._start_at = time.monotonic() + MAX_DELAY_S
        pid = os.fork()
        if pid == 0:
            self._be_agent()
        self._pid = pid
        self._started = time.monotonic()

    def _be_agent(self) -> NoReturn:
        status = _EX_SOFTWARE
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.setsid()  # a Ctrl-C on the console is not for the agent
            status = self._agent()
        except BaseException as error:  # the child must never run on as a second init
            say(f"agent failed: {type(error).__name__}: {error}")
        finally:
            os._exit(status)

    def _reap(self) -> bool:
        """Reap whatever has ended; False when no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._pid:
                self._agent_ended(status)

    def _agent_ended(self, status: int) -> None:
        self._pid = 0
        # What it had started has no master any more, and the next agent would not know it.
        _signal_all(signal.SIGKILL)
        delay = self._backoff.after(time.monotonic() - self._started)
        self._start_at = time.monotonic() + delay
        code = os.waitstatus_to_exitcode(status)
        say(f"agent ended with {code}, starting it again in {delay:.1f} s")

    def _end_processes(self) -> None:
        say("shutting down")
        for number, grace in ((signal.SIGTERM, TERM_GRACE_S), (signal.SIGKILL, KILL_GRACE_S)):
            _signal_all(number)
            self._reap_until(time.monotonic() + grace)

    def _unmount(self) -> None:
        unmount_all(self._kernel)

    def _reap_until(self, deadline: float) -> None:
        while self._reap() and (left := deadline - time.monotonic()) > 0:
            _await_signal(left)

    def _reboot(self) -> None:
        # x86 Firecracker ends on a reset, not on a power-off.
        try:
            number = _SYS_REBOOT.get(abi.MACHINE, _SYS_REBOOT["x86_64"])
            self._kernel.syscall(number, _MAGIC1, _MAGIC2, _RB_AUTOBOOT, 0)
        except OSError as error:
            # No CAP_SYS_BOOT: a container, which ends with its init.
            say(f"cannot reboot: {error.strerror}")
            os._exit(0)


def unmount_all(kernel: Kernel) -> None:
    """Unmount everything but the root, last mounted first, then make the root read-only."""
    for target in reversed(mount_points()):
        for flags in (0, abi.MNT_DETACH):
            try:
                kernel.umount(target, flags)
                break
            except OSError:
                continue
    with contextlib.suppress(OSError):
        kernel.mount(None, "/", None, abi.MS_REMOUNT | abi.MS_RDONLY)


def mount_points() -> list[str]:
    """Lists mount points other than the root, in the order they were mounted; [] without /proc."""
    from agentd.linux import mounts

    with contextlib.suppress(OSError):
        return [point for point in mounts.points() if point != "/"]
    return []


def _await_signal(seconds: float | None) -> int:
    """The next of our signals, or 0 when ``seconds`` have passed."""
    if seconds is None:
        return signal.sigwaitinfo(_SIGNALS).si_signo
    info = signal.sigtimedwait(_SIGNALS, max(0.0, seconds))
    return info.si_signo if info else 0


def _signal_all(number: int) -> None:
    # kill(-1) spares the caller only as PID 1 of its namespace; elsewhere it would hit the machine.
    if os.getpid() == 1:
        with contextlib.suppress(OSError):
            os.kill(-1, number)
