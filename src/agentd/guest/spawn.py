"""Starts a child: posix_spawn where that can say it all, fork and exec where it cannot.

posix_spawn is a vfork: the agent stands still until the child has its program. Whoever runs in the
sandbox can keep it from that, by a lease on the program or by SIGSTOP. So it is for a sandbox in
which nobody runs; otherwise the child is forked, and the agent hears later that it has begun.

Every child is the leader of its own session, with umask 022, an empty signal mask, no ignored
signal and no descriptor but 0, 1 and 2. The caller is single-threaded.
"""

import _signal  # type: ignore[import-not-found]  # typeshed has none
import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, NoReturn

from agentd.guest.libc_spawn import INTERNAL, LibcSpawner, becoming, knows_groups
from agentd.guest.lookup import first_executable, places, search_path, try_each
from agentd.guest.spawn_request import STAGES, SpawnError, SpawnRequest
from agentd.linux.kernel import KERNEL

if TYPE_CHECKING:
    from agentd.linux.clone import Cloner

# CPU seconds between SIGXCPU and the kernel's SIGKILL.
CPU_GRACE_S = 1
REPORT_BYTES = 16
_ANY_CHILD = os.WEXITED | os.WNOHANG | os.WNOWAIT
_HANDLED = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)
RLIMITS = ("cpu_s", "open_files", "processes", "file_size", "address_space")
_RLIMITS = frozenset(RLIMITS)


def inherited_environment() -> dict[bytes, bytes]:
    """Returns this process's own, as it was given: Python sets LC_CTYPE where it finds the C locale
    (PEP 538), and commands would count characters and match bytes by that."""
    env = dict(os.environb)
    if b"LC_CTYPE" in env:
        try:
            with open("/proc/self/environ", "rb") as file:
                given = file.read().split(b"\0")
        except OSError:
            given = []
            if not sys.flags.utf8_mode:  # it was not the C locale, so that it was left alone
                return env
        values = [entry[len(b"LC_CTYPE=") :] for entry in given if entry.startswith(b"LC_CTYPE=")]
        if values:
            env[b"LC_CTYPE"] = values[0]  # in its place: the order is seen
        else:
            del env[b"LC_CTYPE"]
    return env


