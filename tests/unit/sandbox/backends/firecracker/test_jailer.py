import os
import socket
from pathlib import Path

import pytest

from agentd.model.errors import BackendLost, SandboxError
from agentd.sandbox.backends.cgroups import group_name
from agentd.sandbox.backends.firecracker import jailer
from agentd.sandbox.backends.firecracker.jailer import Jail, Root


@pytest.fixture
def jail(place: Path) -> Jail:
    jail = Jail(str(place / "jails"), group_name(), os.getuid())
    os.mkdir(jail.base)
    jailer.prepare(jail, ["kernel", "memory"])
    return jail


@pytest.fixture
def root(jail: Jail):
    root = Root(jail)
    yield root
    root.close()


def test_the_command_line(jail: Jail) -> None:
    words = jailer.command(jail, "/j", "/f", 128 << 20)
    ours, _, theirs = " ".join(words).partition(" -- ")
    assert ours == (
        f"/j --id {jail.id} --exec-file /f --uid {jail.uid} --gid {jail.uid} "
        f"--chroot-base-dir {jail.base} {{cgroup}} --resource-limit fsize={192 << 20} "
        "--resource-limit no-file=2048 --new-pid-ns"
    )
    assert theirs == "--api-sock api --enable-pci"
    assert "--no-seccomp" not in words
    assert "--daemonize" not in words


def test_an_id_is_what_the_jailer_takes_and_leaves_room_for_a_socket_path() -> None:
    jail = Jail(jailer.BASE, group_name(), 1)
    assert len(jail.id) <= 64
    assert jail.id.replace("-", "").isalnum()
    assert len(f"{jail.root}/vsock_4294967295") < 108


def test_the_root_is_closed_to_others_and_made_once(jail: Jail) -> None:
    assert sorted(os.listdir(jail.root)) == ["kernel", "memory"]
    assert os.stat(jail.root).st_mode & 0o777 == 0o700
    with pytest.raises(SandboxError, match="cannot be made"):
        jailer.prepare(jail, [])


def test_one_that_cannot_be_finished_leaves_nothing(jail: Jail) -> None:
    second = jail._replace(id=group_name())
    with pytest.raises(SandboxError, match="cannot be made"):
        jailer.prepare(second, ["kernel", "absent/kernel"])
    assert not os.path.exists(second.folder)


def test_a_socket_is_reached_through_its_descriptor(jail: Jail, root: Root) -> None:
    with pytest.raises(FileNotFoundError):
        root.socket_path("api")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(f"{jail.root}/api")
        listener.listen()
        path = root.socket_path("api")
        assert path.startswith("/proc/self/fd/")
        # Replaced behind our back: it still leads to the first.
        os.unlink(f"{jail.root}/api")
        os.symlink("/run/docker.sock", f"{jail.root}/api")
        client.connect(root.socket_path("api"))
        listener.accept()[0].close()


def test_a_link_to_a_socket_elsewhere_is_not_followed(jail: Jail, root: Root, place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "elsewhere"))
        os.symlink(place / "elsewhere", f"{jail.root}/api")
        with pytest.raises(BackendLost, match="not the monitor's socket"):
            root.socket_path("api")


def test_a_socket_of_another_user_is_none(jail: Jail) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{jail.root}/api")
        root = Root(jail._replace(uid=jail.uid + 1))
        with pytest.raises(BackendLost, match="not the monitor's socket"):
            root.socket_path("api")
        root.close()


def plant(kind: str, path: str) -> None:
    if kind == "symlink":
        os.symlink("/etc/passwd", path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "second name":
        Path(f"{path}.other").write_bytes(b"secret")
        os.link(f"{path}.other", path)
    elif kind == "too big":
        Path(path).write_bytes(b"x" * 101)


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder", "second name", "too big", "absent"])
def test_only_a_plain_file_of_the_monitors_is_read(jail: Jail, root: Root, kind: str) -> None:
    plant(kind, f"{jail.root}/new-state")
    with pytest.raises(SandboxError):
        root.open_file("new-state", 100)


def test_a_plain_file_is(jail: Jail, root: Root) -> None:
    Path(f"{jail.root}/new-state").write_bytes(b"x" * 100)
    fd, size = root.open_file("new-state", 100)
    os.close(fd)
    assert size == 100
    root.remove_file("new-state")
    root.remove_file("new-state")
    assert not os.path.exists(f"{jail.root}/new-state")


def test_jails_of_the_dead_are_removed_and_no_others(jail: Jail, place: Path) -> None:
    parent = Path(jail.folder).parent
    outside = place / "outside"
    outside.write_text("kept")
    dead = parent / "sbx-999999999-1-00ff00ff"
    (dead / "root").mkdir(parents=True)
    (dead / "root" / "link").symlink_to(outside)
    (parent / "of another").mkdir()
    jailer.reap(jail.base)
    assert sorted(os.listdir(parent)) == sorted([jail.id, "of another"])
    assert outside.read_text() == "kept"
    jailer.reap(str(place / "absent"))
