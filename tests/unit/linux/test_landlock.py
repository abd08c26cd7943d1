"""Each right is attacked in a child process, with the ruleset and, as a counter-test, without."""

import errno
import os
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.recording import RecordingKernel

from agentd.linux import abi, landlock

ABI = landlock.abi_version()
pytestmark = pytest.mark.skipif(ABI < 1, reason="the kernel has no Landlock")

# The child restricts itself to what ``rules`` allow, then acts and prints what came of it.
_CHILD = """
import errno, os, signal, socket, subprocess, sys
from agentd.linux import landlock
from agentd.linux.kernel import KERNEL
from agentd.linux.landlock import ALL, EXEC, IOCTL_DEV, READ, WRITE
box, restricted = sys.argv[1], sys.argv[2] == "True"
if restricted:
    with landlock.Ruleset(scopes={scopes}) as ruleset:
{rules}
        KERNEL.prctl(38, 1)
        ruleset.restrict()
try:
{act}
    print("done")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def attempt(box: Path, act: str, rules: str = "pass", *, restricted: bool, scopes: bool = True):
    code = _CHILD.format(
        rules=textwrap.indent(textwrap.dedent(rules), " " * 8),
        act=textwrap.indent(textwrap.dedent(act), " " * 4),
        scopes=scopes,
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(box), str(restricted)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PYTHONPATH": str(Path(landlock.__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


READ_ONLY = "ruleset.allow_path('/', READ | EXEC)"
FILE_ATTACKS = {
    "write": ("open(box + '/file', 'r+b').close()", READ_ONLY, "EACCES"),
    "create": ("open(box + '/new', 'xb').close()", READ_ONLY, "EACCES"),
    "remove": ("os.unlink(box + '/file')", READ_ONLY, "EACCES"),
    "mkdir": ("os.mkdir(box + '/d')", READ_ONLY, "EACCES"),
    "symlink": ("os.symlink('x', box + '/s')", READ_ONLY, "EACCES"),
    "read": ("open(box + '/file').close()", "ruleset.allow_path('/usr', READ)", "EACCES"),
    "list": ("os.listdir(box)", "ruleset.allow_path('/usr', READ)", "EACCES"),
    "exec": (
        "subprocess.run(['/bin/true'], check=True)",
        "ruleset.allow_path('/', READ | WRITE)",
        "EACCES",
    ),
}


@pytest.fixture
def box(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("secret")
    return tmp_path


@pytest.mark.parametrize("name", FILE_ATTACKS)
def test_an_act_that_no_rule_allows_is_denied(box: Path, name: str) -> None:
    act, rules, denied = FILE_ATTACKS[name]
    assert attempt(box, act, rules, restricted=True) == denied


@pytest.mark.parametrize("name", FILE_ATTACKS)
def test_without_the_ruleset_the_act_succeeds(box: Path, name: str) -> None:
    act, rules, _ = FILE_ATTACKS[name]
    assert attempt(box, act, rules, restricted=False) == "done"


@pytest.mark.parametrize("name", FILE_ATTACKS)
def test_a_rule_allows_the_act(box: Path, name: str) -> None:
    rules = "ruleset.allow_path('/', READ | EXEC | WRITE)"
    assert attempt(box, FILE_ATTACKS[name][0], rules, restricted=True) == "done"


@pytest.mark.skipif(os.geteuid() != 0, reason="mknod needs uid 0")
@pytest.mark.parametrize("restricted", [True, False])
def test_write_does_not_give_device_nodes(box: Path, restricted: bool) -> None:
    act = "os.mknod(box + '/null', 0o20600, os.makedev(1, 3))"
    rules = "ruleset.allow_path('/', READ | EXEC | WRITE)"
    assert attempt(box, act, rules, restricted=restricted) == ("EACCES" if restricted else "done")


@pytest.mark.skipif(ABI < 3, reason="truncate needs Landlock ABI 3")
@pytest.mark.parametrize("restricted", [True, False])
def test_truncate_is_denied(box: Path, restricted: bool) -> None:
    outcome = attempt(box, "os.truncate(box + '/file', 0)", READ_ONLY, restricted=restricted)
    assert outcome == ("EACCES" if restricted else "done")


@pytest.mark.skipif(ABI < 5, reason="ioctl on devices needs Landlock ABI 5")
@pytest.mark.parametrize(("extra", "denied"), [("0", True), ("IOCTL_DEV", False)])
def test_a_device_ioctl_is_denied_unless_allowed(box: Path, extra: str, denied: bool) -> None:
    act = """
    import fcntl
    with open('/dev/ptmx', 'r+b', buffering=0) as terminal:
        fcntl.ioctl(terminal, 0x80045430, b'1234')
    """
    rules = f"ruleset.allow_path('/dev', READ | WRITE | {extra}); {READ_ONLY}"
    assert attempt(box, act, rules, restricted=True) == ("EACCES" if denied else "done")
    assert attempt(box, act, rules, restricted=False) == "done"


@pytest.mark.skipif(ABI < 4, reason="TCP rules need Landlock ABI 4")
@pytest.mark.parametrize(("restricted", "outcome"), [(True, "EACCES"), (False, "done")])
def test_tcp_connect(box: Path, restricted: bool, outcome: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        act = f"socket.create_connection(('127.0.0.1', {port}), 5).close()"
        assert attempt(box, act, READ_ONLY, restricted=restricted) == outcome


@pytest.mark.skipif(ABI < 4, reason="TCP rules need Landlock ABI 4")
@pytest.mark.parametrize(("restricted", "outcome"), [(True, "EACCES"), (False, "done")])
def test_tcp_bind(box: Path, restricted: bool, outcome: str) -> None:
    act = "socket.create_server(('127.0.0.1', 0)).close()"
    assert attempt(box, act, READ_ONLY, restricted=restricted) == outcome


@pytest.mark.skipif(ABI < 6, reason="scopes need Landlock ABI 6")
@pytest.mark.parametrize(("scopes", "outcome"), [(True, "EPERM"), (False, "done")])
def test_an_abstract_socket_outside_is_out_of_reach(box: Path, scopes: bool, outcome: str) -> None:
    name = f"agentd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind("\0" + name)
        server.listen(1)
        act = f"""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect('\\0{name}')
        """
        assert attempt(box, act, READ_ONLY, restricted=True, scopes=scopes) == outcome


@pytest.mark.skipif(ABI < 6, reason="scopes need Landlock ABI 6")
@pytest.mark.parametrize(("scopes", "outcome"), [(True, "EPERM"), (False, "done")])
def test_a_process_outside_cannot_be_signalled(box: Path, scopes: bool, outcome: str) -> None:
    act = f"os.kill({os.getpid()}, 0)"
    assert attempt(box, act, READ_ONLY, restricted=True, scopes=scopes) == outcome


def test_descendants_are_bound_too(box: Path) -> None:
    act = """
    shell = ['/bin/sh', '-c', 'echo x > "$0/file"', box]
    assert subprocess.run(shell, stderr=subprocess.DEVNULL).returncode != 0
    """
    rules = READ_ONLY + "; ruleset.allow_path('/dev/null', WRITE)"
    assert attempt(box, act, rules, restricted=True) == "done"
    assert (box / "file").read_text() == "secret"


def test_a_symbolic_link_allows_its_target_only(box: Path) -> None:
    (box / "real").mkdir()
    (box / "link").symlink_to("real")
    rules = READ_ONLY + "; ruleset.allow_path(box + '/link', WRITE)"
    assert attempt(box, "open(box + '/real/a', 'x').close()", rules, restricted=True) == "done"
    assert attempt(box, "open(box + '/b', 'x').close()", rules, restricted=True) == "EACCES"


def test_restrict_without_no_new_privs_needs_a_privilege(box: Path) -> None:
    act = """
    from agentd.linux import caps
    caps.KERNEL.capset(0)
    with landlock.Ruleset() as ruleset:
        ruleset.restrict()
    """
    assert attempt(box, act, restricted=False) == "EPERM"


# --- what is asked of the kernel, by ABI ---------------------------------------------------------


def scripted(version: int) -> tuple[RecordingKernel, int]:
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    return RecordingKernel({"landlock_create_ruleset": [version, fd]}), fd


@pytest.mark.parametrize(
    ("version", "size", "fs"),
    [
        (1, 8, 0x1FFF),
        (2, 8, 0x3FFF),
        (3, 8, 0x7FFF),
        (4, 16, 0x7FFF),
        (5, 16, 0xFFFF),
        (6, 24, 0xFFFF),
        (7, 24, 0xFFFF),
        (99, 24, 0xFFFF),
    ],
)
def test_the_struct_and_the_rights_follow_the_abi(version: int, size: int, fs: int) -> None:
    kernel, _ = scripted(version)
    with landlock.Ruleset(kernel=kernel) as ruleset:
        _, (attr, length, flags) = kernel.calls[1]
        assert isinstance(attr, bytes)
        assert (len(attr), length, flags) == (size, size, 0)
        words = struct.unpack(f"={size // 8}Q", attr)
        assert words == (fs, 3, 3)[: len(words)]
        assert ("truncate" in ruleset.handled.fs) == (version >= 3)
        assert bool(ruleset.handled.net) == (version >= 4)
        assert bool(ruleset.handled.scopes) == (version >= 6)


@pytest.mark.parametrize(("version", "flags"), [(6, 0), (7, 5)])
def test_restrict_keeps_the_audit_log_quiet(version: int, flags: int) -> None:
    kernel, fd = scripted(version)
    with landlock.Ruleset(kernel=kernel) as ruleset:
        assert ruleset.restrict() is ruleset.handled
    assert kernel.calls[-1] == ("landlock_restrict_self", (fd, flags))


def test_directory_rights_are_left_out_for_a_file(box: Path) -> None:
    kernel, fd = scripted(7)
    with landlock.Ruleset(kernel=kernel) as ruleset:
        ruleset.allow_path(box / "file", landlock.READ | landlock.WRITE)
        ruleset.allow_path(box / "file", 1 << 3)
    name, args = kernel.calls[2]
    assert (name, args[:2]) == ("landlock_add_rule", (fd, abi.LANDLOCK_RULE_PATH_BENEATH))
    assert isinstance(args[2], bytes)
    assert struct.unpack("=Qi", args[2])[0] == 0b100_0000_0000_0110
    assert len(kernel.calls) == 3


def test_a_right_the_abi_does_not_know_is_not_in_a_rule(box: Path) -> None:
    kernel, _ = scripted(3)
    with landlock.Ruleset(kernel=kernel) as ruleset:
        ruleset.allow_path(box, landlock.IOCTL_DEV)
    assert kernel.names() == ["landlock_create_ruleset"] * 2


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES])
def test_no_landlock_is_version_0_and_no_ruleset(code: int) -> None:
    kernel = RecordingKernel({"landlock_create_ruleset": [OSError(code, "no")] * 2})
    assert landlock.abi_version(kernel) == 0
    with pytest.raises(OSError, match="landlock is not available"):
        landlock.Ruleset(kernel=kernel)


def test_close_is_idempotent_and_leaves_nothing_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    ruleset = landlock.Ruleset()
    ruleset.allow_path("/usr", landlock.READ)
    ruleset.close()
    ruleset.close()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("version", "net", "words"),
    [
        (1, True, "files"),
        (3, True, "files"),
        (4, True, "files, TCP"),
        (4, False, "files"),
        (6, False, "files, abstract sockets, signals"),
        (7, True, "files, TCP, abstract sockets, signals"),
    ],
)
def test_what_an_abi_covers_is_said_and_no_more(version: int, net: bool, words: str) -> None:
    assert landlock.covers(version, net=net) == words
