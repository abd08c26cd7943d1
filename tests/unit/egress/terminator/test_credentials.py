"""Secrets put where their placeholders are, and placeholders where secrets come back."""

import base64
import json

import msgspec
import pytest

from agentd.egress.placeholders import placeholder
from agentd.egress.terminator.credentials import (
    CredentialRefusal,
    Credentials,
    HeldSecret,
    HostCredentials,
    convert_secrets,
    pack_secrets,
)
from agentd.egress.terminator.replacing import Replacer
from agentd.model.secret import SecretValue, parse_secret

KEY = "sk-ant-TheKeyOfTheTest0123456789abcdef"
TOKEN = "ghp_AnotherTokenOfTheTest9876543210"
HOST = "api.example.com"


def secret(text: str, value: str, standing: str = "") -> HeldSecret:
    binding = parse_secret(text).binding
    made = standing or placeholder(SecretValue(value))
    return HeldSecret(msgspec.structs.replace(binding, placeholder=made), SecretValue(value))


def at(*secrets: HeldSecret, host: str = HOST, port: int = 443) -> HostCredentials:
    found = Credentials(secrets).for_host(host, port)
    assert found is not None
    return found


def headers(found: HostCredentials, **given: str) -> dict[str, str]:
    pairs = [(name.replace("_", "-").encode(), text.encode()) for name, text in given.items()]
    _, out = found.head(b"GET", b"/", pairs)
    return {name.decode().lower(): text.decode() for name, text in out}


KEYED = secret("KEY@api.example.com", KEY)
HELD = KEYED.placeholder.decode()


def test_a_header_for_credentials_has_the_value() -> None:
    out = headers(at(KEYED), authorization=f"Bearer {HELD}", x_api_key=HELD, accept="text/html")
    assert out["authorization"] == f"Bearer {KEY}"
    assert out["x-api-key"] == KEY
    assert out["accept"] == "text/html"
    assert out["accept-encoding"] == "identity"


def test_basic_is_decoded_and_encoded_again_and_its_echo_is_known() -> None:
    found = at(KEYED)
    said = base64.b64encode(f"me:{HELD}".encode()).decode()
    sent = headers(found, authorization=f"basic {said}")["authorization"]
    assert base64.b64decode(sent.removeprefix("Basic ")) == f"me:{KEY}".encode()
    echo = found.answer_body()
    body = f'{{"authorization": "{sent}"}}'.encode()
    assert echo.feed(body) + echo.finish() == body.replace(sent[6:].encode(), said.encode())


@pytest.mark.parametrize(
    "text", ["basic", "Basic !!!", "Basic bm9ib2R5OnBsYWNlaG9sZGVy", "Digest x"]
)
def test_what_is_no_placeholder_stays(text: str) -> None:
    assert headers(at(KEYED), authorization=text)["authorization"] == text


@pytest.mark.parametrize(
    "name",
    [
        *("user_agent", "x_title", "referer", "accept", "x_author", "monkeys"),
        *("x_amz_meta_token", "idempotency_key", "sec_websocket_key"),
    ],
)
def test_a_header_that_is_not_for_credentials_gets_none(name: str) -> None:
    with pytest.raises(CredentialRefusal, match="is not put into the header") as caught:
        headers(at(KEYED), **{name: HELD})
    assert caught.value.code == "credential_place" and not caught.value.alarm
    assert KEY not in f"{caught.value} {caught.value.remediation}"


def test_a_target_has_it_only_where_it_was_said() -> None:
    with pytest.raises(CredentialRefusal, match="target"):
        at(KEYED).head(b"GET", f"/v1?key={HELD}".encode(), [])
    there = secret("KEY@api.example.com,places=target", "a b/c?d&e=f%g:0123456789")
    target, _ = at(there).head(b"GET", b"/v1?key=" + there.placeholder, [])
    assert target == b"/v1?key=a%20b%2Fc%3Fd%26e%3Df%25g:0123456789"


def test_bodies_stay_as_they_are_unless_it_was_said() -> None:
    """A model that is asked to spell a key would have it otherwise."""
    found = at(KEYED)
    found.head(b"POST", b"/", [(b"content-type", b"application/json")])
    body = f'{{"prompt": "spell {HELD}"}}'.encode()
    passed = found.body()
    assert passed.feed(body) + passed.finish() == body


