"""The order of the wall's steps, on a kernel that only writes down what it is told."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.recording import Answer, RecordingKernel

from agentd.guest.zygote import box
from agentd.guest.zygote.var import Contents
from agentd.guest.zygote.wall_kernel import KERNEL, WallKernel
from agentd.linux import abi, seccomp

STEPS = [
    "user_namespace",
    "hostname",
    "network",
    "root",
    "scratch",
    "workspace",
    "certificates",
    "proc",
    "user_counts",
    "group",
    "cgroup_namespace",
    "cgroup_view",
    "rlimits",
    "no_new_privs",
    "capabilities",
    "dumpable",
    "landlock",
    "seccomp",
]
REQUEST: dict[str, Any] = {
    "uid": 1000,
    "hostname": "sandbox",
    "net": "none",
    "disk": 1 << 20,
    "inodes": 1024,
    "pids": 10,
    "open_files": 64,
    "user_counts": [],
    "user_rlimits": [],
    "cow": False,
    "scratch_fd": None,
    "private_root": False,
    "landlock_abi": 0,
    "without": [],
    "mounts": [],
}


class Recorder(RecordingKernel, WallKernel):
    """Dry where it is not asked for a system call, which it writes down."""

    def __init__(self, script: Mapping[str, Sequence[Answer]] | None = None) -> None:
        super().__init__(script)
        self._dry = True


@pytest.fixture(autouse=True)
def no_var(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box.var, "contents", lambda: Contents((), ()))


@pytest.fixture(autouse=True)
def nothing_real(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What does not go through the kernel port is written down too, and not done."""
    log: list[str] = []
    for name in ("_identity", "_network", "_rlimits", "_landlock"):
        monkeypatch.setattr(box, name, lambda *_, name=name: log.append(name))
    monkeypatch.setattr(box, "masks", lambda: (("/.agentd/empty", "/proc/keys"),))
    monkeypatch.setattr(
        box.own_root, "mount_point", lambda path, is_dir: log.append(f"point {path}")
    )
    return log


def _confine(
    kernel: Recorder,
    fds: list[int] | None = None,
    enter: Callable[[], list[str]] = list,
    **wanted: Any,
) -> list[str]:
    given = list(fds or [])
    try:
        filter_ = seccomp.build("sandbox")
        return box.confine(REQUEST | wanted, given, filter_, kernel, enter=enter).controls
    finally:
        for fd in given[len(fds or []) :]:  # of its disk, for the host
            os.close(fd)


def _mounts(kernel: Recorder) -> list[tuple[object, ...]]:
    return [
        (name, args[1] if name == "mount" else args[3])
        for name, args in kernel.calls
        if name in ("mount", "move_mount")
    ]


def test_every_step_is_taken_in_order() -> None:
    assert _confine(Recorder()) == STEPS


def test_the_group_is_entered_before_it_is_the_root_of_the_namespace() -> None:
    kernel = Recorder()
    seen: list[list[str]] = []

    def enter() -> list[str]:
        seen.append(kernel.names())
        return ["cgroup"]

    assert "cgroup" in _confine(kernel, enter=enter)
    assert len(seen) == 1
    assert "unshare" not in seen[0]
    capset = kernel.names().index("capset")
    assert ("unshare", (abi.CLONE_NEWCGROUP,)) in kernel.calls[len(seen[0]) : capset]


def test_nothing_is_mounted_once_privileges_are_gone() -> None:
    kernel = Recorder()
    _confine(kernel)
    names = kernel.names()
    capset = names.index("capset")
    assert "mount" in names[:capset]
    assert not {"mount", "move_mount", "umount2", "pivot_root", "sethostname"} & set(names[capset:])


def test_the_filter_is_the_last_and_no_new_privs_before_it() -> None:
    kernel = Recorder()
    _confine(kernel)
    prctls = [args[0] for name, args in kernel.calls if name == "prctl"]
    assert prctls.index(abi.PR_SET_NO_NEW_PRIVS) < prctls.index(abi.PR_SET_SECUREBITS)
    assert prctls.index(abi.PR_SET_SECUREBITS) < prctls.index(abi.PR_SET_DUMPABLE)
    assert kernel.names()[-1] == "seccomp"
    dumpable = next(a for n, a in kernel.calls if n == "prctl" and a[0] == abi.PR_SET_DUMPABLE)
    assert dumpable[1] == 0


def test_the_scratch_is_covered_by_its_own_part() -> None:
    kernel = Recorder()
    _confine(kernel)
    assert _mounts(kernel) == [
        ("mount", b"/workspace"),
        ("mount", b"/tmp"),
        ("mount", b"/home/sandbox"),
        ("mount", b"/dev/shm"),
        ("mount", b"/run"),
        ("mount", b"/var"),
        ("mount", b"/workspace/n"),
        ("mount", b"/workspace/n/o"),
        ("mount", b"/dev/pts"),
        ("mount", b"/dev/mqueue"),
        ("mount", b"/workspace"),
        ("mount", b"/proc"),
        ("mount", b"/proc/keys"),
    ]
    tmpfs = next(args for name, args in kernel.calls if name == "mount")
    assert tmpfs[2] == b"tmpfs"
    assert tmpfs[4] == b"mode=0755,size=1048576,nr_inodes=1024"
    for name, args in kernel.calls:
        if name == "mount" and args[2] is not None:
            assert isinstance(args[3], int)
            assert args[3] & abi.MS_NOSUID, args


