import io
import json
import stat
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from agentd.auth.keyfiles import key_id, read_public
from agentd.auth.signing import Signer, verify
from agentd.client.cli import main as cli


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "request.json").write_text('{"b": 1.50, "a": ["\\u00e9"]}')
    return tmp_path


@pytest.fixture
def key(place, capsys):
    assert cli.main(["sign", "--new-key", "alice.pem"]) == 0
    said = capsys.readouterr()
    assert said.err == "alice.pub.pem is for the daemon's trusted signers\n"
    public = read_public((place / "alice.pub.pem").read_bytes())
    assert said.out == f"{key_id(public)}\n"
    return public


def check(text, key, **options):
    signer = Signer(name="a", key_id=key_id(key), key=key, principal="a", scopes=frozenset())
    trusted = SimpleNamespace(find=lambda id_: signer)
    replay = SimpleNamespace(first_use=lambda key, nonce, issued: True)
    request = json.loads(text)
    assert verify(request, trusted, replay, time.time(), **options)
    return request


def test_what_is_signed_holds(place, key, capsys):
    assert stat.S_IMODE((place / "alice.pem").stat().st_mode) == 0o600
    assert cli.main(["sign", "request.json", "--key", "alice.pem"]) == 0
    out = capsys.readouterr().out
    request = check(out, key)
    assert request.pop("signature") and request == {"a": ["é"], "b": 1.5}
    assert out.count("\n") == 1


def test_into_a_file_that_is_ones_own(place, key, capsys):
    words = ["--key", "alice.pem", "--out", "signed.json", "--audience", "build-1", "--ttl", "30s"]
    assert cli.main(["sign", "request.json", *words]) == 0
    assert capsys.readouterr().out == ""
    found = place / "signed.json"
    assert stat.S_IMODE(found.stat().st_mode) == 0o600
    signature = check(found.read_text(), key, audience="build-1")["signature"]
    assert signature["audience"] == "build-1"
    assert signature["expires"] == pytest.approx(signature["issued"] + 30)
    found.chmod(0o644)
    assert cli.main(["sign", "request.json", *words]) == 0
    assert stat.S_IMODE(found.stat().st_mode) == 0o600


def test_from_stdin(place, key, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"x": 1}')))
    assert cli.main(["sign", "-", "--key", "alice.pem"]) == 0
    assert check(capsys.readouterr().out, key)["x"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to sign"),
        (["request.json"], "nothing to sign"),
        (["request.json", "--key", "none.pem"], "no key to sign with in none.pem: No such file"),
        (["none.json", "--key", "alice.pem"], "cannot read none.json: No such file"),
        (["alice.pem", "--key", "alice.pem"], "alice.pem: this is no JSON"),
        (["list.json", "--key", "alice.pem"], "list.json holds no JSON object"),
        (["twice.json", "--key", "alice.pem"], "twice.json: the key 'a' is there twice"),
        (["request.json", "--key", "alice.pub.pem"], "others may use it"),
        (["request.json", "--key", "alice.pem", "--ttl", "soon"], "ttl 'soon' is not a time"),
        (["request.json", "--key", "alice.pem", "--out", "no/where"], "cannot write no/where"),
        (["--new-key", "alice.pem"], "cannot write alice.pem: File exists"),
        (["--new-key", "b.pem", "--key", "alice.pem"], "signs nothing"),
    ],
)
def test_what_is_wrong_is_one_line_and_2(place, key, capsys, words, said):
    (place / "list.json").write_text("[]")
    (place / "twice.json").write_text('{"a": 1, "a": 2}')
    assert cli.main(["sign", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("agentd sign: ") and err.count("\n") == 1


def test_nothing_heavy_is_imported_to_parse():
    code = (
        "import sys, agentd.client.cli.sign, agentd.client.cli.approval\n"
        "print([m for m in ('cryptography', 'msgspec', 'rich', 'http.client', 'agentd.auth') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert out.stdout == b"[]\n"