def test_a_body_has_it_where_it_was_said_cut_at_every_byte() -> None:
    there = secret("KEY@api.example.com,places=body", KEY)
    body = b'{"a": "' + there.placeholder + b'", "b": "' + there.placeholder * 2 + b'"}'
    wanted = body.replace(there.placeholder, KEY.encode())
    for cut in range(len(body) + 1):
        found = at(there)
        found.head(b"POST", b"/", [(b"content-type", b"application/json")])
        passed = found.body()
        out = passed.feed(body[:cut]) + passed.feed(body[cut:]) + passed.finish()
        assert out == wanted
    passed = found.body()
    assert b"".join(passed.feed(body[n : n + 1]) for n in range(len(body))) == wanted


@pytest.mark.parametrize(
    ("value", "content", "fits"),
    [
        ('a"quote in the value 0123', "application/json", False),
        ("a\\backslash in the value 0123", "application/json", False),
        ("an&ampersand in the value<0123", "text/xml", False),
        ("a+plus/and=base64==0123456789", "application/json", True),
        ("a+plus/and=base64==0123456789", "application/x-www-form-urlencoded", False),
        ("plain.enough-for_forms~0123456789", "application/x-www-form-urlencoded", True),
    ],
)
def test_a_value_that_would_have_to_be_quoted_is_refused_in_a_body(
    value: str, content: str, fits: bool
) -> None:
    there = secret("KEY@api.example.com,places=body", value)
    found = at(there)
    found.head(b"POST", b"/", [(b"Content-Type", content.encode())])
    passed = found.body()
    if fits:
        assert passed.feed(there.placeholder) + passed.finish() == value.encode()
        return
    with pytest.raises(CredentialRefusal) as caught:
        passed.feed(there.placeholder)
    assert caught.value.code == "credential_unfit"
    assert value not in f"{caught.value} {caught.value.remediation}"


def test_a_header_is_set_in_place_of_all_that_is_taken_for_it() -> None:
    short = secret("KEY@api.example.com,header=X-Api-Key: key={}", "hunter2hunter2")
    _, out = at(short).head(
        b"GET", b"/", [(b"X-API-KEY", b"mine"), (b"x_api_key", b"mine too"), (b"Host", b"h")]
    )
    assert [pair for pair in out if b"api" in pair[0].lower()] == [
        (b"X-Api-Key", b"key=hunter2hunter2")
    ]
    assert (b"Host", b"h") in out


def test_a_placeholder_that_goes_elsewhere_is_refused_and_an_alarm() -> None:
    there = at(KEYED, host="evil.example.com")
    basic = base64.b64encode(f"x:{HELD}".encode()).decode()
    escaped = f"%{ord(HELD[0]):02x}{HELD[1:]}"
    for target, given in (
        (f"/?k={HELD}", []),
        (f"/{escaped}", []),
        ("/", [(b"x-note", HELD.encode())]),
        ("/", [(b"authorization", f"Basic {basic}".encode())]),
    ):
        with pytest.raises(CredentialRefusal, match=r"is not for evil\.example\.com") as caught:
            there.head(b"GET", target.encode(), given)
        assert caught.value.alarm and caught.value.code == "credential_elsewhere"
        assert caught.value.secret == "KEY"
    there.head(b"POST", b"/", [])
    for cut in range(1, len(HELD)):
        passed = there.body()
        assert passed.feed(HELD[:cut].encode()) == b""
        with pytest.raises(CredentialRefusal):
            passed.feed(HELD[cut:].encode())


def test_each_host_has_its_own_and_refuses_the_others() -> None:
    other = secret("TOKEN@git.example.com:8443", TOKEN)
    both = Credentials([KEYED, other])
    git = both.for_host("git.example.com", 8443)
    assert git is not None
    assert headers(git, authorization=other.placeholder.decode())["authorization"] == TOKEN
    with pytest.raises(CredentialRefusal, match=r"is not for git\.example\.com"):
        headers(git, authorization=HELD)
    wrong_port = both.for_host("git.example.com", 443)
    assert wrong_port is not None
    with pytest.raises(CredentialRefusal):
        headers(wrong_port, authorization=other.placeholder.decode())
    assert Credentials([]).for_host(HOST, 443) is None


def test_a_host_of_no_secret_is_asked_as_it_was() -> None:
    there = at(KEYED, host="other.example.com")
    given = [(b"Accept-Encoding", b"gzip"), (b"Range", b"bytes=0-1")]
    assert there.head(b"TRACE", b"/", given) == (b"/", given)
    answer = [(b"content-encoding", b"gzip")]
    assert there.answer_head(206, answer) == answer


