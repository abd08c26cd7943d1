import json

import pytest

from agentd.audit import receipt
from agentd.audit.execution import Decided, Execution
from agentd.audit.keypair import KeyPair
from agentd.audit.receipts import Receipts
from agentd.client.cli import main as entry
from agentd.client.cli import receipt as cli
from agentd.model.audit import Position
from agentd.model.cause import Cause, CauseCode
from agentd.model.enforcement import Control
from agentd.model.errors import InvalidInput, NotFound

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def kept(tmp_path):
    execution = Execution(
        principal="uid:1000",
        request="req-1",
        request_digest=DIGEST,
        sandbox="sbx-1",
        decision=Decided(True, DIGEST, ("allowed \x1b[2J",)),
        backend="linux",
        level="namespace",
        outputs={"stdout": DIGEST},
        enforcement={"seccomp": Control("default", True, "a filter")},
        cause=Cause.of(CauseCode.EXITED, "exited"),
        exit_code=3,
        started=1.0,
        ended=2.0,
    )
    key = KeyPair.load_or_create(str(tmp_path / "key"))
    facts = receipt.ReceiptFacts(execution, Position(7, "cd" * 32))
    receipts = Receipts(str(tmp_path / "receipts"))
    receipts.put("req-1", receipt.issue(facts, key))
    receipts.close()
    return str(tmp_path / "receipts")


def test_show_tells_what_was_in_force_and_where_it_is_recorded(kept, capsys):
    assert cli.main(["show", "req-1", "--dir", kept]) == 0
    out = capsys.readouterr().out
    assert f"audit          7:{'cd' * 32}" in out and "exited, 3" in out
    assert "\x1b" not in out and out.splitlines()[-1].split()[:2] == ["seccomp", "yes"]
    assert cli.main(["show", "req-1", "--dir", kept, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predicate"]["execution"]["principal"] == "uid:1000"


def test_verify_needs_the_file_and_the_public_key_alone(kept, capsysbinary, tmp_path):
    assert cli.main(["show", "req-1", "--dir", kept, "--raw"]) == 0
    file = tmp_path / "receipt.json"
    file.write_bytes(capsysbinary.readouterr().out)
    argv = ["verify", str(file), "--key", str(tmp_path / "key.pub")]
    assert cli.main(argv) == 0
    assert b"the signature holds" in capsysbinary.readouterr().out
    KeyPair.load_or_create(str(tmp_path / "other"))
    assert entry.main(["receipt", *argv[:-1], str(tmp_path / "other.pub")]) == 125
    assert b"signature does not hold" in capsysbinary.readouterr().err
    file.write_bytes(file.read_bytes().replace(b"e", b"f", 1))
    assert entry.main(["receipt", *argv]) == 125


def test_what_is_not_there(kept, tmp_path):
    with pytest.raises(NotFound, match="no receipt 'req-2'"):
        cli.main(["show", "req-2", "--dir", kept])
    with pytest.raises(InvalidInput, match="cannot read the receipts"):
        cli.main(["show", "req-1", "--dir", str(tmp_path / "none")])
    with pytest.raises(InvalidInput, match="cannot read"):
        cli.main(["verify", str(tmp_path / "none"), "--key", str(tmp_path / "key.pub")])


def test_the_daemons_own_are_the_default(kept, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTD_DAEMON__STATE", str(tmp_path))
    assert cli.main(["show", "req-1"]) == 0
    assert "uid:1000" in capsys.readouterr().out