def test_a_mounted_workspace_comes_last_over_the_scratch(nothing_real: list[str]) -> None:
    kernel = Recorder()
    mounts = [
        {"target": "/workspace", "fd": 1, "ro": False, "is_dir": True},
        {"target": "/tmp/data", "fd": 2, "ro": True, "is_dir": True},
    ]
    _confine(kernel, [70, 71, 72], mounts=mounts)
    moved = [(args[0], args[3]) for name, args in kernel.calls if name == "move_mount"]
    assert moved == [(71, b"/workspace"), (72, b"/tmp/data")]
    assert _mounts(kernel)[-3:] == [
        ("move_mount", b"/tmp/data"),
        ("mount", b"/proc"),
        ("mount", b"/proc/keys"),
    ]
    assert "point /tmp/data" in nothing_real


def test_copy_on_write_is_an_overlay_within_the_scratch() -> None:
    kernel = Recorder()
    mounts = [{"target": "/workspace", "fd": 1, "ro": True, "is_dir": True}]
    _confine(kernel, [70, 71, 72], mounts=mounts, cow=True, scratch_fd=2)
    moved = [(args[0], args[3]) for name, args in kernel.calls if name == "move_mount"]
    assert moved == [(72, b"/workspace"), (71, b"/workspace/l")]
    overlay = next(args for name, args in kernel.calls if name == "mount" and args[2] == b"overlay")
    assert overlay[4] == (
        b"userxattr,lowerdir=/workspace/l,upperdir=/workspace/u,workdir=/workspace/k"
    )
    assert overlay[1] == b"/workspace"


@pytest.mark.parametrize("step", STEPS)
def test_a_control_can_be_left_out_for_the_tests_that_prove_it(step: str) -> None:
    kernel = Recorder()
    assert _confine(kernel, without=[step]) == [name for name in STEPS if name != step]
    gone = {"no_new_privs": "prctl", "seccomp": "seccomp", "hostname": "sethostname"}.get(step)
    if gone == "prctl":
        settings = [args[0] for name, args in kernel.calls if name == "prctl"]
        assert abi.PR_SET_NO_NEW_PRIVS not in settings
    elif gone:
        assert gone not in kernel.names()


@pytest.mark.parametrize(
    ("call", "stage"),
    [("mount", "scratch"), ("capset", "capabilities"), ("seccomp", "seccomp")],
)
def test_a_failure_names_its_step_and_nothing_follows(call: str, stage: str) -> None:
    kernel = Recorder({call: [OSError(errno.EPERM, "no")]})
    with pytest.raises(box.BoxError, match=f"^{stage}: ") as caught:
        _confine(kernel)
    assert (caught.value.stage, caught.value.errno) == (stage, errno.EPERM)
    assert kernel.names()[-1] == call


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
def test_what_a_container_refuses_is_one_control_less(code: int) -> None:
    kernel = Recorder({"sethostname": [OSError(code, "no")]})
    assert _confine(kernel) == [name for name in STEPS if name != "hostname"]


@pytest.mark.parametrize(
    ("hard", "wanted"),
    [(resource.RLIM_INFINITY, (1, 1)), (1 << 20, (1, 1)), (1, (1, 1)), (0, (0, 0))],
)
def test_no_core_never_raises_a_hard_limit(hard: int, wanted: tuple[int, int]) -> None:
    """A hard limit of 0, as containers have it, is left: who is not root cannot raise it."""
    now = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if now != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or hard > now):
        pytest.skip(f"the hard limit here is {now}")
    code = (
        "import resource; from agentd.guest.zygote.box import no_core\n"
        f"resource.setrlimit(resource.RLIMIT_CORE, (0, {hard})); no_core()\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{wanted}\n"


def test_a_dry_kernel_changes_nothing(tmp_path: Path) -> None:
    dry = WallKernel(dry=True)
    dry.mkdir(str(tmp_path / "made"), 0o755)
    dry.write(str(tmp_path / "written"), "x")
    dry.setrlimit(resource.RLIMIT_NOFILE, 3)
    dry.sethostname("elsewhere")
    assert dry.ioctl(-1, abi.SIOCSIFFLAGS, b"as it was") == b"as it was"
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3
    assert os.uname().nodename != "elsewhere"


def test_any_other_does_what_it_is_told(tmp_path: Path) -> None:
    made, written = tmp_path / "made", tmp_path / "written"
    written.touch()
    KERNEL.mkdir(str(made), 0o777)
    KERNEL.write(str(written), "x")
    assert made.stat().st_mode & 0o777 == 0o777
    assert written.read_text() == "x"
    with written.open() as file, pytest.raises(OSError, match="ioctl"):
        KERNEL.ioctl(file.fileno(), abi.SIOCSIFFLAGS, bytes(40))
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        KERNEL.fsconfig(-1, abi.FSCONFIG_CMD_CREATE, None, None)
