"""Starts a child: posix_spawn where that can say it all, fork and exec where it cannot.

Every child is the leader of its own session, with umask 022, an empty signal mask, no ignored
signal and no descriptor but 0, 1 and 2. The caller is single-threaded.
"""

import errno
import os
import signal
import stat
from collections.abc import Callable, Iterable
from typing import NoReturn

# Where a program is looked up when the environment names no PATH.
DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# CPU seconds between SIGXCPU and the kernel's SIGKILL.
CPU_GRACE_S = 1
STAGES = ("request", "cwd", "exec", "limits", "user", "pty")
RLIMITS = ("cpu_s", "open_files", "processes", "file_size", "address_space")


class SpawnError(Exception):
    """No child came to be. ``stage`` is one of STAGES; ``errno`` is 0 when none fits."""

    def __init__(self, stage: str, code: int, message: str = "") -> None:
        super().__init__(message or os.strerror(code))
        self.stage = stage
        self.errno = code


class SpawnRequest:
    """What to run. ``stdin`` is STDIN_NONE (/dev/null), STDIN_STREAM (a pipe) or a descriptor.

    ``env`` is merged over ``base_env`` unless ``replace_env``. ``stdout`` and ``stderr`` are
    descriptors to hand over, or None to be pumped. Given descriptors are closed by whoever starts
    it, whatever the outcome. ``limits`` maps the RLIMITS names, ``wall_ms`` and ``output`` to
    positive integers.
    """

    STDIN_NONE = -1
    STDIN_STREAM = -2

    def __init__(
        self,
        argv: list[str],
        *,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        replace_env: bool = False,
        user: int | None = None,
        stdin: int = STDIN_NONE,
        stdout: int | None = None,
        stderr: int | None = None,
        pty: tuple[int, int] | None = None,
        limits: dict[str, int] | None = None,
        tag: str | None = None,
    ) -> None:
        self.argv = argv
        self.cwd = cwd
        self.env = env
        self.replace_env = replace_env
        self.user = user
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.pty = pty
        self.limits = limits or {}
        self.tag = tag


class Spawner:
    """What all spawns of an agent share. ``home`` is where the agent lives and children start."""

    def __init__(self, home: str = "/") -> None:
        self.home = home
        self.base_env = dict(os.environb)
        self._ignored = [
            number
            for number in signal.valid_signals()
            if signal.getsignal(number) is signal.SIG_IGN
        ]

    def spawn(self, request: SpawnRequest, stdio: tuple[int, int, int]) -> int:
        """The child's pid. ``stdio`` are descriptors above 2, a PTY's slave where one is asked
        for. Raises SpawnError.
        """
        env = self._environment(request)
        argv = [_encoded(word) for word in request.argv]
        if not argv or not argv[0]:
            raise SpawnError("exec", errno.ENOENT)
        slow = (
            request.pty is not None
            or any(name in request.limits for name in RLIMITS)
            or (request.user is not None and request.user != os.geteuid())
            or any(not name or "=" in name for name in request.env or ())
        )
        self._enter(request.cwd)
        try:
            if slow:
                return _fork_exec(request, stdio, argv, env)
            return self._posix_spawn(stdio, argv, env)
        finally:
            if request.cwd is not None:
                os.chdir(self.home)

    def _environment(self, request: SpawnRequest) -> dict[bytes, bytes]:
        env = {} if request.replace_env else dict(self.base_env)
        for name, value in (request.env or {}).items():
            env[_encoded(name)] = _encoded(value)
        return env

    def _enter(self, cwd: str | None) -> None:
        if cwd is None:
            return
        try:
            os.chdir(_encoded(cwd))
        except OSError as error:
            raise SpawnError("cwd", error.errno or 0) from None

    def _posix_spawn(
        self,
        stdio: tuple[int, int, int],
        argv: list[bytes],
        env: dict[bytes, bytes],
    ) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]

        def attempt(program: bytes) -> int:
            return os.posix_spawn(
                program,
                argv,
                env,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=self._ignored,
            )

        try:
            return first_executable(argv[0], search_path(env), attempt)
        except OSError as error:
            raise SpawnError("exec", error.errno or 0) from None


