"""Protocol v1 as serde_json reads and writes it: what is a request, and what is a reply."""

import base64
import json

import pytest

from agentd.guest import v1

# What Python strips, or other libraries do, and Rust does not.
NO_SPACE = "\x1c\x1d\x1e\x1f\u180e\u200b\u2060\ufeff\0"


def parse(text: str) -> v1.V1Request:
    return v1.parse_request(text.encode())


def test_an_object_with_every_field() -> None:
    request = parse(
        '{"command":"caf\\u00e9","args":["a",""],"cwd":"/etc","env":{"A":"1","":"x","B=C":"2"},'
        '"stdin":"hi\\n","timeout_ms":1500}\r\n'
    )
    assert request == v1.V1Request(
        command="café",
        args=("a", ""),
        cwd="/etc",
        env={"A": "1", "": "x", "B=C": "2"},
        stdin=b"hi\n",
        timeout_ms=1500,
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"command":"x"}',
        '{"command":"x","cwd":null,"stdin":null,"timeout_ms":null}',
        '["x"]',
        '["x",[]]',
        '["x",[],null]',
        '["x",[],null,{}]',
        '["x",[],null,{},null]',
        ' \t{"command":"x"} \r\n',
        *(f'{space}{{"command":"x"}}{space}' for space in v1._WHITE_SPACE if space != "\n"),
        '{"comm\\u0061nd":"x"}',
    ],
)
def test_absent_fields_take_their_defaults(text: str) -> None:
    assert parse(text) == v1.V1Request("x", (), None, {}, None, None)


