"""What is wrong is told in the words of who wrote it."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, fixture

from agentd import Client, InvalidInput, Sandbox
from agentd.client.cli import main as cli

daemon = fixture()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--timeout", "-1s"], "--timeout '-1s' is not a time"),
        (["--memory", "-1G"], "--memory '-1G' is not a size"),
        (["--memory=1"], "--memory of 1 byte is too little"),
        (["--open-files", "0"], "--open-files '0' is not a count"),
        (["--net", "pypi", "--net-bytes", "x"], "--net-bytes 'x' is not a size"),
        (["--open-files", "1"], "--open-files of 1 is too little for a sandbox (give at least 16)"),
        (["--net-bytes", "1M"], "--net-bytes bounds a network of rules, and the sandbox has the"),
        (["--net", "host", "--net-rate", "1M"], "--net-rate bounds a network of rules, and the"),
        (["--secret", "TOKEN@"], "--secret TOKEN has no host behind its @ (write it as NAME@"),
        (["--secret", "TOKEN"], "--secret has no host (write it as NAME@api.example.com, "),
        (["-w", ".:xx"], "unknown mode 'xx'"),
        (["--mount", ".:/data:xx"], "unknown mode 'xx'"),
        (["-w", "/tmp:ro:rw"], "two modes of the mount '/tmp:ro' (leave one out)"),
        (["--mount", ".:/data:ro:rw"], "two modes of the mount '.:/data:ro:rw' (leave one out)"),
        (["--volume", "v:/data:ro:rw"], "two modes of the mount 'v:/data:ro:rw' (leave one out)"),
        (["--net", "reed example.com"], "network rule 'reed example.com' has the method 'reed'"),
    ],
)
def test_a_wrong_option(words: list[str], said: str) -> None:
    argv = [sys.executable, "-m", "agentd", "run", "--embedded", *words, "--", "true"]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"agentd run: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create", "--on-idle", "end"], "--on-idle is given without --idle-timeout (say when"),
        (["create", "--net-bytes", "1M"], "--net-bytes bounds a network of rules, and the"),
        (["call", "fs.read.v1", "--keep"], "--keep is given without --sandbox (name the"),
        (
            ["call", "fs.read.v1", "--sandbox", "a", "--open-files", "99"],
            "--open-files says how to make a sandbox, and --sandbox names one that is there",
        ),
        (["call", "x.v1", "--embedded"], "--embedded and --url cannot go together (drop one)"),
        (["volume", "ls", "--embedded"], "--embedded and --url cannot go together (drop one)"),
        (["template", "ls", "--embedded"], "--embedded and --url cannot go together (drop one)"),
    ],
)
def test_an_option_that_means_nothing_without_another_is_told_before_a_daemon_is_asked(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--url", "unix:/nowhere"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"agentd {words[0]}: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create", "--ttl", "nix"], "--ttl 'nix' is not a time (write it as"),
        (["create", "--wait", "nix"], "--wait 'nix' is not a time (write it as"),
        (["create", "--name", "a b"], "'a b' is no name of a sandbox (give up to 63 letters"),
        (["create", "--label", "a\tb=c"], "--label 'a\\tb' is not usable (give printable keys"),
        (["port", "a", "80", "--link", "--ttl", "nix"], "--ttl 'nix' is not a time"),
        (["fork", "a", "--count", "0"], "--count '0' is not a count"),
        (["volume", "create", "d", "--size", "nix"], "--size 'nix' is not a size"),
        (["volume", "create", "a/b"], "volume 'a/b' is not a name"),
        (["volume", "snapshot", "a", "a/b"], "volume 'a/b' is not a name"),
        (["key", "create", "--name", "a", "--scopes", "nix"], "unknown scope 'nix' (the scopes"),
        (["key", "create", "--name", "a", "--scopes", "run", "--ttl", "nix"], "--ttl 'nix' is not"),
        (["secret", "set", "1"], "a secret has no name that can be used"),
        (["secret", "set", "A_TOKEN", "x"], "secret A_TOKEN is not taken from an argument"),
        (["secret", "set", "A_TOKEN", "--from-env", "NIX"], "secret A_TOKEN"),
        (["net", "set", "a", "a..b"], "network rule 'a..b' is no name of a host"),
        (["net", "cassette", "a", "--put", "/nope"], "cannot read the cassette /nope"),
        (["approval", "ls", "a"], "ls takes no approval"),
        (["approval", "show"], "no approval given"),
    ],
)
def test_a_value_is_judged_before_a_daemon_is_asked(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGENTD_URL", raising=False)
    monkeypatch.setattr("agentd.client.http.address.sockets", lambda env: ["/nowhere/s"])
    for more in ([], ["--url", "unix:/nowhere/s"]):
        assert cli.main([*words, *more]) == 2
        assert capsys.readouterr().err.startswith(f"agentd {words[0]}: {said}")


def test_a_configuration_that_is_not_there_is_named_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["config", "check", "/nope"]) == 1
    assert capsys.readouterr().out.startswith("cannot read /nope: No such file or directory (")


def test_a_value_that_is_no_options_is_told_without_dashes() -> None:
    argv = [sys.executable, "-m", "agentd", "renew", "sbx-abcdefghijkl", "soon"]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert done.stderr.decode().startswith("agentd renew: ttl 'soon' is not a time")


def test_a_folder_with_a_colon_in_its_name_is_one(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c:d").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "--embedded", "-w", "c:d", "--", "touch", "made"]) == 0
    assert (tmp_path / "c:d" / "made").exists()


def test_a_lease_that_is_too_long(daemon: Daemon) -> None:
    answer = daemon.ask("POST", "/v1/sandboxes", {"ttl": "30d"})
    assert "a lease of 30d is longer than the 1d allowed" in answer.json["message"]


def test_a_mode_that_a_daemon_does_not_know(daemon: Daemon, tmp_path: Path) -> None:
    for isolation in ("namespace", "process"):
        body = {"workspace": f"{tmp_path}:xx", "isolation": isolation}
        answer = daemon.ask("POST", "/v1/sandboxes", body)
        assert answer.status == 400
        assert "'xx' is no mode: use ro, rw or cow" in answer.json["remediation"]
        answer = daemon.ask("POST", "/v1/sandboxes", body | {"workspace": f"{tmp_path}:ro:rw"})
        assert "a mount has one mode: leave one out" in answer.json["remediation"]


def test_a_range_without_records(capsys: pytest.CaptureFixture[str], daemon: Daemon) -> None:
    export = ["audit", "export", "--dir", str(daemon.state / "audit")]
    assert cli.main([*export, "--from", "9", "--to", "3"]) == 2
    assert "--from 9 is after --to 3" in capsys.readouterr().err
    assert cli.main([*export, "--from", "123456"]) == 2
    assert "there is no record 123456 yet (the newest is " in capsys.readouterr().err


def test_a_copy_that_finds_no_room_names_the_limit(
    capsys: pytest.CaptureFixture[str], daemon: Daemon, tmp_path: Path
) -> None:
    answer = daemon.ask("POST", "/v1/sandboxes", {"disk": "4M"})
    (tmp_path / "large").write_bytes(bytes(8 << 20))
    words = ["cp", "--url", daemon.url, str(tmp_path / "large"), f"{answer.json['id']}:/workspace/"]
    assert cli.main(words) == 125
    assert "No space left on device (write less, or make the sandbox with more --disk)" in (
        capsys.readouterr().err
    )
    daemon.ask("DELETE", f"/v1/sandboxes/{answer.json['id']}")


def test_a_path_that_no_policy_reads(daemon: Daemon) -> None:
    path, long = f"/v1/sandboxes/{daemon.sandbox()}/files", "/" + "a/" * 50_000
    for at, body in (
        ("mkdir", {"path": long}),
        ("move", {"path": long, "to": "/tmp/a"}),
        ("move", {"path": "/tmp/a", "to": long}),
    ):
        answer = daemon.ask("POST", f"{path}/{at}", body)
        assert (answer.status, answer.json["remediation"]) == (400, "shorten it")


def test_a_mode_that_no_folder_has_and_what_replaces_none(daemon: Daemon) -> None:
    path = f"/v1/sandboxes/{daemon.sandbox()}/files/mkdir"
    for mode in (-1, 0o2000, 1 << 70):
        answer = daemon.ask("POST", path, {"path": "/tmp/d", "mode": mode})
        assert (answer.status, answer.code) == (400, "invalid_input")
        assert answer.json["message"] == f"mode {mode} is out of range"
        assert answer.json["remediation"] == "give 0 to 1023 (0o1777)"
    path = path.replace("mkdir", "tar?path=/workspace&replace=true")
    answer = daemon.ask("PUT", path, b"")
    assert (answer.status, answer.json["remediation"]) == (400, "add whole")


@pytest.mark.parametrize("words", [["run", "extra"], ["exec", "a", "b"], ["image", "build", "x"]])
def test_help_of_more_than_a_command_runs_none(words: list[str]) -> None:
    argv = [sys.executable, "-m", "agentd", "help", *words]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("agentd help: unrecognized arguments: ")
    assert done.stderr.endswith(f"(see agentd help {words[0]})\n")


def test_help_of_an_action_is_that_actions(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help", "image", "build"], ["image", "build", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(words)
    told = capsys.readouterr().out
    assert told[: len(told) // 2] == told[len(told) // 2 :]


@pytest.mark.parametrize(
    ("path", "status"),
    [("file", 200), ("link", 200), ("folder", 400), ("away", 400), ("none", 404), ("file/x", 400)],
)
def test_a_head_is_the_answer_to_get_without_its_body(
    daemon: Daemon, path: str, status: int
) -> None:
    id_ = daemon.sandbox()
    made = "mkdir folder; echo some >file; ln -s file link; ln -s folder away"
    daemon.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": made})
    where = f"/v1/sandboxes/{id_}/files?path=/workspace/{path}"
    got, head = (daemon.ask(method, where) for method in ("GET", "HEAD"))
    lengths = [each.headers.get("content-length") for each in (got, head)]
    assert (got.status, head.status, head.body) == (status, status, b"")
    assert lengths[0] == lengths[1]


def test_a_path_that_is_not_utf8(daemon: Daemon) -> None:
    id_ = daemon.sandbox()
    path = "/workspace/n\udcff"
    told = "agentd cp: '/workspace/n\\udcff' is not UTF-8, and a daemon is asked in UTF-8 alone"
    for words in (("cp", f"{id_}:{path}", "."), ("cp", __file__, f"{id_}:{path}")):
        done = daemon.cli(*words)
        assert (done.returncode, done.stderr.decode()[: len(told)]) == (2, told)
    with Sandbox.connect(id_, url=daemon.url) as box, pytest.raises(InvalidInput, match="alone"):
        box.files.stat(path)
    answer = daemon.ask("GET", f"/v1/sandboxes/{id_}/files?path=/workspace/n%FF")
    assert (answer.status, answer.json["message"]) == (400, "the query is not UTF-8")


def test_a_label_of_another_type_is_looked_for_by_nobody(daemon: Daemon) -> None:
    daemon.sandbox(labels={"job": "7"})
    with Client(daemon.url) as client, pytest.raises(InvalidInput, match="'job' is of type int"):
        client.sandboxes.list(labels={"job": 7})  # type: ignore[dict-item]
