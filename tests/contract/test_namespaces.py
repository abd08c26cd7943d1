"""What only a wall of namespaces can give: mounts anywhere, copies on write, users."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.client.sandbox import Sandbox
from agentd.model.errors import InvalidInput, Refused

of_namespaces = pytest.mark.parametrize("kind", ["linux"], indirect=True)
without_namespaces = pytest.mark.parametrize("kind", ["fake", "host", "landlock"], indirect=True)


@pytest.fixture
def box(make: Callable[..., Sandbox]) -> Callable[..., Sandbox]:
    return make


@pytest.fixture
def project(folder: Path) -> Path:
    """A directory of the caller's: a file, a subdirectory, a link."""
    (folder / "file").write_text("host\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep").write_text("deep\n")
    (folder / "link").symlink_to("file")
    return folder


@of_namespaces
def test_a_workspace_is_the_hosts_directory(box: Callable[..., Sandbox], project: Path) -> None:
    sandbox = box(workspace=project)
    assert sandbox.run("pwd; cat file sub/deep link").text == "/workspace\nhost\ndeep\nhost\n"
    assert sandbox.run("echo new > made; rm file; mv sub/deep moved").exit_code == 0
    assert (project / "made").read_text() == "new\n"
    assert (project / "moved").read_text() == "deep\n"
    assert not (project / "file").exists()
    # What is made inside belongs to the directory's owner outside.
    assert (project / "made").stat().st_uid == project.stat().st_uid


@of_namespaces
@pytest.mark.parametrize("user", [None, "root", "4321"])
def test_the_workspace_belongs_to_the_user_inside(
    box: Callable[..., Sandbox], project: Path, user: str | None
) -> None:
    for sandbox in (box(user=user), box(user=user, workspace=project)):
        uid = {"root": "0", None: "1000"}.get(user, user)
        assert sandbox.run("id -u; id -g; stat -c %u:%g .").text == f"{uid}\n{uid}\n{uid}:{uid}\n"
        assert sandbox.run("touch own && stat -c %u own").text == f"{uid}\n"


@of_namespaces
def test_the_names_of_the_users(box: Callable[..., Sandbox]) -> None:
    assert box().run("id -un; echo $USER $HOME; touch ~/x").text == (
        "sandbox\nsandbox /home/sandbox\n"
    )
    root = box(user="root")
    assert root.run("id -un; touch ~/x /tmp/x && echo wrote").text == "root\nwrote\n"
    # Root inside is nobody outside, and has no capability to show for it.
    assert root.run("mount -t tmpfs none /tmp").exit_code != 0
    assert root.run("chown 1:1 /tmp/x").exit_code != 0


@of_namespaces
def test_a_read_only_workspace(box: Callable[..., Sandbox], project: Path) -> None:
    sandbox = box(workspace=f"{project}:ro")
    assert sandbox.run("cat file").text == "host\n"
    for script in ("echo x > file", "touch new", "rm file", "chmod 777 file", "mkdir d"):
        result = sandbox.run(script)
        assert result.exit_code != 0
        assert b"Read-only file system" in result.stderr
    assert sorted(os.listdir(project)) == ["file", "link", "sub"]
    assert sandbox.enforcement["mount /workspace"].asked == "ro"
    assert sandbox.enforcement["mount /workspace"].enforced


@of_namespaces
def test_mounts_at_places_of_their_own(box: Callable[..., Sandbox], project: Path) -> None:
    (project / "rw").mkdir()
    sandbox = box(
        mounts=[f"{project}:/data", f"{project}/rw:/srv/deep/rw:rw", f"{project}/file:/opt/one"]
    )
    assert sandbox.run("cat /data/file /opt/one").text == "host\nhost\n"
    assert sandbox.run("echo in > /srv/deep/rw/made").exit_code == 0
    assert (project / "rw" / "made").read_text() == "in\n"
    assert sandbox.run("touch /data/x").exit_code != 0
    assert sandbox.run("echo x > /opt/one").exit_code != 0
    assert sandbox.run("touch /opt/x").exit_code != 0
    assert sandbox.run("touch /tmp/x x ~/x").exit_code == 0
    assert set(sandbox.enforcement) >= {"mount /data", "mount /srv/deep/rw", "mount /opt/one"}


@of_namespaces
def test_a_mount_of_one_sandbox_is_not_seen_by_another(
    box: Callable[..., Sandbox], project: Path
) -> None:
    first = box(mounts=[f"{project}:/data", f"{project}:/tmp/data", f"{project}:/workspace/in"])
    second = box()
    seen = "ls -d /data /tmp/data /workspace/in 2>/dev/null"
    assert first.run(seen).text == "/data\n/tmp/data\n/workspace/in\n"
    assert second.run(seen).text == ""


