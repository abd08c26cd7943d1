"""The checks that every test runs under, themselves tested: each leak must fail its test."""

import os
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agentd.linux import cgroup
from agentd.linux.cgroup import Hierarchy

CONFTEST = Path(__file__).resolve().parent.parent / "conftest.py"
LEAKS = {
    "descriptor": "os.open('/dev/null', os.O_RDONLY)",
    "child process": "os.posix_spawn('/bin/sleep', ['sleep', '6'], {})",
    "thread": "threading.Thread(target=time.sleep, args=(6,)).start()",
}
# They need a privilege to make.
ROOTS_LEAKS = {
    "mount": "subprocess.run(['mount', '-t', 'tmpfs', 'left', tmp_path], check=True)",
    "cgroup": "cgroup.detect().create(f'sbx-{os.getpid()}-left')",
}
IMPORTS = "import os, pytest, subprocess, threading, time\nfrom agentd.linux import cgroup\n"
SECONDS = 250  # for what hangs


def start_pytest(folder: Path, body: str) -> "subprocess.Popen[str]":
    text = CONFTEST.read_text().replace("GRACE = 20.0 ", "GRACE = 1.0 ")
    assert "GRACE = 1.0" in text
    (folder / "conftest.py").write_text(text)
    (folder / "test_it.py").write_text(f"{IMPORTS}\n{body}\n")
    options = ("-ra", "-p", "no:cacheprovider", "--rootdir", folder, folder)
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        # Plugins cost more than the tests; where CI is set, pytest's summary has it all once more.
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CI": ""},
    )


def run_pytest(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    with start_pytest(folder, body) as process:
        out, _ = process.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess([process.pid], process.returncode, out)


@pytest.fixture
def groups() -> Hierarchy:
    found = cgroup.detect()
    if found is None or found.blockers():
        pytest.skip("no group can be made here")
    return found


@pytest.mark.parametrize("leaks", [LEAKS, pytest.param(ROOTS_LEAKS, marks=pytest.mark.root)])
def test_a_leak_fails_its_test(tmp_path: Path, groups: Hierarchy, leaks: dict[str, str]) -> None:
    tests = [f"def test_{n}(tmp_path):\n    {leak}\n" for n, leak in enumerate(leaks.values())]
    done = run_pytest(tmp_path, "\n".join(tests))
    if leaks is ROOTS_LEAKS:
        groups.reap(f"sbx-{done.args[0]}-left")
    assert done.returncode == 1
    assert done.stdout.count("left behind:") == len(leaks)
    for kind in leaks:
        assert f"  {kind}: " in done.stdout


def test_what_counts_is_as_it_was_though_a_test_patched_it(tmp_path: Path) -> None:
    body = "def test_patches(monkeypatch):\n    monkeypatch.setattr(os, 'listdir', None)\n"
    done = run_pytest(tmp_path, body)
    assert done.returncode == 0, done.stdout


@pytest.mark.root
def test_what_another_run_leaves_behind_fails_none(tmp_path: Path, groups: Hierarchy) -> None:
    """Its mounts and its group stay, also where they were renamed and it was killed."""
    beside, up, on = tmp_path / "beside", tmp_path / "up", tmp_path / "on"
    early = tmp_path / "early/mount"
    early.mkdir(parents=True)
    for fifo in (up, on):
        os.mkfifo(fifo)
    body = "@pytest.mark.parametrize('n', [1, 2])\ndef test_waits(n):\n"
    body += f"    open({str(up)!r}, 'w').close()\n    open({str(on)!r}).close()"
    beside.mkdir()
    another = subprocess.Popen(["sleep", "1000"])
    name = f"sbx-{another.pid}-another"
    (tmp_path / "inner").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "another", early], check=True)
    with start_pytest(tmp_path / "inner", body) as process, another:
        try:
            up.read_bytes()
            (tmp_path / "early").rename(tmp_path / "late")
            subprocess.run(["mount", "-t", "tmpfs", "another", beside], check=True)
            groups.create(name)
            on.write_bytes(b"")
            up.read_bytes()
            another.kill()
            another.wait()
            on.write_bytes(b"")
            out, _ = process.communicate(timeout=SECONDS)
        finally:
            another.kill()
            groups.reap(name)
            for mount in (beside, tmp_path / "late/mount"):
                subprocess.run(["umount", mount], check=False)
    assert (process.returncode, "2 passed" in out) == (0, True), out


def test_a_clean_test_passes(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "def test_clean():\n    os.close(os.open('/dev/null', 0))")
    assert done.returncode == 0, done.stdout


def test_what_stands_ready_where_a_wider_fixture_had_a_sandbox_is_no_leak(tmp_path: Path) -> None:
    """The pipeline of a process ends with the test, though it did not begin with it."""
    body = "from agentd import Sandbox\n@pytest.fixture(scope='module', autouse=True)\n"
    body += "def wider():\n    Sandbox.create(embedded=True).close()\n"
    body += "def test_it():\n    Sandbox.create(embedded=True, net=[]).close()\n"
    done = run_pytest(tmp_path, body)
    assert done.returncode == 0, done.stdout


@pytest.mark.root
def test_no_test_meets_a_daemon_at_its_usual_place(tmp_path: Path) -> None:
    """The one here is seen by no test of the run below, nor are its state and its images."""
    state, images = Path("/var/lib/agentd/decoy"), Path("/var/cache/agentd/oci/decoy")
    body = "import sys\ndef test_it():\n"
    body += "    words = [sys.executable, '-m', 'agentd', 'ls']\n"
    body += "    done = subprocess.run(words, capture_output=True, text=True, env={})\n"
    body += "    assert 'no daemon at /run/agentd/agentd.sock' in done.stderr, done.stderr\n"
    body += f"    assert not os.path.exists({str(state)!r})\n"
    body += f"    assert not os.path.exists({str(images)!r})\n"
    decoy, folder = "/run/agentd/agentd.sock", tmp_path / "inner"
    folder.mkdir()
    with socketserver.ThreadingUnixStreamServer(decoy, socketserver.BaseRequestHandler) as daemon:
        serving = threading.Thread(target=daemon.serve_forever)  # it hangs up on who comes
        serving.start()
        for path in (state, images):
            path.touch()
        try:
            done = run_pytest(folder, body)
        finally:
            daemon.shutdown()
            serving.join()
            for path in (decoy, state, images):
                os.unlink(path)
    assert done.returncode == 0, done.stdout


def test_what_is_absent_is_skipped_by_name(tmp_path: Path) -> None:
    body = "@pytest.mark.needs('no-such-tool')\ndef test_x():\n    raise AssertionError"
    done = run_pytest(tmp_path, body)
    assert done.returncode == 0
    assert "no-such-tool is not installed" in done.stdout


@pytest.mark.root
def test_an_ordinary_user_has_no_privileges(as_user) -> None:  # type: ignore[no-untyped-def]
    assert as_user.run(["id", "-u"]).stdout == b"65534\n"
    assert as_user.call(os.getresuid) == (65534, 65534, 65534)
    with pytest.raises(PermissionError):
        as_user.call(lambda: os.stat("/root/.profile"))


@pytest.mark.root
def test_an_ordinary_user_can_import_the_package(as_user) -> None:  # type: ignore[no-untyped-def]
    done = as_user.python("-c", "import agentd, msgspec, rich; print(agentd.__name__)")
    assert (done.stdout, done.stderr) == (b"agentd\n", b"")
