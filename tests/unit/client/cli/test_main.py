import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from agentd._version import __version__
from agentd.client.cli import main as cli
from agentd.model.errors import InvalidInput, SandboxError


def test_the_version_is_told_without_the_heavy_imports():
    code = (
        "import sys; from agentd.client.cli.main import main; main(['--version'])\n"
        "print([m for m in ('argparse', 'msgspec', 'rich', 'asyncio', 'typing') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True)
    assert out.stdout.decode() == f"agentd {__version__}\n[]\n"


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_help(words, code, capsys):
    assert cli.main(words) == code
    out = capsys.readouterr().out
    assert "examples:" in out and "doctor" in out


def test_help_is_grouped_and_names_every_command(capsys):
    cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for heading, commands in cli.GROUPS.items():
        at = lines.index(f"{heading}:")
        shown = [line.split()[0] for line in lines[at + 1 : at + 1 + len(commands)]]
        assert shown == list(commands)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InvalidInput("bad", remediation="mend it"), 2, "agentd run: bad (mend it)\n"),
        (InvalidInput("a\nb"), 2, "agentd run: a b\n"),
        (SandboxError("broke", cause="why"), 125, "agentd run: broke: why\n"),
        (
            ValueError("odd"),
            125,
            "agentd run: internal error: ValueError: odd (AGENTD_DEBUG=1 shows where)\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_failure_is_one_line_and_a_code(monkeypatch, capsys, error, code, line):
    def fail(words):
        raise error

    monkeypatch.delenv("AGENTD_DEBUG", raising=False)
    monkeypatch.setattr("agentd.client.cli.run.main", fail)
    assert cli.main(["run"]) == code
    assert capsys.readouterr().err == line


def test_debug_shows_where(monkeypatch):
    def fail(words):
        raise ValueError("odd")

    monkeypatch.setenv("AGENTD_DEBUG", "1")
    monkeypatch.setattr("agentd.client.cli.run.main", fail)
    with pytest.raises(ValueError, match="odd"):
        cli.main(["run"])


def test_guest_writes_a_file_that_runs(tmp_path, capsys):
    path = tmp_path / "agent.pyz"
    assert cli.main(["guest", "--out", str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path} sha256:")
    assert os.access(path, os.X_OK)


def test_guest_says_why_it_cannot_write(tmp_path, capsys):
    path = str(tmp_path / "no" / "agent.pyz")
    assert cli.main(["guest", "--out", path]) == 2
    assert "No such file or directory (give a writable path)" in capsys.readouterr().err


def test_guest_writes_behind_links(tmp_path, capsys):
    (tmp_path / "link").symlink_to("agent.pyz")
    assert cli.main(["guest", "--out", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink() and os.access(tmp_path / "agent.pyz", os.X_OK)


def test_guest_writes_to_standard_output(tmp_path, capfdbinary, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["guest", "--out", "-"]) == 0
    told = capfdbinary.readouterr()
    assert cli.main(["guest", "--out", "agent.pyz"]) == 0
    assert (told.out, told.err) == ((tmp_path / "agent.pyz").read_bytes(), b"")
    assert os.listdir() == ["agent.pyz"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["guest", "--out", "-", "--json"], "goes to standard output (leave out --json)"),
        (["guest", "--bundle", "-"], "- has none (name a file, as guest.tar.gz)"),
        (["sign", "--new-key", "-"], "two files, and - is none (name that of the private one"),
    ],
)
def test_what_cannot_be_written_to_standard_output_makes_no_file_of_its_name(
    words, why, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    assert why in capfd.readouterr().err
    assert os.listdir() == []


def test_guest_puts_itself_in_the_place_of_no_device(tmp_path, capsys):
    """Nor of a fifo, which anybody can make: root's /dev/null was gone, and /dev/stdout."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for name in ("fifo", "link"):
        assert cli.main(["guest", "--out", str(tmp_path / name)]) == 2
        assert "it is no file (give a writable path)" in capsys.readouterr().err
    assert (tmp_path / "fifo").is_fifo() and (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["fifo", "link"]


def test_doctor_tells_the_same_to_people_and_programs(monkeypatch, capfdbinary):
    import msgspec

    from agentd.client import embedded
    from agentd.daemon.doctor import CheckedPart
    from agentd.daemon.outlook import Outlook
    from agentd.model.availability import Availability, Blocker

    blocker = Blocker("user namespaces are switched off", "sysctl -w a=1\nand more")
    findings = [
        SimpleNamespace(
            name="linux",
            level="namespace",
            requirements=("userns",),
            availability=Availability(False, (blocker,)),
            images=False,
            abilities=("changes", "snapshot"),
            fidelity="files",
        ),
        SimpleNamespace(
            name="host",
            level="none",
            requirements=(),
            availability=Availability(True),
            images=False,
            abilities=(),
            fidelity="",
        ),
    ]
    found = SimpleNamespace(
        run=Outlook("", "", tried=True, blocker=Blocker("none can be had", ""), weaker="process"),
        findings=findings,
        parts=[
            CheckedPart("engine", Availability(True, (), ("1.0",))),
            CheckedPart("small thing", Availability(True), detail=True),
        ],
        machine={"kernel": "6.18", "kvm": True},
    )
    monkeypatch.setattr(embedded, "doctor", lambda: found)
    assert cli.main(["doctor"]) == 0
    text = capfdbinary.readouterr().out.decode()
    assert text.startswith("agentd run cannot work here: none can be had\n")
    assert "This works: agentd run --isolation process\n" in text
    # What is to be pasted stands whole, beneath.
    assert "linux: user namespaces are switched off\n    sysctl -w a=1\n    and more\n" in text
    assert "\x1b" not in text and "6.18" not in text
    assert "engine" in text and "small thing" not in text
    assert cli.main(["doctor", "-v"]) == 0
    text = capfdbinary.readouterr().out.decode()
    assert "kernel  6.18\nkvm     yes\n" in text and "small thing" in text
    assert cli.main(["doctor", "--json"]) == 0
    value = msgspec.json.decode(capfdbinary.readouterr().out)
    assert value["machine"] == {"kernel": "6.18", "kvm": True}
    assert value["backends"][0] == {
        "name": "linux",
        "level": "namespace",
        "usable": False,
        "blockers": [{"what": blocker.what, "fix": blocker.fix}],
        "notes": [],
        "requirements": ["userns"],
        "images": False,
        "abilities": ["changes", "snapshot"],
        "fidelity": "files",
    }
    assert value["backends"][1]["usable"] is True
    assert value["run"]["weaker"] == "process" and value["parts"][0]["name"] == "engine"
