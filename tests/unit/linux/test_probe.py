import os

import pytest

from agentd.linux import abi, landlock, probe


class Refusing:
    """A kernel that refuses one call; ``unshare`` is made in a child."""

    def __init__(self, flag=0, code=0):
        self.flag, self.code = flag, code

    def unshare(self, flags):
        if flags == self.flag:
            raise OSError(self.code, os.strerror(self.code))

    def syscall(self, *args):
        raise OSError(38, "Function not implemented")


def test_the_facts_of_this_machine_are_complete():
    facts = probe.gather()
    assert facts.kernel == os.uname().release
    assert facts.landlock_abi == landlock.abi_version()
    assert set(facts.as_dict()) == set(probe.Facts.__dataclass_fields__)
    assert facts.user_namespaces == (facts.user_namespaces_error == "")


@pytest.mark.parametrize("flag", [abi.CLONE_NEWUSER, abi.CLONE_NEWNS])
def test_a_refused_namespace_tells_the_kernels_reason(flag):
    assert probe.user_namespaces_error(Refusing(flag, 1)) == "Operation not permitted"


def test_user_namespaces_are_tried_in_a_child_only():
    before = os.readlink("/proc/self/ns/user")
    probe.user_namespaces_error()
    assert os.readlink("/proc/self/ns/user") == before


@pytest.mark.parametrize(
    ("made", "version"), [(["cgroup.controllers"], 2), (["memory/"], 1), (["pids/"], 1), ([], 0)]
)
def test_cgroup_version(tmp_path, made, version):
    for name in made:
        path = tmp_path / name
        if name.endswith("/"):
            path.mkdir()
        else:
            path.touch()
    assert probe.cgroup_version(str(tmp_path)) == version
    assert not probe.cgroup_writable(0, str(tmp_path))


@pytest.mark.parametrize(
    ("text", "controller", "path"),
    [
        ("0::/user.slice", "", "/user.slice"),
        ("3:cpu,memory:/a:b\n0::/", "memory", "/a:b"),
        ("3:cpuset:/x", "memory", None),
        ("", "", None),
    ],
)
def test_own_cgroup(text, controller, path):
    assert probe.own_cgroup(text, controller) == path


def test_a_sysctl_that_is_absent_or_no_number_is_none(tmp_path):
    assert probe.read_int(str(tmp_path / "absent")) is None
    (tmp_path / "word").write_text("on\n")
    assert probe.read_int(str(tmp_path / "word")) is None
    (tmp_path / "number").write_text("2\n")
    assert probe.read_int(str(tmp_path / "number")) == 2
