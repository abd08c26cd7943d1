"""Frames of a WebSocket, whose payloads are masked: seen and changed, wherever they are cut."""

import os

import pytest
from tests.unit.egress.terminator.test_credentials import HELD, HOST, KEY, at, secret

from agentd.egress.terminator.credentials import CredentialRefusal
from agentd.egress.terminator.frames import MAX_WHOLE, BadFrame, ClientFrames

TEXT, MORE, PING = 1, 0, 9


def frame(
    payload: bytes, opcode: int = TEXT, *, fin: bool = True, key: bytes = b"\x01\xfe\x37a"
) -> bytes:
    first = bytes((opcode | (128 if fin else 0),))
    masked = 128 if key else 0
    if len(payload) < 126:
        size = bytes((masked | len(payload),))
    elif len(payload) < 1 << 16:
        size = bytes((masked | 126,)) + len(payload).to_bytes(2, "big")
    else:
        size = bytes((masked | 127,)) + len(payload).to_bytes(8, "big")
    body = bytes(byte ^ key[n % 4] for n, byte in enumerate(payload)) if key else payload
    return first + size + key + body


def test_a_payload_is_seen_and_changed_cut_at_every_byte() -> None:
    said = frame(b"hello") + frame(b"ping", PING) + frame(b"x" * 200, key=os.urandom(4))
    wanted = frame(b"HELLO") + frame(b"ping", PING)
    for cut in range(len(said) + 1):
        seen: list[bytes] = []
        frames = ClientFrames(seen.append, bytes.upper)
        out = frames.feed(said[:cut]) + frames.feed(said[cut:]) + frames.finish()
        assert out.startswith(wanted)
        assert len(out) == len(said)
        assert seen == [b"hello", b"x" * 200]


def test_a_large_one_goes_on_in_pieces_and_is_seen_as_it_is() -> None:
    payload = os.urandom(MAX_WHOLE + 5)
    said = frame(payload) + frame(b"then", key=b"")
    seen: list[bytes] = []
    frames = ClientFrames(seen.append, bytes.upper)
    out = b"".join(frames.feed(said[n : n + 9973]) for n in range(0, len(said), 9973))
    assert out == frame(payload) + frame(b"THEN", key=b"")
    assert b"".join(seen) == payload + b"then"


def test_many_frames_in_one_piece_and_one_over_many_are_the_same() -> None:
    said = frame(b"a") * 5000 + frame(b"y" * MAX_WHOLE) + frame(b"b") * 3000
    seen: list[bytes] = []
    frames = ClientFrames(seen.append, bytes.upper)
    out = frames.feed(said)
    assert out == frame(b"A") * 5000 + frame(b"Y" * MAX_WHOLE) + frame(b"B") * 3000
    assert seen == [b"a"] * 5000 + [b"y" * MAX_WHOLE] + [b"b"] * 3000


def test_what_is_no_frame_is_refused_and_what_is_cut_off_goes_on() -> None:
    with pytest.raises(BadFrame):
        ClientFrames(bytes, bytes).feed(bytes((TEXT | 128 | 0x40,)))
    cut = frame(b"hello")[:-1]
    frames = ClientFrames(bytes, bytes)
    assert frames.feed(cut) == b""
    assert frames.finish() == cut


def test_a_placeholder_over_a_websocket_elsewhere_is_an_alarm() -> None:
    keyed = secret("KEY@api.example.com", KEY, HELD)
    for cut in (0, 1, len(HELD) // 2):
        tunnel = at(keyed, host="other.example.com").tunnel()
        first, rest = HELD[:cut].encode(), HELD[cut:].encode()
        with pytest.raises(CredentialRefusal, match="is not for") as caught:
            tunnel.feed(frame(b"{" + first, fin=False) + frame(b"", PING) + frame(rest, MORE))
        assert caught.value.alarm


def test_a_host_of_its_own_gets_it_where_bodies_do() -> None:
    there = at(secret("KEY@api.example.com,places=body", KEY, HELD), host=HOST).tunnel()
    assert there.feed(frame(f"auth {HELD}".encode())) == frame(f"auth {KEY}".encode())
    stays = at(secret("KEY@api.example.com", KEY, HELD), host=HOST).tunnel()
    assert stays.feed(frame(HELD.encode())) == frame(HELD.encode())
