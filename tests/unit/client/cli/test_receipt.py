import json
import shutil

import pytest

from agentd.audit import receipt
from agentd.audit.keypair import KeyPair
from agentd.audit.receipt import Decided, Execution
from agentd.audit.receipts import ReceiptStore
from agentd.client.cli import main as entry
from agentd.client.cli import receipt as cli
from agentd.client.http.errors import Unreachable
from agentd.model.audit import Position
from agentd.model.enforcement import Control
from agentd.model.errors import InvalidInput, NotFound
from agentd.model.result import Cause, CauseCode

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
    receipts = ReceiptStore(str(tmp_path / "receipts"))
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


@pytest.fixture
def state(kept, monkeypatch, tmp_path):
    """A daemon's, with receipts and a key; calls without one have receipts too."""
    monkeypatch.setenv("AGENTD_DAEMON__STATE", str(tmp_path))
    monkeypatch.setenv("AGENTD_CONFIG", "")
    shutil.copytree(tmp_path / "receipts", tmp_path / "embedded/receipts")
    KeyPair.load_or_create(str(tmp_path / "receipt.key"))
    return tmp_path


def test_the_daemons_own_come_first_and_then_those_of_calls_without_one(state, capsys):
    assert cli.main(["show", "req-1"]) == 0
    captured = capsys.readouterr()
    assert "uid:1000" in captured.out and f"{state}/receipts, of the daemon" in captured.err
    for file in (state / "receipts").iterdir():
        file.unlink()
    assert cli.main(["show", "req-1"]) == 0
    assert "embedded/receipts, of calls without a daemon" in capsys.readouterr().err
    assert cli.main(["show", "req-1", "--embedded"]) == 0
    assert capsys.readouterr().err == ""
    with pytest.raises(NotFound, match=f"{state}/receipts or {state}/embedded/receipts"):
        cli.main(["show", "req-2"])


def test_the_key_is_the_one_beside_them(state, capsys):
    assert cli.main(["key"]) == 0
    assert capsys.readouterr().out == (state / "receipt.key.pub").read_text()
    with pytest.raises(InvalidInput, match=r"cannot read .*embedded/receipt.key.pub"):
        cli.main(["key", "--embedded"])


def test_one_place_is_named_and_no_other(state):
    for words in (["--url", "unix:/x", "--embedded"], ["--url", "unix:/x", "--dir", "/x"]):
        with pytest.raises(InvalidInput, match="--url goes without"):
            cli.main(["show", "req-1", *words])
    with pytest.raises(Unreachable):
        cli.main(["show", "req-1", "--url", f"unix:{state}/none.sock"])


def test_a_key_that_is_none_is_told_without_a_librarys_words() -> None:
    from agentd.audit.errors import ReceiptInvalid
    from agentd.audit.keypair import as_public_key

    with pytest.raises(ReceiptInvalid, match="it is no public key in PEM") as told:
        as_public_key(b"{}")
    assert "http" not in str(told.value)