def test_without_tls_no_secret_is_for_a_host() -> None:
    plain = Credentials([KEYED]).for_host(HOST, 443, tls=False)
    assert plain is not None
    with pytest.raises(CredentialRefusal, match="is not for") as caught:
        headers(plain, authorization=HELD)
    assert caught.value.alarm


def test_an_answer_has_the_placeholder_cut_at_every_byte() -> None:
    body = f'{{"headers": {{"Authorization": "Bearer {KEY}"}}, "again": "{KEY}{KEY}"}}'.encode()
    wanted = body.replace(KEY.encode(), HELD.encode())
    assert len(wanted) == len(body)
    for cut in range(len(body) + 1):
        passed = at(KEYED).answer_body()
        assert passed.feed(body[:cut]) + passed.feed(body[cut:]) + passed.finish() == wanted


def test_how_much_of_an_answer_comes_tells_nothing_of_the_value() -> None:
    """Else who has a host say something back could try what the value begins with."""
    for text in ("", "sk-ant-The", "sk-ant-thE", KEY[:-1], "xyz" * 40, f"{KEY[:9]}\n", "\n" * 9):
        told = []
        for wrong in (False, True):
            passed = at(secret("KEY@api.example.com", KEY[::-1] if wrong else KEY)).answer_body()
            pieces = [b"a" * 100 + text.encode(), b"TheKey", b"more\n", b"."]
            told.append([len(passed.feed(piece)) for piece in pieces])
            assert sum(told[-1][:3]) == sum(map(len, pieces[:3]))  # a line that ends waits no more
        assert told[0] == told[1]


def test_a_websockets_frames_come_whole_and_without_the_value() -> None:
    def frame(payload: bytes) -> bytes:
        size = len(payload)
        if size < 126:
            return bytes([0x81, size]) + payload
        length = b"\x7e" + size.to_bytes(2) if size < 1 << 16 else b"\x7f" + size.to_bytes(8)
        return b"\x81" + length + payload

    key = KEY.encode()
    payloads = [b"", b"short", key[:12], b"<" + key + b">", b"x" * 200 + key, key * 2000, b"end"]
    for size in (1, 2, 3, 7, 100, 1 << 20):
        found = at(KEYED)
        found.answer_head(101, [(b"Upgrade", b"websocket")])
        passed = found.answer_body()
        for payload in payloads:
            said = frame(payload)
            out = b"".join(passed.feed(said[n : n + size]) for n in range(0, len(said), size))
            assert out == said.replace(key, HELD.encode())
        assert passed.finish() == b""


def test_a_value_in_base64_is_found_wherever_it_begins() -> None:
    for before in range(4):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            said = encode(b"x" * before + KEY.encode() + b"?more")
            passed = at(KEYED).answer_body()
            out = passed.feed(said) + passed.finish()
            assert len(out) == len(said)
            shown = base64.b64decode(out.replace(b"*", b"A"), b"-_" if b"_" in said else None)
            assert KEY[2:8].encode() not in shown and KEY[-8:-2].encode() not in shown


def test_no_more_basic_credentials_are_sent_than_are_known_again() -> None:
    found = at(KEYED)
    sent = []
    with pytest.raises(CredentialRefusal, match="Basic"):
        for n in range(40):
            said = base64.b64encode(f"{n}:{HELD}".encode()).decode()
            sent.append(headers(found, authorization=f"Basic {said}")["authorization"])
    for each in sent:
        passed = found.answer_body()
        out = passed.feed(each.encode()) + passed.finish()
        assert HELD.encode() in base64.b64decode(out.removeprefix(b"Basic "))


def test_an_answers_head_has_no_value() -> None:
    found = at(KEYED).answer_head(302, [(b"Location", f"https://evil/?k={KEY}".encode())])
    assert found == [(b"Location", f"https://evil/?k={HELD}".encode())]


@pytest.mark.parametrize("spell", [json.dumps, lambda v: json.dumps(v).replace("/", "\\/")])
def test_a_value_comes_back_in_the_spelling_of_json(spell: "object") -> None:
    value = 'a/value"with\\all of+it<&>0123456789'
    there = secret("KEY@api.example.com", value)
    spelled = spell(value).strip('"').encode()  # type: ignore[operator]
    passed = at(there).answer_body()
    out = passed.feed(b"<" + spelled + b">") + passed.finish()
    assert len(out) == len(spelled) + 2
    assert b"with" not in out and out.startswith(b"<" + there.placeholder[:20])