@pytest.mark.parametrize(
    "unknown",
    [
        '"z":1,"z":2',
        '"z":{"command":1,"command":2}',
        '"z":' + "[" * 200 + "]" * 200,
        '"z":' + "9" * 10_000,
        '"z":-' + "9" * 10_000,
        '"z":1e99999',
        '"z":"\\ud800"',
        '"timeout":1',
    ],
)
def test_unknown_fields_are_ignored(unknown: str) -> None:
    assert parse('{"command":"x",' + unknown + "}").command == "x"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("null", "expected an object, got null"),
        ('"x"', "expected an object, got a string"),
        ("12", "expected an object, got a number"),
        ("9" * 10_000, "expected an object, got a number"),
        ("true", "expected an object, got a boolean"),
        ("{}", "missing field `command`"),
        ("[]", "missing field `command`"),
        ('["x",[],null,{},null,5]', "expected 5 elements at most, got 6"),
        ('{"command":null}', "command must be a string, got null"),
        ('{"command":true}', "command must be a string, got a boolean"),
        ('{"command":"x","args":null}', "args must be an array of strings, got null"),
        ('{"command":"x","args":"a"}', "args must be an array of strings, got a string"),
        ('{"command":"x","args":{}}', "args must be an array of strings, got an object"),
        ('{"command":"x","args":[true]}', "an element of args must be a string, got a boolean"),
        ('{"command":"x","args":[[]]}', "an element of args must be a string, got an array"),
        ('{"command":"x","cwd":1}', "cwd must be a string, got a number"),
        ('{"command":"x","env":null}', "env must be an object of strings, got null"),
        ('{"command":"x","env":[]}', "env must be an object of strings, got an array"),
        ('{"command":"x","env":{"A":1.5}}', "a value in env must be a string, got a number"),
        ('{"command":"x","stdin":[]}', "stdin must be a string, got an array"),
        ('{"command":"x","command":"x"}', "duplicate field `command`"),
        ('{"command":"x","env":{},"env":{}}', "duplicate field `env`"),
        ('{"command":"x","timeout_ms":1,"timeout_ms":1}', "duplicate field `timeout_ms`"),
        ('{"command":"\\ud800"}', "command holds a lone surrogate"),
        ('{"command":"x","env":{"\\udc00":""}}', "a name in env holds a lone surrogate"),
        ('{"command":"x","\\udc00":1}', "a field name holds a lone surrogate"),
        ('{"command":"x","z":NaN}', "NaN is not JSON"),
        ('{"command":"x","z":-Infinity}', "-Infinity is not JSON"),
        ('{"command":"x"} y', "extra data at column 17"),
        *((f'{{"command":"x"}}{other}', "extra data at column 16") for other in NO_SPACE),
        *((f'{other}{{"command":"x"}}', "expecting value at column 1") for other in "\x1c\u200b"),
        ('{"command":\xa0"x"}', "expecting value at column 12"),
        ('{"command":"x"}{"command":"x"}', "extra data at column 16"),
        ('{"command":"x"', "expecting ',' delimiter at column 15"),
        ('{"command":"a\tb"}', "invalid control character at at column 14"),
        ('{"command":"x","z":' + "[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(v1.InvalidRequest) as caught:
        parse(text)
    assert str(caught.value) == reason


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1e3", "true", '"5"', "[]", "2000000001"])
def test_a_timeout_is_a_positive_integer_that_a_timer_can_hold(value: str) -> None:
    with pytest.raises(v1.InvalidRequest, match="timeout_ms must be an integer from 1 to"):
        parse('{"command":"x","timeout_ms":' + value + "}")


def test_a_byte_order_mark_is_refused() -> None:
    with pytest.raises(v1.InvalidRequest):
        v1.parse_request(b'\xef\xbb\xbf{"command":"x"}')


@pytest.mark.parametrize("line", [b"\xff\n", b'{"command":"\xed\xa0\x80"}', b"\xc0\x80"])
def test_a_line_that_is_not_utf8_is_not_answered(line: bytes) -> None:
    with pytest.raises(v1.NotText):
        v1.parse_request(line)
    with pytest.raises(v1.NotText):
        v1.is_blank(line)


def test_blank_is_unicode_white_space_only() -> None:
    assert v1.is_blank(b"\n")
    assert v1.is_blank(" \t\v\f\r\x85\xa0\u2003\u3000\r\n".encode())
    assert not v1.is_blank(b"\x1c\n")
    assert not v1.is_blank("\ufeff\n".encode())
    assert not v1.is_blank(b"x\n")


def test_a_reply_is_compact_and_in_order() -> None:
    assert b"".join(v1.reply_pieces(0, b"hi\n", b"", None)) == (
        b'{"exit_code":0,"stdout":"aGkK","stderr":"","error":null}\n'
    )


def test_an_error_is_written_as_serde_writes_it() -> None:
    reply = b"".join(v1.reply_pieces(-1, b"", b"", 'é"\\\n\x01\x7f/'))
    assert reply.endswith('"error":"é\\"\\\\\\n\\u0001\x7f/"}\n'.encode())


@pytest.mark.parametrize("size", [0, 1, 2, 3, 49_151, 49_152, 49_153, 200_000])
def test_outputs_are_padded_only_at_the_end(size: int) -> None:
    out = bytes(range(256)) * (size // 256) + bytes(size % 256)
    pieces = list(v1.reply_pieces(0, out, b"e", None))
    assert max(map(len, pieces)) <= 64 << 10
    reply = json.loads(b"".join(pieces))
    assert reply["stdout"] == base64.b64encode(out).decode()
    assert reply["stderr"] == "ZQ=="


def test_spawn_errors_carry_the_kernels_reason() -> None:
    assert v1.spawn_error(2) == ("Failed to spawn process: No such file or directory (os error 2)")
    assert v1.spawn_error(0, "no such luck") == "Failed to spawn process: no such luck"


def test_lines_come_out_whole_however_they_arrive() -> None:
    buffer = v1.LineBuffer()
    got: list[bytes | None] = []
    for byte in b"one\ntwo\r\n\nlast":
        buffer.feed(bytes([byte]))
        got += buffer.lines()
    assert got == [b"one\n", b"two\r\n", b"\n"]
    assert buffer.rest() == b"last"
    assert buffer.rest() == b""


@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_long_line_is_reported_once_and_its_rest_dropped(step: int) -> None:
    buffer = v1.LineBuffer(limit=4)
    got: list[bytes | None] = []
    data = b"1234\n12345678901234\nok\n12345\n"
    for start in range(0, len(data), step):
        buffer.feed(data[start : start + step])
        got += buffer.lines()
        assert len(buffer) <= 4 + step
    assert got == [b"1234\n", None, b"ok\n", None]


def test_a_long_last_line_has_no_rest() -> None:
    buffer = v1.LineBuffer(limit=4)
    buffer.feed(b"123456")
    assert list(buffer.lines()) == [None]
    buffer.feed(b"789")
    assert list(buffer.lines()) == []
    assert buffer.rest() == b""
    assert len(buffer) == 0
