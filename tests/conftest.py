"""Every test is checked for what it leaves behind; what is absent is skipped by name and reason."""

import contextlib
import ctypes
import fcntl
import functools
import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
from hypothesis import HealthCheck, settings

from agentd.testing.patience import SLOWER

GRACE = 20.0  # seconds that a closing sandbox's last child, mount or group may take to go
NOBODY = 65534
#: Of tests that use up what is counted by user, and others would lack.
ALONE = 64999
#: Of tests with a daemon at the usual place of its user, where all that this user starts finds it.
FOUND = 64998
MS_SHARED = 1 << 20  # mount(2)
# Where root's daemon listens, keeps its state and its images of registries: mode of each.
USUAL_PLACES = {"/run/agentd": 0o711, "/var/lib/agentd": 0o700, "/var/cache/agentd/oci": 0o700}
R = TypeVar("R")
SOURCE = Path(__file__).resolve().parent.parent / "src"
TOOLS = ("bwrap", "runc", "runsc", "crun", "setpriv", "firecracker", "jailer")
RUNTIME = ("msgspec", "rich", "markdown_it", "mdurl", "pygments", "pip")  # what agentd imports
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

# With it pytest compares whole what differs, however large: an hour for 3 MiB.
os.environ.pop("CI", None)

# How fast an example is says more of the machine than of us.
settings.register_profile("any pace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any pace")


# --- what is skipped, and why ---


def _absent() -> dict[str, str]:
    """Marker -> why the tests that carry it are skipped here."""
    reasons = {}
    if os.getuid() != 0:
        reasons["root"] = f"needs uid 0, and this is uid {os.getuid()}"
    if why := _kvm_blocker():
        reasons["pending_kvm"] = why
    return reasons


@functools.cache
def _kvm_blocker() -> str:
    from agentd.linux import kvm

    return kvm.probe().what


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(tool): needs a program on PATH, such as runc")
    config.addinivalue_line("markers", "first: waits for minutes, which cost nothing beside others")
    if os.getuid() == 0:
        _leave_the_mounts_of_others()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    _hear_signals()


def _hear_signals() -> None:
    """What nohup and a shell's & ignore would be ignored by every program that a test starts."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For ``-n auto``: one more than there are cores, since a test waits for half of its time."""
    return min(len(os.sched_getaffinity(0)) + 1, 6)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Workers begin with all signals blocked, and their main threads unblock them when configured.

    So the thread that talks to us takes none of those that a test waits for with signalfd(2).
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodeready() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


def _leave_the_mounts_of_others() -> None:
    """Moves us into a mount namespace of our own: each mount that comes and goes in it is ours.

    Ours stay shared with what we start: a sandbox that lets one out is caught.
    """
    from agentd.linux import abi
    from agentd.linux.kernel import KERNEL

    with contextlib.suppress(PermissionError):  # root of a container, without capabilities
        KERNEL.unshare(abi.CLONE_NEWNS)
        KERNEL.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
        KERNEL.mount(None, "/", None, abi.MS_REC | MS_SHARED)
        _leave_the_daemon_of_others()


def _leave_the_daemon_of_others() -> None:
    """Empty folders at root's usual places, here alone: no test meets a daemon of this machine, or
    what another test keeps there, whatever environment it starts agentd with."""
    for path, mode in USUAL_PLACES.items():
        os.makedirs(path, mode, exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"mode={mode:o}", "agentd-tests", path], check=True
        )


def pytest_report_header() -> list[str]:
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    lines = [f"skipped: {name}: {why}" for name, why in _absent().items()]
    return lines + [f"skipped: needs({tool}): {tool} is not installed" for tool in missing]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    absent = _absent()
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
    for item in items:
        if SLOWER != 1:
            limit = item.get_closest_marker("timeout")
            usual = config.getini("timeout")
            seconds = float(limit.args[0] if limit and limit.args else usual)
            item.add_marker(pytest.mark.timeout(seconds * SLOWER), append=False)
        for name, why in absent.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=f"{name}: {why}"))
        for marker in item.iter_markers("needs"):
            for tool in marker.args:
                if shutil.which(tool, path=PATH) is None:
                    item.add_marker(pytest.mark.skip(reason=f"{tool} is not installed"))


def pytest_collection_finish() -> None:
    """Takes what pytest holds of ten thousand tests from the collector's sight: to look through it
    took a quarter of a second each time that a test had left something to it."""
    gc.collect()
    gc.freeze()


# --- what a test leaves behind ---


