"""What ``agentd doctor`` says will happen is what ``agentd run`` then does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import OrdinaryUser
from tests.integration.on_a_terminal import shown

from agentd.client.cli.main import main
from agentd.sandbox.backends.process import LandlockBackend

# In it nobody can make a user namespace, root neither.
_WITHOUT = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(params=["ours", "ordinary user"])
def argv(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """What starts agentd, and its environment; no virtual machine can be had in it."""
    (tmp_path / "bin").mkdir()
    if request.param == "ours":
        env = {
            "PATH": str(tmp_path / "bin"),
            "HOME": str(tmp_path),
            "XDG_RUNTIME_DIR": str(tmp_path),
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        return [sys.executable, "-m", "agentd"], env
    user: OrdinaryUser = request.getfixturevalue("as_user")
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    start = [*(drop if user.is_other else []), *user._python, "-m", "agentd"]
    return start, user.env | {"PATH": "/nonexistent"}


@pytest.fixture(params=["as it is", "without user namespaces"])
def start(
    request: pytest.FixtureRequest, argv: tuple[list[str], dict[str, str]]
) -> tuple[list[str], dict[str, str]]:
    words, env = argv
    if request.param == "as it is":
        return words, env
    # The identity of the outside; what it takes to set the count is kept over the exec alone.
    flags = ["--user", "--map-current-user", "--keep-caps"]
    prefix = words[: words.index("--clear-groups") + 1] if "--clear-groups" in words else []
    rest = words[len(prefix) :]
    return [*prefix, "/usr/bin/unshare", *flags, "/bin/sh", "-c", _WITHOUT, "sh", *rest], env


def told(start: tuple[list[str], dict[str, str]], *words: str) -> dict[str, Any]:
    argv, env = start
    if argv[0] == "setpriv":
        argv = ["/usr/bin/setpriv", *argv[1:]]
    done = subprocess.run(
        [*argv, *words], env=env, capture_output=True, stdin=subprocess.DEVNULL, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_doctor_says_what_run_then_does(start: tuple[list[str], dict[str, str]]) -> None:
    doctor = told(start, "doctor", "--json")
    said = doctor["run"]
    did = told(start, "run", "--json", "--", "/bin/true")
    if said["blocker"] is None:
        assert did["sandbox"]["backend"] == said["backend"]
        assert did["sandbox"]["level"] == said["level"]
        limits = ("memory", "cpus", "pids", "disk", "open_files")
        missing = {
            name: control
            for name, control in did["enforcement"].items()
            if name in limits and not control["enforced"]
        }
        assert said["unheld"].keys() == missing.keys()
        return
    assert did["status"] == "error" and said["blocker"]["what"] in did["cause"]["message"]
    (rules,) = (part for part in doctor["parts"] if part["name"] == "net rules")
    assert not rules["usable"] and "namespaces" in rules["blockers"][0]["what"]
    weaker = told(start, "run", "--json", "--isolation", "process", "--", "/bin/true")
    assert said["weaker"] == ("process" if weaker["status"] == "ok" else "")
    assert not any(
        wall["usable"] for wall in doctor["backends"] if wall["level"] in ("namespace", "microvm")
    )


def test_no_wall_lists_what_none_of_its_sandboxes_can_do_here(
    argv: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    for name in ("firecracker", "jailer"):
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\necho {name.title()} v1.16.1\n")
        program.chmod(0o755)
    found = {
        wall["name"]: set(wall["abilities"]) for wall in told(argv, "doctor", "--json")["backends"]
    }
    if "bin" in argv[1]["PATH"] and os.getuid() == 0:  # it cannot pause
        assert found["firecracker"] == {"snapshot", "fork", "network"}
    ran = told(argv, "run", "--json", "--isolation", "process", "--", "/bin/true")
    grouped = ran["enforcement"]["memory"]["enforced"]
    assert {"pause" in found[name] for name in ("host", "landlock", "linux", "oci")} == {grouped}


@pytest.mark.parametrize("words", [["doctor"], ["doctor", "-v"]])
def test_it_fits_a_terminal_and_says_first_what_will_happen(
    argv: tuple[list[str], dict[str, str]], words: list[str]
) -> None:
    start, env = argv
    lines = _COLOUR.sub("", shown([_whole(start[0]), *start[1:], *words], env=env)).splitlines()
    # What is to be copied is not broken.
    assert [line for line in lines if len(line) > 80 and not re.match(r" {4}\S", line)] == []
    assert lines[0].startswith(("agentd run will use linux (isolation namespace)",
                                "agentd run cannot work here:"))  # fmt: skip
    facts = [line for line in lines if line.startswith("kernel ")]
    assert bool(facts) == ("-v" in words)
    rules = [line for line in lines if line.startswith("net rules ")]
    assert rules or "-v" not in words
    # Where they work they are one of the details.
    assert all("-v" in words or " no " in line for line in rules)
    if "-v" in words and any(" yes " in line for line in rules):  # machines are told of, too
        usable = any(re.match(r"qemu +\S+ +yes", line) for line in lines)
        assert ("qemu: by the guest's kernel" in " ".join(" ".join(lines).split())) is usable


@pytest.mark.parametrize("columns", [50, 120])
def test_a_table_has_the_width_of_a_terminal_without_colours(tmp_path: Path, columns: int) -> None:
    env = {"TERM": "dumb", "HOME": str(tmp_path)}
    told = shown([sys.executable, "-m", "agentd", "net", "presets"], columns=columns, env=env)
    assert max(map(len, told.splitlines())) == columns


def test_a_default_limit_that_does_not_hold_is_told_on_a_terminal(as_user: OrdinaryUser) -> None:
    drop = (
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if as_user.is_other else []
    )
    start = [*drop, *as_user._python, "-m", "agentd"]

    def on_terminal(*words: str) -> str:
        return shown([*start, *words], env=as_user.env, cwd=as_user.home)

    report = json.loads(as_user.agentd("run", "--json", "--", "true").stdout)["enforcement"]
    if report["memory"]["enforced"]:
        pytest.skip("memory is limited here for an ordinary user, too: its cgroup is delegated")
    line = "memory is not limited (default 1G); -v or agentd doctor tells why"
    said = on_terminal("run", "--", "echo", "out")
    assert said.count(line) == 1 and "\x1b[33m" in said and said.endswith("out\n")
    call = on_terminal("call", "shell.exec.v1", "--embedded", "--params", '{"command": "true"}')
    assert call.count(line) == 1
    for words in (["run", "--json", "--", "true"], ["run", "-v", "--", "true"]):
        assert line not in on_terminal(*words)
    table = _COLOUR.sub("", on_terminal("run", "-v", "--", "true"))
    assert re.search(r"^memory +default 1G +no ", table, re.MULTILINE), table
    # Nobody reads it where there is no terminal.
    assert line.encode() not in as_user.agentd("run", "--", "true").stderr


def _whole(program: str) -> str:
    return f"/usr/bin/{program}" if os.sep not in program else program


def test_whoever_is_ended_as_it_looks_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a handler of SIGTERM of a program that has agentd in it."""

    def ended(self: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(LandlockBackend, "probe", ended)
    with pytest.raises(SystemExit, match="143"):
        main(["doctor"])