@of_namespaces
def test_copy_on_write_lists_and_applies(box: Callable[..., Sandbox], project: Path) -> None:
    sandbox = box(workspace=f"{project}:cow")
    script = (
        "echo changed >> file; rm sub/deep; mkdir -p new/dir; echo made > new/dir/file;"
        "ln -s /etc/passwd new/link; chmod 750 new/dir"
    )
    assert sandbox.run(script).exit_code == 0
    assert (project / "file").read_text() == "host\n"
    assert (project / "sub" / "deep").exists()
    assert sandbox.changes() == (
        "M file",
        "A new/",
        "A new/dir/",
        "A new/dir/file",
        "A new/link",
        "D sub/deep",
    )
    sandbox.apply()
    assert (project / "file").read_text() == "host\nchanged\n"
    assert not (project / "sub" / "deep").exists()
    assert (project / "new" / "dir" / "file").read_text() == "made\n"
    assert os.readlink(project / "new" / "link") == "/etc/passwd"
    assert (project / "new" / "dir").stat().st_mode & 0o777 == 0o750
    assert (project / "new" / "dir" / "file").stat().st_uid == os.getuid()


@of_namespaces
def test_a_directory_that_was_replaced(box: Callable[..., Sandbox], project: Path) -> None:
    sandbox = box(workspace=f"{project}:cow")
    assert sandbox.run("rm -r sub && mkdir sub && echo n > sub/new").exit_code == 0
    assert set(sandbox.changes()) == {"A sub/new", "D sub/deep"}
    sandbox.apply()
    assert os.listdir(project / "sub") == ["new"]


@of_namespaces
def test_copy_on_write_that_is_dropped_changes_nothing(
    box: Callable[..., Sandbox], project: Path
) -> None:
    sandbox = box(workspace=f"{project}:cow")
    assert sandbox.run("rm -rf ./* && echo x > y").exit_code == 0
    sandbox.close()
    assert sorted(os.listdir(project)) == ["file", "link", "sub"]
    assert (project / "file").read_text() == "host\n"


@of_namespaces
def test_the_root_is_read_only_and_bare(box: Callable[..., Sandbox]) -> None:
    sandbox = box()
    for path in ("/", "/usr", "/etc", "/dev", "/var", "/run", "/mnt"):
        assert sandbox.run(f"touch {path}/x").exit_code != 0, path
    for path in ("/root", "/home/sandbox/.ssh", "/etc/shadow", "/boot", "/var/lib", "/sys/kernel"):
        assert sandbox.run(f"test -e {path}").exit_code != 0, path
    assert int(sandbox.run("ls /proc | grep -c '^[0-9]'").text) < 8


@of_namespaces
def test_hostname_and_loopback_are_its_own(box: Callable[..., Sandbox]) -> None:
    sandbox = box()
    assert sandbox.run(["uname", "-n"]).text == "sandbox\n"
    interfaces = sandbox.run("tail -n +3 /proc/net/dev | cut -d: -f1").text.split()
    assert interfaces == ["lo"]


# --- the others refuse ---


@without_namespaces
def test_other_walls_refuse_what_takes_namespaces(
    make: Callable[..., Sandbox], project: Path
) -> None:
    for wanted in (
        {"user": "root"},
        {"workspace": f"{project}:cow"},
        {"mounts": [f"{project}:/data:rw"]},
    ):
        with pytest.raises(Refused) as caught:
            make(**wanted)
        assert caught.value.remediation


@pytest.mark.parametrize("kind", ["host", "landlock", "landlock over HTTP"], indirect=True)
def test_a_folder_is_at_its_own_path_or_refused(
    make: Callable[..., Sandbox], project: Path
) -> None:
    with pytest.raises(Refused, match=f"cannot put {project} at /data") as caught:
        make(mounts=[f"{project}:/data"])
    assert f"{project}:{project}" in caught.value.remediation
    assert "namespace" in caught.value.remediation
    with pytest.raises(Refused, match="cannot put /etc/ssl at /data") as caught:
        make(mounts=["/etc/ssl:/data"])
    assert "/etc/ssl:/etc/ssl" not in caught.value.remediation  # which is the wall's
    with pytest.raises(Refused, match=f"cannot put {project}/sub at /workspace/sub"):
        make(workspace=project, mounts=[f"{project}/sub:/workspace/sub"])
    (project / "other").symlink_to("sub")
    for target in (f"{project}/sub", f"{project}/other"):
        sandbox = make(mounts=[f"{project}/other:{target}"])
        assert sandbox.run(["cat", f"{target}/deep"]).text == "deep\n"


@of_namespaces
def test_no_overlay_no_changes(sandbox: Sandbox) -> None:
    with pytest.raises(Refused, match="copy-on-write"):
        sandbox.changes()


def test_a_mount_that_is_not_there_is_refused(make: Callable[..., Sandbox], folder: Path) -> None:
    shutil.rmtree(folder / "gone", ignore_errors=True)
    with pytest.raises(InvalidInput, match="gone"):
        make(workspace=folder / "gone")
