"""Snapshots, pauses and progress, as ``agentd run`` and ``agentd snapshot`` have them."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from agentd.client.cli import run, snapshot
from agentd.client.cli.progress import Display
from agentd.model.errors import InvalidInput, NotFound, Refused, SandboxError


@pytest.fixture
def kept(machines, tmp_path, capfd):
    path = str(tmp_path / "kept")
    assert run.main(["--save-snapshot", path, "--", "sh", "-c", "echo kept > a"]) == 0
    assert f" of the sandbox is in {path}\n" in capfd.readouterr().err
    return path


def test_a_saved_sandbox_starts_where_it_stood(kept, machines, capfd):
    for _ in range(2):
        assert run.main(["--snapshot", kept, "--", "sh", "-c", "cat a; echo x > a"]) == 0
        assert capfd.readouterr().out == "kept\n"
    assert all(wall.process.returncode is not None for wall in machines.walls)


def test_a_failed_command_saves_nothing(machines, tmp_path):
    assert run.main(["--save-snapshot", str(tmp_path / "kept"), "--", "false"]) == 1
    assert not (tmp_path / "kept").exists()


def test_the_object_tells_where_it_is(machines, tmp_path, capfd):
    path = str(tmp_path / "kept")
    assert run.main(["--json", "--save-snapshot", path, "--", "true"]) == 0
    out, err = capfd.readouterr()
    saved = json.loads(out)["snapshot"]
    assert (saved["path"], saved["fidelity"]) == (path, "files")
    assert err == ""


def test_a_path_that_is_taken_runs_nothing(kept, machines):
    before = len(machines.walls)
    with pytest.raises(InvalidInput, match="exists already"):
        run.main(["--save-snapshot", kept, "--", "true"])
    assert len(machines.walls) == before


@pytest.mark.parametrize("parent", ["none", "file"])
def test_a_path_that_cannot_be_written_runs_nothing(parent, machines, tmp_path):
    """The set-up may take long: it is not run to be lost."""
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=f"no snapshot can be written to .*/{parent}/kept"):
        run.main(["--save-snapshot", str(tmp_path / parent / "kept"), "--", "true"])
    assert machines.walls == []


def test_a_wall_that_cannot_runs_nothing(backend, tmp_path):
    flag = tmp_path / "ran"
    with pytest.raises(Refused, match="backend linux cannot snapshot a sandbox"):
        run.main(["--save-snapshot", str(tmp_path / "kept"), "--", "touch", str(flag)])
    assert not flag.exists()


def test_limits_of_a_snapshot_cannot_be_given(kept):
    with pytest.raises(InvalidInput, match="has the snapshot's memory"):
        run.main(["--snapshot", kept, "--memory", "1G", "--", "true"])


def test_inspect_and_remove(kept, capfd):
    assert snapshot.main(["inspect", kept]) == 0
    out = capfd.readouterr().out
    assert "backend  qemu (microvm)\nkeeps    files\nimage    default\n" in out
    assert snapshot.main(["inspect", "--json", kept]) == 0
    assert json.loads(capfd.readouterr().out)["files"][0]["path"] == "files/a"
    with open(f"{kept}/state/files/a", "w") as file:
        file.write("other")
    with pytest.raises(SandboxError, match="is damaged"):
        snapshot.main(["inspect", kept])
    assert snapshot.main(["rm", kept]) == 0
    assert not os.path.exists(kept)


def test_of_several_names_it_is_told_that_one_is_taken():
    with pytest.raises(InvalidInput, match="rm takes one WHAT, and only export a FILE"):
        snapshot.main(["rm", "a", "b"])


@pytest.mark.parametrize("words", [[], ["rm"], ["look", "x"]])
def test_wrong_words(words):
    with pytest.raises(InvalidInput):
        snapshot.main(words)


def test_rm_deletes_snapshots_only(tmp_path):
    with pytest.raises(NotFound, match="no snapshot at"):
        snapshot.main(["rm", str(tmp_path)])
    assert tmp_path.exists()


def test_an_empty_name_is_not_the_folder_that_one_stands_in(kept, monkeypatch):
    monkeypatch.chdir(kept)
    with pytest.raises(InvalidInput, match="it is empty, and names nothing"):
        snapshot.main(["rm", ""])
    assert os.listdir(kept)


def test_a_stop_pauses_the_sandbox_and_us(machines, tmp_path, monkeypatch):
    flag = tmp_path / "started"
    states = []

    def stopped():
        stat = Path(f"/proc/{machines.walls[0].process.pid}/stat")
        # A SIGSTOP takes hold when its process is scheduled next.
        while (state := stat.read_text().rpartition(")")[2].split()[0]) != "T":
            pass
        states.append(state)
        (tmp_path / "go").touch()

    def send():
        # Its command begins before stops are taken; the kernel may drop one that comes till then.
        while not flag.exists() or signal.getsignal(signal.SIGTSTP) is before:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTSTP)

    # SIGSTOP would stop the tests.
    monkeypatch.setattr("agentd.client.cli.interrupts.Interrupts.stop", staticmethod(stopped))
    before = signal.getsignal(signal.SIGTSTP)
    sender = threading.Thread(target=send)
    sender.start()
    script = f"touch {flag}; while ! test -e {tmp_path}/go; do sleep .01; done; exit 3"
    assert run.main(["--", "sh", "-c", script]) == 3
    sender.join()
    assert states == ["T"]
    assert signal.getsignal(signal.SIGTSTP) is before


def test_a_stop_is_the_kernels_where_the_wall_cannot(backend, monkeypatch):
    taken = []
    monkeypatch.setattr("agentd.client.cli.interrupts.Interrupts.take_stops", taken.append)
    assert run.main(["--", "true"]) == 0
    assert taken == []


@pytest.mark.parametrize(("options", "said"), [([], "agentd run: booting\n"), (["--json"], "")])
def test_progress_is_a_line_where_there_is_no_terminal(machines, capfd, options, said):
    assert run.main([*options, "--", "true"]) == 0
    assert capfd.readouterr().err == said


def test_an_end_is_let_in_while_something_is_made(machines, monkeypatch):
    report = machines.launch

    def launch(plan):
        os.kill(os.getpid(), signal.SIGTERM)
        return report(plan)

    monkeypatch.setattr(machines, "launch", launch)
    assert run.main(["--", "true"]) == 143
    assert machines.walls == []


def test_one_line_a_stage(capfd):
    with Display() as display:
        for stage, fraction in (("a", None), ("a", 0.5), ("b", 0.1)):
            display(stage, fraction)
    assert capfd.readouterr().err == "agentd run: a\nagentd run: b\n"


def test_a_bar_on_a_terminal_goes_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    master, slave = os.openpty()
    saved = os.dup(2)
    os.dup2(slave, 2)
    try:
        with open(2, "w", closefd=False) as stderr:
            monkeypatch.setattr("sys.stderr", stderr)
            with Display() as display:
                display("unpacking [the] kernel", 0.25)
                display("booting", None)
                display("booting", 7.0)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(slave)
    shown = b""
    os.set_blocking(master, False)
    try:
        while piece := os.read(master, 65536):
            shown += piece
    except OSError:  # EIO: the other end is closed
        pass
    os.close(master)
    assert b"unpacking [the] kernel" in shown and b" 25%" in shown and b"100%" in shown
    assert shown.index(b"\x1b[?25l") < shown.rindex(b"\x1b[?25h")
    assert shown.endswith(b"\x1b[2K")


def test_a_silent_display_still_lets_the_end_in():
    def check():
        raise KeyboardInterrupt

    with Display(silent=True, check=check) as display, pytest.raises(KeyboardInterrupt):
        display("booting")
