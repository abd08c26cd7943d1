import os
import pwd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.daemon.config.values import (
    SHIPPED_BUNDLES,
    Bundle,
    Duration,
    FilePath,
    ListenAddress,
    Mode,
    Name,
    Sink,
    Size,
    Uid,
)
from agentd.model.errors import InvalidInput


@given(st.integers(1, (1 << 53) - 1))
def test_a_size_reads_back(value):
    assert Size.of(str(Size(value))) == Size.of(value) == value


@given(st.integers(1, 86400 * 366 * 1000).map(lambda ms: ms / 1000))
def test_a_time_reads_back(value):
    assert Duration.of(str(Duration(value))) == pytest.approx(value)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Size, [True, 1.5, "1 apple", "", None, 0, -1]),
        (Duration, [True, "2 weeks", [], 0, -1, 0.0009,  float("nan")]),
        (Name, ["", "a b", "uid:0", "x" * 65, 1, "ä", "a\n", "-a"]),
        (FilePath, ["a/b", "", 1, "/a\0b", "./x"]),
        (Mode, [432, "0888", "660 ", "rw", "01777", "٦٦٠"]),
        (Bundle, ["", "Strict", "strict ", "./strict", "a/b", None, 1, "/a\0b"]),
        (Sink, ["", "stderr", "stdout:1", "http:", "ftp://a/", "otlp", "otlp:", "syslog:", None]),
        (Uid, [-1, True, 1.0, "Root", "a b", "", None, 1 << 32]),
        (
            ListenAddress,
            ["", ":80", "host", "host:", "host:65536", "host:-1", "host:\uff18", "a b:80", "[x]:80",
             "::1:80", "unix:", "unix:x", "unix:@x", "unix:/" + "x" * 107, "http://a:80", 80],
        ),
    ],
)  # fmt: skip
def test_what_is_no_such_value_says_so(kind, wrong):
    for value in wrong:
        with pytest.raises(InvalidInput) as caught:
            kind.of(value)
        assert caught.value.remediation, value


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("unix:/run/a.sock", True),
        ("127.0.0.1:80", True),
        ("127.8.8.8:0", True),
        ("localhost:80", True),
        ("[::1]:80", True),
        ("0.0.0.0:80", False),
        ("[::]:80", False),
        ("10.0.0.1:80", False),
        ("localhost.example:80", False),
        ("agentd.example:8443", False),
    ],
)
def test_an_address_and_who_reaches_it(text, loopback):
    address = ListenAddress.of(text)
    assert (str(address), address.loopback) == (text, loopback)


def test_a_mode_is_octal():
    assert Mode.of("0660") == Mode.of("660") == 0o660
    assert str(Mode(0o600)) == "0600"


def test_users_are_resolved_where_they_are_used():
    name = pwd.getpwuid(0).pw_name
    assert [Uid.of(u).resolve() for u in (7, "7", name, "self", "*")] == [
        7,
        7,
        0,
        os.geteuid(),
        "*",
    ]
    with pytest.raises(InvalidInput, match="no user 'nobody-here'"):
        Uid.of("nobody-here").resolve()


@pytest.mark.parametrize("name", SHIPPED_BUNDLES)
def test_a_policy_is_one_that_is_shipped_or_a_folder(name):
    assert Bundle.of(name) == name
    assert Bundle.of("/etc/agentd/../policy/") == "/etc/policy"


@pytest.mark.parametrize(
    "text",
    [
        "stdout",
        "syslog",
        "syslog:udp:log:514",
        "https://log/in",
        "http://log/in",
        "otlp:https://c/",
    ],
)
def test_a_sink_stays_as_it_is_written(text):
    assert Sink.of(text) == text


def test_a_path_is_plain():
    assert FilePath.of("/a//b/../c") == "/a/c"
    assert FilePath.of("~/x") == os.path.join(os.path.expanduser("~"), "x")
