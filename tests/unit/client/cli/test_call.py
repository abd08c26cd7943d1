"""``agentd call``: what it asks for, what it prints, and how it ends; by a daemon and without."""

import contextlib
import io
import json
import sys

import pytest
from tests.unit.ingest.harness import Running

from agentd.client.cli import main as cli
from agentd.model.errors import PolicyDenied, Undecided
from agentd.model.result import Cause, CauseCode


@pytest.fixture(autouse=True)
def _of_the_test(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTD_POLICY", "none")
    monkeypatch.setenv("AGENTD_DAEMON__STATE", str(tmp_path / "state"))


@pytest.fixture
def running(tmp_path, monkeypatch):
    with Running(tmp_path) as made:
        monkeypatch.setenv("AGENTD_URL", f"unix:{made.path}")
        yield made


def call(*words):
    return cli.main(["call", *words])


def sent(running):
    return json.loads(running.service.seen["raw"])


class TestAsked:
    def test_a_name_and_its_parameters(self, running, capfd):
        assert call("echo.v1", "--params", '{"a": [1, "\\u00e9"]}') == 0
        asked = sent(running)
        assert (asked["capability"], asked["parameters"]) == ("echo.v1", {"a": [1, "é"]})
        assert set(asked) <= {"capability", "parameters", "create"}
        assert json.loads(capfd.readouterr().out) == {"a": [1, "é"]}

    def test_parameters_by_their_old_name(self, running, capfd, monkeypatch):
        """--json was their name: scripts go on, and a person is told the new one."""
        for words in (
            ["--json", '{"a": 1}'],
            ['--json={"a": 1}'],
            ["--as-json", "--json", '{"a": 1}'],
        ):
            assert call("echo.v1", *words) == 0
            assert sent(running)["parameters"] == {"a": 1}
        printed = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert ["receipt" in each for each in printed] == [False, False, True]
        assert call("echo.v1", "--json", "[1]") == 2
        assert "--json is no JSON object" in capfd.readouterr().err
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        assert call("echo.v1", "--json", '{"a": 1}') == 0
        said = "--json PARAMETERS is --params PARAMETERS now; --json alone prints JSON"
        assert said in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ("", "--params: this is no JSON"),
            ("{", "--params: this is no JSON"),
            ('{"a": 1, "a": 2}', "--params: the key 'a' is there twice"),
            ("@", "--params @ names no file (write it as @FILE)"),
        ],
    )
    def test_parameters_that_are_none_are_told_by_their_option(self, value, said, capfd):
        assert call("echo.v1", "--params", value) == 2
        assert said in capfd.readouterr().err

    def test_without_parameters_there_are_none(self, running):
        assert call("echo.v1") == 0
        assert not sent(running).get("parameters")

    def test_where_and_within_what(self, running):
        assert call("echo.v1", "--sandbox", "sbx-1", "--bundle", "sha256:x") == 0
        asked = sent(running)
        assert (asked["sandbox"], asked["bundle"]) == ("sbx-1", "sha256:x")
        assert not asked.get("create")
        assert call("echo.v1", "--memory", "64M", "--isolation", "microvm") == 0
        asked = sent(running)
        create = asked["create"]
        assert (create["memory"], create["isolation"]) == (64 << 20, "microvm")

    def test_parameters_from_a_file_and_from_standard_input(self, running, tmp_path, monkeypatch):
        (tmp_path / "p.json").write_text('{"from": "file"}')
        assert call("echo.v1", "--params", f"@{tmp_path}/p.json") == 0
        assert sent(running)["parameters"] == {"from": "file"}
        stdin = io.TextIOWrapper(io.BytesIO(b'{"from": "stdin"}'))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert call("echo.v1", "--params", "@-") == 0
        assert sent(running)["parameters"] == {"from": "stdin"}

    def test_a_whole_request_goes_as_it_is(self, running, tmp_path):
        request = {
            "capability": "echo.v1",
            "parameters": {"n": 1.0},
            "signature": {"key": "k", "nonce": "n"},
        }
        (tmp_path / "signed.json").write_text(json.dumps(request))
        assert call("--request", f"{tmp_path}/signed.json") == 0
        assert sent(running) == request

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "no capability is named"),
            (["echo.v1", "--params", "[1]"], "--params is no JSON object"),
            (["echo.v1", "--params", "{"], "JSON"),
            (["echo.v1", "--params", '{"a":1,"a":2}'], "a"),
            (["echo.v1", "--params", "@/nowhere"], "cannot read /nowhere"),
            (["echo.v1", '{"a": 1}'], """(its parameters are --params '{"path": "a.txt"}')"""),
            (["--sandbox", "s", "echo.v1", "a=1"], "a=1 stands behind the capability ("),
            (["echo.v1", "--request", "x"], "leave out the name"),
            (["--request", "x", "--params", "{}"], "leave out the name"),
            (["--request", "/nowhere"], "cannot read /nowhere"),
            (["echo.v1", "--memory", "lots"], "is not a size"),
        ],
    )
    def test_what_is_wrong_is_one_line_and_2(self, running, capfd, words, said):
        assert call(*words) == 2
        err = capfd.readouterr().err
        assert said in err and err.startswith("agentd call: ") and err.count("\n") == 1
        assert running.service.calls == []

    def test_a_signed_request_is_for_a_daemon(self, tmp_path, capfd):
        (tmp_path / "signed.json").write_text('{"capability": "x.v1", "signature": {}}')
        assert call("--request", f"{tmp_path}/signed.json", "--embedded") == 2
        assert "is for a daemon" in capfd.readouterr().err


