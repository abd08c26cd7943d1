"""Where the hierarchy is looked for."""

from pathlib import Path

import pytest

from agentd.linux import cgroup
from agentd.linux.cgroup import hierarchy, v1

MIB = 1 << 20


def mount_line(point: str, kind: str, options: str, root: str = "/") -> str:
    return f"31 23 0:28 {root} {point} rw,relatime shared:4 - {kind} {kind} {options}\n"


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    """The top of a v2 mount."""
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    return tmp_path


def test_v2_is_preferred_when_it_has_controllers(unified: Path) -> None:
    mounts = mount_line("/v1/memory", "cgroup", "rw,memory") + mount_line(
        str(unified), "cgroup2", "rw,nsdelegate"
    )
    found = cgroup.detect(mounts, "4:memory:/a\n0::/\n")
    assert found is not None
    assert (found.version, found.controllers) == (2, {"memory", "pids", "cpu"})


def test_an_empty_v2_gives_way_to_v1(unified: Path) -> None:
    (unified / "cgroup.controllers").write_text("hugetlb\n")
    mounts = (
        mount_line(str(unified), "cgroup2", "rw")
        + mount_line("/v1/cpu\\040acct", "cgroup", "rw,cpu,cpuacct")
        + mount_line("/v1/memory", "cgroup", "rw,memory", root="/docker/1")
        + mount_line("/v1/pids", "cgroup", "rw,pids")
    )
    own = "4:memory:/docker/1/sub\n8:pids:/\n1:cpu,cpuacct:/c:d\n0::/\n"
    found = cgroup.detect(mounts, own)
    assert found is not None
    assert found.controllers == {"memory", "pids", "cpu"}
    assert list(found._parents()) == [
        "/v1/memory/sub/agentd",
        "/v1/pids/agentd",
        "/v1/cpu acct/c:d/agentd",
    ]


def test_nothing_mounted_is_none() -> None:
    assert cgroup.detect(mount_line("/", "ext4", "rw"), "0::/\n") is None


def test_a_group_that_the_mount_does_not_show_is_its_top() -> None:
    assert v1.base_of("/m", "/docker/1", "/docker/2") == "/m"
    assert v1.base_of("/m", "/docker/1", "/docker/1") == "/m"
    assert v1.base_of("/m", "/", "/../x") == "/m/x"


def test_the_least_quota() -> None:
    assert hierarchy.cpu_quota(0.001) == 1000
    assert hierarchy.cpu_quota(2) == 200_000