def _descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        if int(fd) <= 2:  # pytest has others there while it captures
            continue
        try:
            found.add(f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:  # the listing's own
            continue
    return found


def _children() -> set[str]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            continue
        for pid in pids:
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found.add(f"{pid} ({name})")
    return found


_mounted: dict[str, str] = {}  # by number; the path of one changes with the name of a folder above


def _mounts() -> set[str]:
    if os.getuid() != 0:
        return set()  # an ordinary user mounts nothing here: those that come and go are of others
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        number = line.split()[0]
        found[number] = _mounted.get(number, line)
    _mounted.clear()
    _mounted.update(found)
    return set(found.values())


def _threads() -> set[str]:
    return {f"{thread.name} ({thread.ident})" for thread in threading.enumerate()}


@functools.cache
def _hierarchy() -> Any:
    from agentd.linux import cgroup

    return cgroup.detect()


_of_others: set[str] = set()  # groups once seen to be another run's; by now their owner may be dead


def _cgroups() -> set[str]:
    """Sandboxes' groups. The directory above them is every agentd's on the machine, and stays.

    A group's name holds its owner's pid and pid namespace: those of a live process that is not
    below us are another run's, and stay so when it dies; so are those of another namespace (a
    container), whose numbers say nothing here. Tests that make one look after its groups.
    """
    hierarchy = _hierarchy()
    groups = set() if hierarchy is None else set(hierarchy.stale("sbx-")) - _of_others
    _of_others.update(name for name in groups if _is_anothers(name))
    return groups - _of_others


def _is_anothers(name: str) -> bool:
    _, pid, _, *more = name.split("-")  # at last its random part, before that the namespace
    if more[:-1] not in ([], [str(os.stat("/proc/self/ns/pid").st_ino)]):
        return True
    while pid not in ("0", str(os.getpid())):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        pid = stat.rpartition(")")[2].split()[1]
    return pid == "0"


_CENSUS: dict[str, Callable[[], set[str]]] = {
    "descriptor": _descriptors,
    "child process": _children,
    "mount": _mounts,
    "thread": _threads,
    "cgroup": _cgroups,
}


def _leaks(before: dict[str, set[str]]) -> list[str]:
    return [
        f"{kind}: {thing}"
        for kind, count in _CENSUS.items()
        for thing in sorted(count() - before[kind])
    ]


def _shared_pipeline() -> Any:
    """The one that embedded sandboxes share for the whole process, where a test has started it."""
    return getattr(sys.modules.get("agentd.client.embedded"), "_shared", None)


def _close_shared_pipeline() -> None:
    pipeline = _shared_pipeline()
    if pipeline is not None:
        sys.modules["agentd.client.embedded"]._shared = None  # type: ignore[attr-defined]
        pipeline.manager.close()


def _shared_control() -> Any:
    """Policy, audit and receipts of the calls that a process makes by itself, likewise."""
    return getattr(sys.modules.get("agentd.daemon.calls.embedded"), "_shared", None)


def _close_shared_control() -> None:
    shared = _shared_control()
    if shared is not None:
        sys.modules["agentd.daemon.calls.embedded"]._shared = None  # type: ignore[attr-defined]
        shared[1].close()


def _close_resting_client() -> None:
    """The connection that a process keeps for its next sandbox of a daemon."""
    clients = sys.modules.get("agentd.client.http.client")
    if clients is not None:
        clients.close_resting()


@pytest.fixture(autouse=True)
def _no_daemon_of_the_machine(_nothing_left_behind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox of a test's own process is not one of whatever daemon runs here. What a test leaves
    behind is counted once what it patched is as it was: that may be what counts."""
    monkeypatch.setattr("agentd.client.http.address.SYSTEM_SOCKET", "/nonexistent/agentd.sock")


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fails what leaks in its body: a test, or what a fixture of a wider scope held."""
    pipeline = _shared_pipeline()
    if pipeline is not None and not pipeline.manager.sandboxes():
        # Nobody's any more: what stands ready in it would not end with the body, as its own does.
        _close_shared_pipeline()
    before = {kind: count() for kind, count in _CENSUS.items()}
    shared, control = _shared_pipeline(), _shared_control()
    yield
    if shared is None:
        _close_shared_pipeline()
    if control is None:
        _close_shared_control()
    _close_resting_client()
    deadline, pause = time.monotonic() + GRACE, 0.001
    while leaks := _leaks(before):
        if time.monotonic() > deadline:
            pytest.fail("left behind:\n  " + "\n  ".join(leaks), pytrace=False)
        # What ends by itself does so within milliseconds; the collector is for what does not.
        if pause > 0.01:
            gc.collect()
        time.sleep(pause)
        pause = min(2 * pause, 0.2)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaks. What a fixture of a wider scope holds was there before the count."""
    with nothing_left_behind():
        yield


# --- as an ordinary user ---


class OrdinaryUser:
    """Runs things as ``uid``, without capabilities, in its own home; as ourselves if not root."""

    def __init__(self, home: Path, python: list[str], pythonpath: str, uid: int = NOBODY) -> None:
        self.home, self.uid = home, uid
        self.is_other = os.getuid() == 0
        self._python = python
        self.env = {
            "PATH": PATH,
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "TMPDIR": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_STATE_HOME": str(home / "state"),
            "PYTHONPATH": pythonpath,
        }

    def run(
        self, argv: list[str], *, timeout: float = 250, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Output captured, stdin empty, in the user's home; a failure is the caller's to judge."""
        drop = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        return subprocess.run(
            [*(drop if self.is_other else []), *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            cwd=self.home,
            env=self.env | dict(env or {}),
            check=False,
        )

    def python(self, *args: str, timeout: float = 250) -> subprocess.CompletedProcess[bytes]:
        return self.run([*self._python, *args], timeout=timeout)

    def agentd(self, *args: str, timeout: float = 250) -> subprocess.CompletedProcess[bytes]:
        return self.python("-m", "agentd", *args, timeout=timeout)

    def take_image(self) -> None:
        """A copy of our own machine image, which takes a network and a minute to make."""
        from agentd.image import build, store

        build.ensure()
        cache = self.home / "cache"
        shutil.copytree(store.default_folder(), cache / "agentd/images", symlinks=True)
        if self.is_other:
            subprocess.run(["chown", "-R", f"{self.uid}:{self.uid}", cache], check=True)

    def call(self, function: Callable[[], R]) -> R:
        """``function()`` in a forked child that has become the user: its value, or its exception.

        Both must pickle; the function itself need not.
        """
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            self._child(function, write_end)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(pid, 0)
        assert data, f"the child ended with wait status {status} and no answer"
        answer: tuple[bool, Any] = pickle.loads(data)  # noqa: S301 written by our own child
        ok, value = answer
        if not ok:
            raise value
        result: R = value
        return result

    def _child(self, function: Callable[[], object], write_end: int) -> NoReturn:
        try:
            try:
                if self.is_other:
                    become(self.uid)
                os.environ.clear()
                os.environ.update(self.env)
                os.chdir(self.home)
                answer = pickle.dumps((True, function()))
            except BaseException as error:
                answer = pickle.dumps((False, error))
            with open(write_end, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # A change of uid makes /proc/self root's, and then uid_map cannot be written (proc(5)).
    PR_SET_DUMPABLE = 4
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def _readable_by_nobody(path: Path) -> bool:
    return all(os.stat(folder).st_mode & 0o001 for folder in path.resolve().parents)


@pytest.fixture(scope="session")
def _user_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], str]]:
    """(argv that starts our Python, PYTHONPATH), both within an ordinary user's reach."""
    base = Path(os.path.realpath(sys.executable))
    if not _readable_by_nobody(base):
        pytest.skip(
            f"as_user: an ordinary user cannot reach {base}; build .venv on /usr/bin/python3"
        )
    site = Path(sysconfig.get_path("purelib"))
    if _readable_by_nobody(site) and _readable_by_nobody(SOURCE):
        yield [str(base)], f"{SOURCE}:{site}"
        return
    # The checkout lies where only we can look: give the user a copy of what it imports.
    with tempfile.TemporaryDirectory(prefix="agentd-user-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103 a copy of public code, for another user to read
        shutil.copytree(SOURCE / "agentd", f"{folder}/agentd")
        for name in RUNTIME:
            for found in site.glob(f"{name}*"):
                copy = shutil.copytree if found.is_dir() else shutil.copy
                copy(found, f"{folder}/{found.name}")
        yield [str(base)], folder


@pytest.fixture
def as_user(_user_python: tuple[list[str], str]) -> Iterator[OrdinaryUser]:
    """An OrdinaryUser whose home lives as long as the test. pytest's tmp_path is closed to it."""
    with _at_home(NOBODY, _user_python) as user:
        yield user


@pytest.fixture
def as_user_alone(_user_python: tuple[list[str], str]) -> Iterator[OrdinaryUser]:
    """``as_user`` of an id that no other test has meanwhile, of this run or of another."""
    with open(f"/var/tmp/agentd-tests-alone-{os.getuid()}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _at_home(ALONE, _user_python) as user:
            yield user


@pytest.fixture
def as_user_found(_user_python: tuple[list[str], str]) -> Iterator[OrdinaryUser]:
    """``as_user`` of another id that no other test has."""
    if os.getuid() != 0:
        pytest.skip("as_user_found: every test of this user would meet its daemon")
    with _at_home(FOUND, _user_python) as user:
        yield user


@contextlib.contextmanager
def _at_home(uid: int, python: tuple[list[str], str]) -> Iterator[OrdinaryUser]:
    with tempfile.TemporaryDirectory(prefix="agentd-home-") as home:
        if os.getuid() == 0:
            os.chown(home, uid, uid)
        yield OrdinaryUser(Path(home), *python, uid)
