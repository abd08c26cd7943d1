"""What virtiofsd is told, and which directories it is given."""

import os
import stat
from pathlib import Path

import pytest

from agentd.model.errors import InvalidInput
from agentd.model.mount import Mount, MountMode
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.qemu import shares
from agentd.sandbox.backends.qemu.backend import QemuBackend
from agentd.sandbox.backends.qemu.shares import Share

RW = Mount("/srv/project", "/data", MountMode.RW)
LENT_TO = 2_000_131_073
RO = Mount("/srv/project", "/data", MountMode.RO)


def test_the_guests_user_stands_for_the_owner_and_nobody_else_is_anybody() -> None:
    words = shares.command("/usr/libexec/virtiofsd", Share("t", 9, 33, 34, RW, False), 1000)
    assert words == [
        "/usr/libexec/virtiofsd",
        "--fd={listener}",
        "--shared-dir=/srv/project",
        "--sandbox=none",
        "--seccomp=kill",
        "--inode-file-handles=never",
        "--no-announce-submounts",
        "--rlimit-nofile=0",
        "--cache=auto",
        "--translate-uid=map:1000:33:1",
        "--translate-gid=map:1000:34:1",
    ]


def test_a_detached_mount_is_found_where_it_is_put() -> None:
    words = shares.command("virtiofsd", Share("t", 9, 1, 1, RO, True), 0)
    assert "--shared-dir=/tmp" in words
    assert words[-1] == "--readonly"


def test_the_guest_mounts_it_without_set_uid_programs_and_devices() -> None:
    share = Share("share0", 9, 1, 1, RW, True)
    assert shares.mount_command(share)[-3:] == ("share0", "/data", "nosuid,nodev")
    assert shares.mount_command(share._replace(mount=RO))[-1] == "nosuid,nodev,ro"


@pytest.mark.root
def test_root_lends_the_owners_rights_to_a_user_without_any(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1234)
    share = shares.open_share(Mount(str(tmp_path), "/data", MountMode.RW), 3, LENT_TO)
    try:
        assert (share.tag, share.uid, share.gid, share.detached) == (
            "share3",
            LENT_TO,
            LENT_TO,
            True,
        )
        status = os.fstat(share.fd)
        assert (status.st_uid, status.st_gid) == (LENT_TO, LENT_TO)
        assert stat.S_ISDIR(status.st_mode)
    finally:
        os.close(share.fd)


@pytest.mark.parametrize("name", ["absent", "file"])
def test_what_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=name) as caught:
        shares.open_share(Mount(str(tmp_path / name), "/data", MountMode.RO), 0, None)
    assert "directory" in caught.value.remediation


def test_what_was_meant_for_a_mode_is_told(tmp_path: Path) -> None:
    """A daemon is asked for whatever stands there, and has no folder of the caller's to look at."""
    with pytest.raises(InvalidInput, match="'xx' is no mode: use ro, rw or cow"):
        shares.open_share(Mount(f"{tmp_path}/.:xx", "/workspace", MountMode.RW), 0, None)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/workspace", "workspace '{}' is not a directory .give a directory."),
        ("/data", "cannot mount {}: Not a directory .check that it is a directory"),
    ],
)
def test_a_file_is_refused_before_anything_is_booted(
    tmp_path: Path, target: str, said: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InvalidInput, match=said.format(file)):
        QemuBackend().plan(SandboxSpec(mounts=(Mount(str(file), target, MountMode.RO),)))