class Spawner:
    """Starts commands: holds what all spawns of an agent share. ``home`` is where the agent lives
    and children start."""

    def __init__(self, home: str = "/") -> None:
        self.home = home
        self.base_env = inherited_environment()
        # The directory of the cgroup that children are born in, or -1 for the agent's own.
        self.group = -1
        # Whether a child of ours may be in the way of another; see above.
        self.crowded = has_children
        self._ignored = [
            number
            for number in signal.valid_signals()
            if signal.getsignal(number) is signal.SIG_IGN
        ]
        for number in INTERNAL:
            KERNEL.stop_ignoring(number)  # whoever started us may have left them so

    def spawn(self, request: SpawnRequest, stdio: tuple[int, int, int]) -> int:
        """Returns the child's pid, once it has its program. Raises SpawnError."""
        pid, report = self.begin(request, stdio)
        if report < 0:
            return pid
        try:
            error = reported(os.read(report, REPORT_BYTES))
        finally:
            os.close(report)
        if error is not None:
            os.waitpid(pid, 0)
            raise error
        return pid

    def begin(self, request: SpawnRequest, stdio: tuple[int, int, int]) -> tuple[int, int]:
        """Returns the child's pid, and -1 where it has its program; else a descriptor, the caller's
        own, that is readable once ``reported`` can tell. ``stdio`` are descriptors above 2, a PTY's
        slave where one is asked for. Raises SpawnError."""
        env = self._environment(request)
        argv = [_encoded(word) for word in request.argv]
        slow = (
            request.pty is not None
            or (self.group >= 0 and not knows_groups())
            or not _RLIMITS.isdisjoint(request.limits)
            or (request.user is not None and request.user != os.geteuid())
            or any(not name or b"=" in name for name in env)
            or self.crowded()
        )
        self._enter(request.cwd)
        try:
            if not argv or not argv[0]:
                raise SpawnError("exec", errno.ENOENT)
            # /proc/self is whose it is that asks: into that the child goes itself.
            own = request.cwd is not None and _is_of_this_process()
            if slow or own:
                folders = (os.fsencode(self.home), _encoded(request.cwd or "")) if own else ()
                return _fork_exec(request, stdio, argv, env, self.group, self._ignored, folders)
            return self._posix_spawn(stdio, argv, env), -1
        finally:
            if request.cwd is not None:
                os.chdir(self.home)

    def explain(self, error: SpawnError, request: SpawnRequest) -> None:
        """Add to an error what is to be seen of the program's file."""
        if error.stage != "exec" or not request.argv:
            return
        folder = os.path.join(os.fsencode(self.home), _encoded(request.cwd or ""))
        path = search_path(self._environment(request))
        from agentd.guest import diagnosis  # of a start that has failed alone

        error.detail = diagnosis.of_program(_encoded(request.argv[0]), path, folder, error.errno)

    def _environment(self, request: SpawnRequest) -> dict[bytes, bytes]:
        env = {} if request.replace_env else dict(self.base_env)
        for name, value in (request.env or {}).items():
            env[_encoded(name)] = _encoded(value)
        # What was merged is in order, as the first agent had it: an environment is seen.
        return dict(sorted(env.items())) if request.env and not request.replace_env else env

    def _enter(self, cwd: str | None) -> None:
        if cwd is None:
            return
        try:
            os.chdir(_encoded(cwd))
        except OSError as error:
            raise SpawnError("cwd", error.errno or 0) from None

    def _posix_spawn(
        self, stdio: tuple[int, int, int], argv: list[bytes], env: dict[bytes, bytes]
    ) -> int:
        spawner = _libc_spawner(self.group, tuple(self._ignored))
        return _found(argv[0], env, spawner.prepare(stdio, argv, env))


def _found(name: bytes, env: dict[bytes, bytes], attempt: Callable[[bytes], int]) -> int:
    try:
        return first_executable(name, search_path(env), attempt)
    except OSError as error:
        raise SpawnError("exec", error.errno or 0) from None


@lru_cache(1)
def _libc_spawner(group: int, ignored: tuple[int, ...]) -> LibcSpawner:
    return LibcSpawner(group, ignored)


def _encoded(text: str) -> bytes:
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise SpawnError("request", errno.EILSEQ) from None
    if b"\0" in raw:
        raise SpawnError("request", 0, "nul byte found in provided data")
    return raw


def _fork_exec(
    request: SpawnRequest,
    stdio: tuple[int, int, int],
    argv: list[bytes],
    env: dict[bytes, bytes],
    group: int,
    ignored: list[signal.Signals],
    folders: tuple[bytes, ...] = (),
) -> tuple[int, int]:
    """The child reports a failure as ``stage index, errno`` through a close-on-exec pipe. It goes
    into ``folders``, one after the other."""
    # Here and not in the child: there each page of code and data that is touched costs a fault.
    execute = becoming(argv, env)
    found = places(argv[0], search_path(env))
    reader, writer = os.pipe2(os.O_CLOEXEC)
    # No handler of the agent may run in the child. The C functions, as those of the signal module
    # make an enumeration of each number.
    mask = _signal.pthread_sigmask(signal.SIG_SETMASK, _every_signal())
    try:
        pid = os.fork() if group < 0 else _fork_into(group)
        if pid == 0:
            _child(request, stdio, partial(try_each, found, execute), writer, ignored, folders)
    except OSError as error:
        os.close(reader)
        raise SpawnError("exec", error.errno or 0) from None
    finally:
        _signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(writer)
    return pid, reader


def reported(told: bytes) -> SpawnError | None:
    """Decode a child's report, which is empty where it has its program, or has died."""
    if not told:
        return None
    stage, code = told.split()
    return SpawnError(STAGES[int(stage)], int(code))