def search_path(env: dict[bytes, bytes]) -> bytes:
    return env.get(b"PATH", DEFAULT_PATH)


def first_executable(name: bytes, path: bytes, attempt: Callable[[bytes], int]) -> int:
    """execvp(3)'s search: ``attempt`` on each place, of which the first that works counts.

    A name with a slash is taken as it is. EACCES is remembered, what is missing is passed over,
    anything else ends the search. Raises OSError.
    """
    if b"/" in name:
        return attempt(name)
    denied = False
    for folder in path.split(b":"):
        # An empty element is the working directory (POSIX 8.3).
        program = (folder or b".") + b"/" + name
        try:
            # Attempts are dear: look first.
            if not stat.S_ISREG(os.stat(program).st_mode):
                denied = True
                continue
            return attempt(program)
        except PermissionError:
            denied = True
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise OSError(errno.EACCES if denied else errno.ENOENT, "")


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
) -> int:
    """The child reports a failure as ``stage index, errno`` through a close-on-exec pipe."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    # No handler of the agent may run in the child.
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _child(request, stdio, argv, env, writer)
    except OSError as error:
        os.close(reader)
        raise SpawnError("exec", error.errno or 0) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(writer)
    try:
        report = os.read(reader, 16)
    finally:
        os.close(reader)
    if report:
        os.waitpid(pid, 0)
        stage, code = report.split()
        raise SpawnError(STAGES[int(stage)], int(code))
    return pid


def _child(
    request: SpawnRequest,
    stdio: tuple[int, int, int],
    argv: list[bytes],
    env: dict[bytes, bytes],
    report: int,
) -> NoReturn:
    stage = "exec"
    code = 0
    try:
        signal.set_wakeup_fd(-1)
        # While there is memory: the limits may leave none to a Python as large as the agent.
        execute = _execve(argv, env)
        _reset_signals()
        os.setsid()
        stage = "pty"
        for number, fd in enumerate(stdio):
            os.dup2(fd, number)
        if request.pty is not None:
            _take_terminal()
        stage = "limits"
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
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        first_executable(argv[0], search_path(env), execute)
    except OSError as error:
        code = error.errno or errno.EINVAL
    except MemoryError:
        code = errno.ENOMEM
    except BaseException:
        code = errno.EINVAL
    finally:
        os.write(report, b"%d %d" % (STAGES.index(stage), code))
        os._exit(127)


def _reset_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def set_limits(limits: dict[str, int]) -> None:
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


def _execve(argv: list[bytes], env: dict[bytes, bytes]) -> Callable[[bytes], int]:
    """execve(2) itself: Python's refuses names of variables that are empty or hold ``=``."""
    import ctypes

    execve = ctypes.CDLL(None, use_errno=True).execve
    arguments = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
    pairs = [name + b"=" + value for name, value in env.items()]
    environment = (ctypes.c_char_p * (len(pairs) + 1))(*pairs, None)

    def execute(program: bytes) -> int:
        execve(program, arguments, environment)
        code = ctypes.get_errno()
        raise OSError(code, "")

    return execute


def preload() -> list[str]:
    """Import what is used late; the names, for the curious."""
    import ctypes
    import fcntl
    import resource
    import termios

    return [module.__name__ for module in (ctypes, fcntl, resource, termios)]


def sweep_descriptors(keep: Iterable[int] = ()) -> None:
    """Mark every descriptor above 2 close-on-exec, and see that 0, 1 and 2 are taken."""
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
        if fd > 2 and fd not in keep:
            try:
                os.set_inheritable(fd, False)
            except OSError:
                continue


def _occupy(number: int) -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)
