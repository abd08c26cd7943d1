from typing import Any

import msgspec
import pytest

from agentd.model.errors import InvalidInput, Refused
from agentd.model.limits import Limits
from agentd.model.mount import Mount, MountMode
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.limits import file_max
from agentd.sandbox.backends.linux.plan import MAX_MOUNTS, environment, make_plan

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _mount(target: str, mode: MountMode = MountMode.RO, source: str = "/host") -> Mount:
    return Mount(source, target, mode)


def _plan(*mounts: Mount, **spec: Any) -> Any:
    return make_plan(SandboxSpec(mounts=mounts, **spec))


def test_the_plan_of_a_spec_that_says_nothing() -> None:
    plan = msgspec.to_builtins(make_plan(SandboxSpec()))
    del plan["spec"]
    assert plan == {
        "uid": 1000,
        "mounts": (),
        "cow": False,
        "private_root": False,
        "limits": {
            "memory": 1 << 30,
            "cpus": None,
            "pids": 512,
            "disk": 512 << 20,
            "open_files": min(4096, file_max() // 4 // 512),
            "output": 64 << 20,
            "timeout": None,
            "net_bytes": None,
            "net_rate": None,
        },
        "inodes": 131072,
        "table": None,
        "authority": None,
        "bare": False,
        "env": {
            "HOME": "/home/sandbox",
            "LANG": "C.UTF-8",
            "LOGNAME": "sandbox",
            "PATH": PATH,
            "USER": "sandbox",
        },
        "workdir": None,
    }


def test_a_plan_is_made_without_looking_at_the_host() -> None:
    assert _plan(_mount("/workspace", MountMode.RW, "/no/such/place")).mounts[0].source == (
        "/no/such/place"
    )


def test_the_workspace_comes_first() -> None:
    plan = _plan(_mount("/b"), _mount("/a"), _mount("/workspace", MountMode.COW))
    assert [mount.target for mount in plan.mounts] == ["/workspace", "/b", "/a"]
    assert plan.cow


@pytest.mark.parametrize(
    ("target", "private"),
    [
        ("/workspace", False),
        ("/workspace/in", False),
        ("/tmp/in", False),
        ("/home/sandbox/in", False),
        ("/dev/shm/in", False),
        ("/run/in", False),
        ("/var/lib/in", False),
        ("/data", True),
        ("/workspaces", True),
        ("/home/other", True),
    ],
)
def test_a_root_of_its_own_only_where_a_mount_needs_one(target: str, private: bool) -> None:
    assert _plan(_mount(target)).private_root is private


@pytest.mark.parametrize(
    ("mounts", "error", "words"),
    [
        ((_mount("/a"), _mount("/a")), InvalidInput, "two mounts at /a"),
        ((_mount("/a"), _mount("/a/b")), InvalidInput, "/a/b lies inside"),
        ((_mount("/workspace/x"), _mount("/workspace")), InvalidInput, "lies inside"),
        ((_mount("/a", MountMode.COW),), Refused, "only the workspace"),
        (tuple(_mount(f"/m{n}") for n in range(MAX_MOUNTS + 1)), InvalidInput, "too many"),
    ],
)
def test_mounts_that_cannot_be(
    mounts: tuple[Mount, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        _plan(*mounts)
    assert caught.value.remediation  # type: ignore[attr-defined]


def test_names_that_only_begin_alike_are_not_nested() -> None:
    assert len(_plan(_mount("/data"), _mount("/database")).mounts) == 2


def test_an_unknown_network() -> None:
    with pytest.raises(InvalidInput, match="'some'"):
        _plan(net="some")


def test_the_environment_is_ours_and_the_requests() -> None:
    assert environment({"A": "1", "HOME": "/x"}, 0) == {
        "A": "1",
        "HOME": "/x",
        "LANG": "C.UTF-8",
        "LOGNAME": "root",
        "PATH": PATH,
        "USER": "root",
    }


@pytest.mark.parametrize(
    ("disk", "inodes"), [(1, 1024), (8 << 20, 2048), (1 << 30, 262144), (1 << 45, 1 << 20)]
)
def test_inodes_follow_the_disk_within_bounds(disk: int, inodes: int) -> None:
    assert _plan(limits=Limits(disk=disk)).inodes == inodes