class TestPrinted:
    def test_all_of_it(self, running, capfd):
        assert call("echo.v1", "--json") == 0
        found = json.loads(capfd.readouterr().out)
        assert (found["receipt"], found["status"]) == ("req-1", "ok")
        assert found["decision"]["allow"] is True and found["cause"]["code"] == "exited"

    def test_on_a_terminal_nothing_of_it_is_a_control_code(self, running, capsys, monkeypatch):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        assert call("echo.v1", "--params", json.dumps({"\x1b]0;x": "\x1b[31m\u202e\x9b"})) == 0
        out = capsys.readouterr().out
        assert not set(out) & {"\x1b", "\u202e", "\x9b"} and "\\u001b[31m" in out

    def test_what_comes_before_the_end_is_on_stderr(self, running, capfd):
        assert call("echo.v1", "--follow", "--params", '{"n": 1}') == 0
        out, err = capfd.readouterr()
        assert (json.loads(out), err) == ({"n": 1}, "a piece")

    def test_of_that_nothing_is_a_control_code_either(self, running, capsys, monkeypatch):
        def hostile(who, body, raw, *, emit=None, cancel=-1):
            emit("stdout", b"\x1b[31mred\x07\ta\nb\xff\xe2\x82")
            emit("stderr", b"|\xc3")
            emit("stdout", b"\xac")
            return running.service._view_of(body)

        running.service.call = hostile
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        assert call("echo.v1", "--follow") == 0
        assert capsys.readouterr().err == "\\x1b[31mred\\x07\ta\nb\ufffd|\N{EURO SIGN}\ufffd"

    def test_where_it_ran(self, running, backend, capfd):
        assert call("echo.v1", "-v") == 0
        assert f"via unix:{running.path}" in capfd.readouterr().err
        assert call("shell.exec.v1", "--params", '{"command": "true"}', "-v", "--embedded") == 0
        assert "via this process" in capfd.readouterr().err
        assert running.service.calls == ["call"]


