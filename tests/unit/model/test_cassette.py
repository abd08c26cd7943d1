"""The file of a cassette: what is written is read again, and what is wrong is named by its line."""

import json

import pytest

from agentd.client import cassettes
from agentd.model import cassette
from agentd.model.cassette import RecordedBody, RecordedExchange
from agentd.model.egress import network
from agentd.model.errors import InvalidInput
from agentd.model.options import sandbox_spec, with_rules

HEADERS = (("content-type", "text/plain"), ("x-odd", "\xe9"))
ONE = RecordedExchange(
    "POST", "api.example.com", 443, "/v1/x?a=b", HEADERS, RecordedBody.of("ü\n".encode()),
    200, "OK", HEADERS, RecordedBody.of(b"\0\xff"),
)  # fmt: skip
TWO = RecordedExchange("GET", "b.example.com", 80, "/", unrecorded="it became a WebSocket")
WHOLE = cassette.joined([cassette.line(ONE), cassette.line(TWO)], 3)


def test_what_is_written_is_read_again() -> None:
    found = cassette.parse(WHOLE)
    assert (found.exchanges, found.left_out) == ((ONE, TWO), 3)
    assert found.rules == ("api.example.com:443", "b.example.com:80")
    assert '"text":"ü\\n"' in WHOLE.decode()
    assert cassette.parse(cassette.joined([], 0)).exchanges == ()


def _with(line: int, text: str) -> bytes:
    lines = WHOLE.decode().splitlines(keepends=True)
    lines[line - 1] = text
    return "".join(lines).encode()


def _changed(**fields: object) -> str:
    return json.dumps({**json.loads(cassette.line(ONE)), **fields}) + "\n"


@pytest.mark.parametrize(
    ("data", "said", "fix"),
    [
        (b"", "line 1 is not that of a cassette", "record:FILE"),
        (b"\xff\n", "line 1 is not that of a cassette", "record:FILE"),
        (
            _with(1, '{"cassette": "agentd", "version": 2}\n'),
            "line 1 has version 2",
            "newer agentd",
        ),
        (_with(1, '{"cassette": "agentd", "version": 0}\n'), "line 1 has version 0", "record"),
        (_with(4, ""), "ends after line 3 without its last", "record it anew"),
        (WHOLE[:-1], "without its last", "record it anew"),
        (WHOLE[:200], "ends after line 1 without", "record it anew"),
        (_with(3, ""), "says at its end that it has 2 exchanges, and has 1", "change the number"),
        (_with(2, "{}\n"), "line 2 does not fit: Object missing required field", "mend it"),
        (_with(2, _changed(speed=1)), "line 2 does not fit: Object contains unknown field", "mend"),
        (_with(2, _changed(target="v1/x")), "line 2 has 'POST v1/x', which no", "GET /v1/x"),
        (_with(2, _changed(target="/a b")), "line 2 has 'POST /a b', which no", "GET /v1/x"),
        (_with(2, _changed(target="/é")), "line 2 has 'POST /é', which no request", "GET /v1/x"),
        (_with(2, _changed(method="G T")), "line 2 has 'G T /v1/x?a=b', which no", "GET /v1/x"),
        (_with(2, _changed(status=101)), "line 2 has the status 101", "200 to 999"),
        (_with(2, _changed(body={"base64": "?"})), "line 2 has a body that is no base64", "record"),
        (
            _with(2, _changed(answer_headers=[["a", "b\r\nc: d"]])),
            "line 2 has the header 'a', which is none",
            "record it anew",
        ),
        (
            _with(2, _changed(answer={"text": "x" * (cassette.MAX_BODY + 1)})),
            "line 2 has a body of 4194305 bytes, over 4194304",
            "record",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(data: bytes, said: str, fix: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        cassette.parse(data)
    assert said in caught.value.message and fix in caught.value.remediation


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ("record,10.1.2.3:443", "'10.1.2.3:443' cannot be recorded"),
        ("record,10.0.0.0/8:*", "'10.0.0.0/8:*' cannot be recorded"),
        ("record,learn", "'learn' cannot be recorded"),
        ("record,ask public", "'ask public' cannot be recorded"),
        ("replay,10.1.2.3:443", "'10.1.2.3:443' cannot be replayed"),
        ("record,replay", "'replay' cannot stand beside record"),
        ("record:tape,pypi", "'record:tape' has a file, which is for agentd run"),
        ("replay:/a b/@tape", "'replay:/a b/@tape' has a file, which is for agentd run"),
        ("!record", "'!record' is no rule"),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name(net: str, said: str) -> None:
    with pytest.raises(InvalidInput, match="network rule") as caught:
        network(net)
    assert said in caught.value.message


def test_what_may_stand_beside() -> None:
    assert network("record,pypi,!10.0.0.0/8,read a.example.com")[1][0] == "record"
    with pytest.raises(InvalidInput, match="of no use where a cassette is replayed"):
        sandbox_spec(net="replay,api.example.com", secrets=["KEY@api.example.com"])


def test_other_rules_go_on_as_before() -> None:
    spec = sandbox_spec(net="record,pypi")
    assert with_rules(spec, "record,npm").egress == ("record", "npm")
    assert with_rules(spec, []).egress == ("record",)
    with pytest.raises(InvalidInput, match="goes on to record") as caught:
        with_rules(spec, "npm")
    assert caught.value.remediation == "begin its rules with record"
    with pytest.raises(InvalidInput, match="was not made to replay"):
        with_rules(sandbox_spec(net="pypi"), "replay,npm")


def test_the_files_are_the_callers(tmp_path: object) -> None:
    path = f"{tmp_path}/tape.jsonl"
    net, files = cassettes.taken(f"record:{path},pypi")
    assert (net, files.record, files.replay) == (["record", "pypi"], path, b"")
    with open(path, "wb") as file:
        file.write(WHOLE)
    net, files = cassettes.taken([f"replay:{path}"])
    assert net == ["replay", "api.example.com:443", "b.example.com:80"]
    assert files.replay == WHOLE
    for wrong in (f"record:{path}/no", "record:", f"record:{tmp_path}", f"replay:{path}.no"):
        with pytest.raises(InvalidInput, match="cassette"):
            cassettes.taken(wrong)
    with open(path, "wb") as file:
        file.write(WHOLE[:-1])
    with pytest.raises(InvalidInput, match=f"{path}: the cassette ends after line 3"):
        cassettes.taken([f"replay:{path}"])
