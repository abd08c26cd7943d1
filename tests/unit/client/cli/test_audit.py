import json
import shutil

import pytest

from agentd.audit.log import AuditLog
from agentd.client.cli import audit as cli
from agentd.client.cli import main as entry
from agentd.model.audit import Event, Kind
from agentd.model.errors import InvalidInput


@pytest.fixture
def log(tmp_path):
    directory = str(tmp_path / "state" / "audit")
    made = AuditLog(directory)
    for number in range(5):
        made.append(
            Event(
                kind=Kind.START,
                principal="uid:1000",
                request=f"req-{number}",
                capability="shell.exec.v1",
                fields={"n": number, "evil": "\x1b[2J"},
            )
        )
    made.close()
    return directory


def test_tail_is_a_table_that_cannot_talk_to_the_terminal(log, capsys):
    assert cli.main(["tail", "-n", "2", "--dir", log]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["SEQ", "TIME", "KIND"]
    assert [row.split()[0] for row in rows] == ["5", "6"]
    assert "shell.exec.v1 n=4 evil=\\x1b[2J" in rows[1]


def test_tail_as_json_is_the_lines_as_they_are(log, capsysbinary, tmp_path):
    assert cli.main(["tail", "--json", "--dir", log]) == 0
    out = capsysbinary.readouterr().out
    assert out == next((tmp_path / "state/audit").glob("audit-*")).read_bytes()


def test_verify_says_that_all_is_well_and_what_is_not(log, capsys, tmp_path):
    assert cli.main(["verify", "--dir", log]) == 0
    out = capsys.readouterr().out
    assert "6 in 1 file\n" in out and "\nok: every record is there" in out
    head = next(line.split()[1] for line in out.splitlines() if line.startswith("head"))
    assert cli.main(["verify", "--dir", log, "--head", head]) == 0
    assert "its end included" in capsys.readouterr().out
    file = next((tmp_path / "state/audit").glob("audit-*"))
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    assert cli.main(["verify", "--dir", log]) == 1  # its mark knows
    capsys.readouterr()
    (tmp_path / "state/audit.head").unlink()
    assert cli.main(["verify", "--dir", log]) == 0
    capsys.readouterr()
    assert cli.main(["verify", "--dir", log, "--head", head, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"] and found["problems"][0]["kind"] == "truncated"
    assert cli.main(["verify", "--dir", log, "--head", head]) == 1
    assert "record 6: truncated: records 6 to 6 are gone from its end" in capsys.readouterr().out


def test_export_writes_a_range_into_a_new_file(log, capsysbinary, tmp_path):
    out = tmp_path / "out.jsonl"
    assert cli.main(["export", "--dir", log, "--from", "2", "--to", "3", "--out", str(out)]) == 0
    assert [json.loads(line)["seq"] for line in out.read_bytes().splitlines()] == [2, 3]
    assert out.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InvalidInput, match="File exists"):
        cli.main(["export", "--dir", log, "--out", str(out)])
    assert cli.main(["export", "--dir", log, "--from", "6"]) == 0
    assert json.loads(capsysbinary.readouterr().out)["seq"] == 6


@pytest.fixture
def state(log, monkeypatch, tmp_path):
    """Where both a daemon and calls without one have written."""
    monkeypatch.setenv("AGENTD_DAEMON__STATE", str(tmp_path / "state"))
    monkeypatch.setenv("AGENTD_CONFIG", "")
    own = AuditLog(str(tmp_path / "state/embedded/audit"))
    own.append(Event(kind=Kind.START, request="req-own"))
    own.close()
    return tmp_path / "state"


def test_the_daemons_own_log_is_the_default_and_it_says_so(state, capsys):
    assert cli.main(["tail", "-n", "1"]) == 0
    captured = capsys.readouterr()
    assert "req-4" in captured.out
    assert f"{state}/audit, of the daemon; --embedded has that of calls" in captured.err


def test_else_it_is_that_of_calls_without_a_daemon(state, capsys):
    shutil.rmtree(state / "audit")
    assert cli.main(["tail", "-n", "1"]) == 0
    captured = capsys.readouterr()
    assert "req-own" in captured.out
    assert captured.err == f"agentd audit: {state}/embedded/audit, of calls without a daemon\n"
    (state / "audit").mkdir()  # of a daemon that never came up
    assert cli.main(["tail", "-n", "1"]) == 0
    assert capsys.readouterr().err == captured.err


def test_either_can_be_named(state, log, capsys):
    assert cli.main(["tail", "-n", "1", "--embedded"]) == 0
    captured = capsys.readouterr()
    assert "req-own" in captured.out and captured.err == ""
    assert cli.main(["tail", "-n", "1", "--dir", log]) == 0
    assert "req-4" in capsys.readouterr().out
    with pytest.raises(InvalidInput, match="cannot go together"):
        cli.main(["verify", "--embedded", "--dir", log])


def test_why_something_is_in_the_log_is_told_first(tmp_path, capsys):
    made = AuditLog(str(tmp_path / "log"))
    fields = {"input_digest": "", "reasons": ["a.b: no"], "cause": {"code": "oom"}, "n": 1}
    made.append(Event(kind=Kind.DENIAL, capability="fs.read.v1", fields=fields))
    made.close()
    assert cli.main(["tail", "-n", "1", "--dir", str(tmp_path / "log")]) == 0
    assert capsys.readouterr().out.endswith("fs.read.v1 cause=oom reasons=a.b: no n=1\n")


def test_no_log_is_one_line_and_wrong_words_another(tmp_path, capsys):
    assert entry.main(["audit", "tail", "--dir", str(tmp_path / "none")]) == 1
    assert entry.main(["audit", "verify", "--dir", str(tmp_path), "--head", "x"]) == 2
    assert entry.main(["audit", "tail", "-n", "x"]) == 2
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "agentd audit"
    ] * 3


def test_a_loss_is_accepted_where_a_log_was_and_nothing_is_made_elsewhere(log, capsys, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for nowhere in (tmp_path / "none", empty):
        assert cli.main(["accept-loss", "--dir", str(nowhere)]) == 1
        assert "no audit log here" in capsys.readouterr().err
    assert not (tmp_path / "none").exists() and list(empty.iterdir()) == []
    shutil.rmtree(log)
    assert cli.main(["accept-loss", "--dir", log]) == 0
    told = capsys.readouterr().out
    assert "loss" in told and "nothing that was written is missing" not in told
    AuditLog(log).close()
    assert cli.main(["accept-loss", "--dir", log]) == 0
    assert "nothing that was written is missing" in capsys.readouterr().out


def test_what_it_cuts_off_a_log_that_lost_nothing_is_written_down(log, capsys, tmp_path):
    file = next((tmp_path / "state/audit").glob("audit-*"))
    with file.open("ab") as out:
        out.write(b'{"seq":7,"prev":"torn')
    assert cli.main(["accept-loss", "--dir", log]) == 0
    assert "nothing that was written is missing" in capsys.readouterr().out
    AuditLog(log).close()
    assert cli.main(["verify", "--dir", log]) == 0
    assert "record 7: cut: " in capsys.readouterr().out