def _is_of_this_process() -> bool:
    """Whether the working directory is below our own in /proc."""
    try:
        return f"{os.getcwd()}/".startswith(f"/proc/{os.getpid()}/")
    except OSError:  # removed, or out of sight
        return False


def has_children() -> bool:
    """Return whether anything runs below us; orphans are ours. It is ended children, too."""
    try:
        os.waitid(os.P_ALL, 0, _ANY_CHILD)
    except ChildProcessError:
        return False
    return True


@cache
def _every_signal() -> frozenset[int]:
    return frozenset(signal.valid_signals())


@cache
def _cloner() -> "Cloner":
    from agentd.linux.clone import Cloner

    return Cloner()


def _fork_into(group: int) -> int:
    """A fork whose child is in the cgroup from its first instruction on: it never has to move.

    Moving waits for an RCU grace period, and an agent that went there and back itself would take
    memory from a group that may have none left.
    """
    pid, pidfd = _cloner().clone(0, group)
    if pid:
        os.close(pidfd)
    return pid


def _child(
    request: SpawnRequest,
    stdio: tuple[int, int, int],
    execute: Callable[[], int],
    report: int,
    ignored: list[signal.Signals],
    folders: tuple[bytes, ...],
) -> NoReturn:
    stage = "exec"
    code = 0
    try:
        _reset_signals(ignored)
        os.setsid()
        stage = "pty"
        for number, fd in enumerate(stdio):
            os.dup2(fd, number)
        if request.pty is not None:
            _take_terminal()
        stage = "cwd"
        for folder in folders:
            os.chdir(folder)
        stage = "limits"
        if request.limits:
            set_limits(request.limits)
        stage = "user"
        if request.user is not None and request.user != os.geteuid():
            os.setgroups([])
            os.setresgid(request.user, request.user, request.user)
            os.setresuid(request.user, request.user, request.user)
        stage = "exec"
        # All of them are close-on-exec; this is for the one that somebody forgets.
        os.closerange(3, report)
        os.closerange(report + 1, 4096)
        _signal.pthread_sigmask(signal.SIG_SETMASK, ())
        execute()
    except OSError as error:
        code = error.errno or errno.EINVAL
    except MemoryError:
        code = errno.ENOMEM
    except BaseException:
        code = errno.EINVAL
    finally:
        os.write(report, b"%d %d" % (STAGES.index(stage), code))
        os._exit(127)


def _reset_signals(ignored: list[signal.Signals]) -> None:
    """What is ignored, and what the agent handles: until execve(2) a handler would swallow it.

    All sixty would cost a slow machine milliseconds.
    """
    for number in (*ignored, *_HANDLED):
        _signal.signal(number, _signal.SIG_DFL)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def set_limits(limits: Mapping[str, int]) -> None:
    """Tighten the calling process's rlimits; a limit over the present hard one changes nothing."""
    import resource

    numbers = {
        "cpu_s": resource.RLIMIT_CPU,
        "open_files": resource.RLIMIT_NOFILE,
        "processes": resource.RLIMIT_NPROC,
        "file_size": resource.RLIMIT_FSIZE,
        "address_space": resource.RLIMIT_AS,
    }
    for name, number in numbers.items():
        value = limits.get(name)
        if value is None:
            continue
        hard = resource.getrlimit(number)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # The soft CPU limit is a SIGXCPU that names its reason, the hard one a plain SIGKILL.
        ceiling = soft + CPU_GRACE_S if name == "cpu_s" else soft
        if hard != resource.RLIM_INFINITY:
            ceiling = min(ceiling, hard)
        resource.setrlimit(number, (soft, ceiling))


def preload() -> None:
    """Imports what is used late."""
    import fcntl  # noqa: F401
    import resource  # noqa: F401
    import termios  # noqa: F401


def sweep_descriptors() -> None:
    """Marks every descriptor above 2 close-on-exec, and sees that 0, 1 and 2 are taken."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _occupy(number)
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        names = [str(number) for number in range(3, 1024)]
    for fd in map(int, names):
        if fd > 2:
            try:
                os.set_inheritable(fd, False)
            except OSError:
                continue


def _occupy(number: int) -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)