class TestEnded:
    @pytest.mark.parametrize(
        ("name", "code", "said"),
        [
            ("fail.v1", 1, "the text is not in the file"),
            ("none.v1", 1, "there is no capability"),
            ("crash.v1", 125, "the daemon failed to answer this"),
        ],
    )
    @pytest.mark.parametrize("how", [[], ["--follow"]])
    def test_by_a_daemon(self, running, capfd, name, code, said, how):
        assert call(name, *how) == code
        out, err = capfd.readouterr()
        assert out == "" and said in err and err.startswith("agentd call: ")

    @pytest.mark.parametrize("error", [PolicyDenied("no"), Undecided("who knows")])
    def test_refused_is_125(self, running, error):
        def refuse(*_, **__):
            raise error

        running.service.call = refuse
        assert call("echo.v1") == call("echo.v1", "--follow") == 125

    def test_a_command_that_failed_is_1_with_its_value(self, running, capfd):
        def failed(who, body, raw, *, emit=None, cancel=-1):
            import msgspec

            cause = Cause.of(CauseCode.EXITED, "exited with 3")
            view = running.service._view_of(body)
            return msgspec.structs.replace(view, status="failed", cause=cause)

        running.service.call = failed
        assert call("echo.v1", "--params", '{"n": 1}') == 1
        assert json.loads(capfd.readouterr().out) == {"n": 1}

    def test_no_daemon_at_a_named_place_is_125(self, tmp_path, capfd):
        assert call("echo.v1", "--url", f"unix:{tmp_path}/none") == 125
        assert "no daemon answers" in capfd.readouterr().err


class TestEmbedded:
    """Where there is no daemon, as the fixture of all these tests has it."""

    def test_the_same_value_and_shape(self, backend, capfd):
        asked = {"command": "sh", "args": ["-c", "echo $A; exit 3"], "env": {"A": "b"}}
        assert call("shell.exec.v1", "--params", json.dumps(asked), "--json") == 1
        found = json.loads(capfd.readouterr().out)
        assert (found["status"], found["value"]["stdout"]) == ("failed", "b\n")
        assert found["receipt"] == found["request_id"] != ""
        assert backend.walls[0].process.returncode is not None  # made for it, ended with it

    def test_how_far_a_machine_has_come_is_shown(self, machines, capfd):
        words = ("shell.exec.v1", "--params", '{"command": "true"}')
        assert call(*words) == 0
        assert "agentd call: booting\n" in capfd.readouterr().err
        assert call(*words, "--json") == 0
        assert "booting" not in capfd.readouterr().err

    def test_output_is_followed(self, backend, capfd):
        assert (
            call("shell.exec.v1", "--params", '{"command": "echo", "args": ["hi"]}', "--follow")
            == 0
        )
        assert capfd.readouterr().err == "hi\n"

    def test_a_missing_file_is_1(self, backend, capfd):
        assert call("fs.read.v1", "--params", '{"path": "nothing"}') == 1
        assert "nothing" in capfd.readouterr().err

    def test_a_sandbox_is_a_daemon_s(self, backend, capfd):
        assert call("fs.read.v1", "--params", '{"path": "a"}', "--sandbox", "sbx-1") == 1
        assert "name a daemon with --url" in capfd.readouterr().err

    @pytest.mark.parametrize("policy", ["strict", "nonsense"])
    def test_a_policy_decides(self, backend, capfd, monkeypatch, policy):
        monkeypatch.setenv("AGENTD_POLICY", policy)
        code = call("fs.write.v1", "--params", '{"path": "/etc/x", "content": ""}')
        assert code == (125 if policy == "strict" else 2)
        assert policy == "strict" or "is no policy" in capfd.readouterr().err
        assert backend.walls == []

    def test_another_bundle_than_is_expected_is_125(self, backend, capfd):
        with contextlib.suppress(SystemExit):
            assert call("fs.list.v1", "--params", '{"path": "."}', "--bundle", "sha256:x") == 125
        assert "the caller expects the policy sha256:x, and none is in force" in (
            capfd.readouterr().err
        )
