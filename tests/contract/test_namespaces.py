"""What only a wall of namespaces can give: mounts anywhere, copies on write, users."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.rootfs import IMAGE, SMALL

from agentd.client.sandbox import Sandbox
from agentd.model.errors import InvalidInput, Refused
from agentd.testing.walls.claims import needs

of_namespaces = pytest.mark.parametrize("kind", ["linux"], indirect=True)
of_the_hosts_programs = pytest.mark.skipif(bool(IMAGE), reason="the root is an image's")
without_namespaces = pytest.mark.parametrize("kind", ["fake", "host", "landlock"], indirect=True)


VAR = ("cache", "lib", "local", "log", "opt", "spool", "tmp")
OWN_ADDRESS = "import socket; print(socket.gethostbyname(socket.gethostname()))"


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
def test_a_read_only_workspace_has_its_place_and_its_line_in_the_report(
    box: Callable[..., Sandbox], project: Path
) -> None:
    sandbox = box(workspace=f"{project}:ro")
    result = sandbox.run("pwd; touch new")
    assert result.text == "/workspace\n"
    assert b"Read-only file system" in result.stderr
    assert sandbox.enforcement["mount /workspace"].asked == "ro"
    assert sandbox.enforcement["mount /workspace"].enforced


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
@of_the_hosts_programs
def test_the_names_of_the_users(box: Callable[..., Sandbox]) -> None:
    assert box().run("id -un; echo $USER $HOME; touch ~/x").text == (
        "sandbox\nsandbox /home/sandbox\n"
    )
    root = box(user="root")
    assert root.run("id -un; touch ~/x /tmp/x && echo wrote").text == "root\nwrote\n"
    # Root inside is nobody outside.
    assert root.run("mount -t tmpfs none /tmp").exit_code != 0


@of_namespaces
def test_a_mount_of_one_sandbox_is_not_seen_by_another(
    box: Callable[..., Sandbox], project: Path
) -> None:
    first = box(mounts=[f"{project}:/data", f"{project}:/tmp/data", f"{project}:/workspace/in"])
    second = box()
    seen = "ls -d /data /tmp/data /workspace/in 2>/dev/null"
    assert first.run(seen).text == "/data\n/tmp/data\n/workspace/in\n"
    assert second.run(seen).text == ""


@pytest.mark.parametrize("kind", ["linux", "linux over HTTP"], indirect=True)
@pytest.mark.parametrize(
    "target",
    ["/mnt/x", "/home/me/project", "/var/x", "/var/run/x", "/run/x", "/etc/new", "/etc/ssl/new"],
)
def test_a_folder_can_be_put_anywhere_beside_the_programs(
    box: Callable[..., Sandbox], project: Path, target: str
) -> None:
    sandbox = box(mounts=[f"{project}:{target}", f"{project}/sub:/mnt/own:rw"])
    # The host has links, and an image may have none: of ours none has /var/run.
    place = target if IMAGE else os.path.realpath(target)
    assert sandbox.run("pwd -P; cat file", cwd=target).text == f"{place}\nhost\n"
    assert sandbox.run(f"touch {target}/x").exit_code != 0
    assert sandbox.run("echo in > /mnt/own/made", check=True)
    assert (project / "sub" / "made").read_text() == "in\n"
    # What was there is there still, and as little to be written to.
    there = "" if IMAGE else "/etc/ssl/certs/ /usr/bin/env"
    assert sandbox.run(f"cat /etc/passwd; ls / {there}", check=True).stdout
    for folder in ("/", "/etc", "/mnt", *(() if IMAGE else ("/etc/ssl",))):
        assert sandbox.run(f"touch {folder}/x").exit_code != 0, folder


@of_namespaces
def test_a_file_can_take_the_place_of_one_in_etc(
    box: Callable[..., Sandbox], project: Path
) -> None:
    sandbox = box(mounts=[f"{project}/file:/etc/hosts", f"{project}/file:/etc/new.conf"])
    assert sandbox.run("cat /etc/hosts /etc/new.conf").text == "host\nhost\n"
    assert "localhost" in box().run("cat /etc/hosts").text


@of_namespaces
@pytest.mark.parametrize("target", ["/", "/etc", "/usr/local/x", "/lib/x", "/proc/x", "/dev/x"])
def test_the_places_of_the_wall_itself_are_refused(
    box: Callable[..., Sandbox], project: Path, target: str
) -> None:
    with pytest.raises(InvalidInput, match=f"{target}' belongs to the wall"):
        box(mounts=[f"{project}:{target}"])


@of_namespaces
@of_the_hosts_programs
def test_the_root_is_read_only_and_bare(box: Callable[..., Sandbox]) -> None:
    sandbox = box()
    for path in ("/", "/usr", "/etc", "/dev", "/mnt", "/.agentd", "/.agentd/var", "/var/lib/dpkg"):
        assert sandbox.run(f"touch {path}/x").exit_code != 0, path
    for path in (
        "/root",
        "/home/sandbox/.ssh",
        "/etc/shadow",
        "/boot",
        "/var/lib/agentd",
        "/sys/kernel",
    ):
        assert sandbox.run(f"test -e {path}").exit_code != 0, path
    assert int(sandbox.run("ls /proc | grep -c '^[0-9]'").text) < 8


@of_namespaces
@of_the_hosts_programs
def test_what_is_only_to_be_read_is_not_truncated(
    box: Callable[..., Sandbox], project: Path
) -> None:
    """Landlock lets that pass where it lets files be read: their mounts, read-only, do not."""
    (project / "had").write_text("had")
    (project / "had").chmod(0o666)
    sandbox = box(user="root", mounts=[f"{project}:/data/in"])
    for path in ("/data/in/had", "/etc/passwd", "/usr/bin/env"):
        ended = sandbox.run(["python3", "-c", f"import os; os.truncate({path!r}, 0)"])
        refused = "Read-only file system" if path.endswith("had") else "Error"
        assert refused in ended.stderr_text, path
    assert (project / "had").read_text() == "had"


@of_namespaces
@of_the_hosts_programs
def test_var_and_run_can_be_written_to_within_the_disk_limit(box: Callable[..., Sandbox]) -> None:
    sandbox = box(disk="4M")
    places = ("/run", "/run/lock", "/var/run", *(f"/var/{name}" for name in VAR))
    for place in places:
        assert sandbox.run(f"mkdir -p {place}/x && echo in > {place}/x/y", check=True), place
    filled = sandbox.run("head -c 5M /dev/zero > /var/log/x/large")
    assert b"No space left" in filled.stderr
    assert sandbox.run("echo more > /tmp/more").exit_code != 0
    assert sandbox.run("rm /var/log/x/large; echo more > /tmp/more", check=True)
    # Nothing of it is the next one's.
    assert box().run("find /run /var -name x").text == ""


@of_namespaces
@of_the_hosts_programs
def test_what_programs_expect_in_run_is_there(box: Callable[..., Sandbox]) -> None:
    """By what their packages have made at each boot."""
    listed = [path.read_text() for path in Path("/usr/lib/tmpfiles.d").glob("*.conf")]
    wanted = [name for name in ("/run/screen", "/run/postgresql") if name in "".join(listed)]
    if not wanted:
        pytest.skip("neither screen nor PostgreSQL is installed")
    for path in wanted:
        assert box().run(f"touch {path}/.lock", check=True)


def _needs_a_group(box: Callable[..., Sandbox]) -> None:
    memory = box().enforcement["memory"]
    if not memory.enforced:
        pytest.skip(f"no group: {memory.detail}")


@of_namespaces
def test_its_limits_can_be_read_and_not_changed(box: Callable[..., Sandbox]) -> None:
    _needs_a_group(box)
    sandbox = box(memory="256M", cpus=1)
    place = "/sys/fs/cgroup"
    names = f"{place}/memory.max {place}/memory/memory.limit_in_bytes"
    assert sandbox.run(f"cat {names} 2>/dev/null").text == f"{256 << 20}\n"
    assert sandbox.run(f"for f in {names}; do echo 1 > $f && exit 1; done; true", check=True)
    # It is what nproc asks, if it is not busybox's.
    asked = "echo $OMP_NUM_THREADS" if IMAGE in SMALL else "nproc"
    assert sandbox.run(asked, check=True).text == "1\n"
    assert box(memory="256M", cpus=1, env={"OMP_NUM_THREADS": "2"}).run(asked).text == "2\n"


_JAVA = "class H { public static void main(String[] a) { %s } }"
_HEAP = "System.out.println(Runtime.getRuntime().maxMemory() >> 20);"


@of_namespaces
@of_the_hosts_programs
@pytest.mark.parametrize(
    ("program", "script"),
    [
        ("java", f"echo '{_JAVA % _HEAP}' > H.java; java H.java"),
        ("node", "node -p 'Math.round(process.constrainedMemory() / (1 << 20))'"),
    ],
)
def test_programs_size_themselves_by_the_memory_limit(
    box: Callable[..., Sandbox], program: str, script: str
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    _needs_a_group(box)
    sandbox = box(memory="512M")
    assert 64 <= int(sandbox.run(script, check=True, timeout=250).text) <= 512


@of_namespaces
def test_hostname_and_loopback_are_its_own(box: Callable[..., Sandbox]) -> None:
    sandbox = box()
    assert sandbox.run(["uname", "-n"]).text == "sandbox\n"
    interfaces = sandbox.run("tail -n +3 /proc/net/dev | cut -d: -f1").text.split()
    assert interfaces == ["lo"]
    needs(sandbox, "python3")
    assert sandbox.run(["python3", "-c", OWN_ADDRESS], check=True).text == "127.0.1.1\n"


@of_namespaces
def test_its_own_name_has_an_address_with_the_hosts_network(box: Callable[..., Sandbox]) -> None:
    sandbox = box(net="host")
    needs(sandbox, "python3")
    assert sandbox.run(["python3", "-c", OWN_ADDRESS], check=True).text == "127.0.1.1\n"


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
    with pytest.raises(Refused, match="cannot put /usr/lib at /data") as caught:
        make(mounts=["/usr/lib:/data"])
    assert "/usr/lib:/usr/lib" not in caught.value.remediation  # which is the wall's
    with pytest.raises(Refused, match=f"cannot put {project}/sub at /workspace/sub"):
        make(workspace=project, mounts=[f"{project}/sub:/workspace/sub"])
    (project / "other").symlink_to("sub")
    for target in (f"{project}/sub", f"{project}/other"):
        sandbox = make(mounts=[f"{project}/other:{target}"])
        assert sandbox.run(["cat", f"{target}/deep"]).text == "deep\n"