@pytest.mark.parametrize(
    "spelled",
    [
        "AbCdEf0123\\u002B/xyz\\u003C\\u003E\\u0026quot==",
        "AbCdEf0123+/xyz\\u003c\\u003e\\u0026quot==",
        "AbCdEf0123+\\/xyz\\u003C\\u003E\\u0026quot==",
        "AbCdEf0123+&#x2F;xyz&lt;&gt;&amp;quot&#x3D;&#x3D;",
        "AbCdEf0123&#x2B;/xyz&lt;&gt;&amp;quot==",
        "AbCdEf0123&#43;/xyz&lt;&gt;&amp;quot==",
        "AbCdEf0123+/xyz&lt;&gt;&amp;quot&#x3D;&#x3D;",
    ],
)
def test_a_value_comes_back_as_encoders_of_other_languages_write_it(spelled: str) -> None:
    """.NET, Go and Rails, PHP; mustache, ASP.NET, html/template, handlebars."""
    passed = at(secret("KEY@api.example.com", "AbCdEf0123+/xyz<>&quot==")).answer_body()
    out = passed.feed(b"<" + spelled.encode() + b">") + passed.finish()
    assert len(out) == len(spelled) + 2
    assert b"0123" not in out


def test_a_value_comes_back_in_the_spelling_of_a_url() -> None:
    there = secret("KEY@api.example.com,places=target", "a b/c?d&e=f%g:0123456789")
    for spelled in (
        b"a%20b%2Fc%3Fd%26e%3Df%25g%3A0123456789",
        b"a+b%2fc%3fd%26e%3df%25g:0123456789",
    ):
        passed = at(there).answer_body()
        assert b"0123456789" not in passed.feed(spelled) + passed.finish()


@pytest.mark.parametrize(
    ("status", "given", "method", "passes"),
    [
        (200, [(b"Content-Encoding", b"gzip")], b"GET", False),
        (200, [(b"Content-Encoding", b"identity")], b"GET", True),
        (200, [(b"Transfer-Encoding", b"gzip, chunked")], b"GET", False),
        (200, [(b"Transfer-Encoding", b"chunked")], b"GET", True),
        (206, [], b"GET", False),
        (304, [(b"Content-Encoding", b"br")], b"GET", True),
        (200, [(b"Content-Encoding", b"br")], b"HEAD", True),
    ],
)
def test_an_answer_that_cannot_be_looked_at_is_refused(
    status: int, given: list[tuple[bytes, bytes]], method: bytes, passes: bool
) -> None:
    found = at(KEYED)
    _, sent = found.head(method, b"/", [(b"Accept-Encoding", b"gzip"), (b"Range", b"bytes=0-9")])
    assert sent == [(b"Accept-Encoding", b"identity")]
    if passes:
        assert found.answer_head(status, given) == given
        return
    with pytest.raises(CredentialRefusal) as caught:
        found.answer_head(status, given)
    assert caught.value.code == "credential_encoded"


def test_trace_is_refused_and_frames_are_not_compressed() -> None:
    with pytest.raises(CredentialRefusal, match="TRACE"):
        at(KEYED).head(b"trace", b"/", [])
    _, sent = at(KEYED).head(b"GET", b"/", [(b"Sec-WebSocket-Extensions", b"permessage-deflate")])
    assert sent == [(b"Accept-Encoding", b"identity")]


def test_a_value_with_a_line_of_its_own_is_never_held() -> None:
    with pytest.raises(ValueError, match="no header can hold"):
        Credentials([secret("KEY@api.example.com", "a value\r\nX-Admin: 1", "p" * 20)])


def test_they_travel_as_json() -> None:
    binding, values = KEYED.binding, {"KEY": KEYED.value}
    sent = json.loads(json.dumps(pack_secrets([binding], values)))
    found = convert_secrets(sent).for_host(HOST, 443)
    assert found is not None
    assert headers(found, authorization=HELD)["authorization"] == KEY
    assert pack_secrets([binding], {}) == []


def test_a_replacer_holds_back_only_what_may_begin_a_text() -> None:
    texts = {b"aab": lambda _: b"1", b"aabc": lambda _: b"2", b"bcd": lambda _: b"3"}
    whole = b"aaabcdaabxaabcbcdaab"
    wanted = b"a2d1x231"
    for first in range(len(whole) + 1):
        for second in range(first, len(whole) + 1):
            each = Replacer(texts)
            parts = (whole[:first], whole[first:second], whole[second:])
            assert b"".join(map(each.feed, parts)) + each.finish() == wanted
    held = Replacer({b"data:x": lambda _: b""})
    assert held.feed(b"data: hello\n\n") == b"data: hello\n\n"
