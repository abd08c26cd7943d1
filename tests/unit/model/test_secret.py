"""How a secret is asked for: its grammar, its bounds, and errors that never say a value."""

from typing import Any

import pytest

from agentd.egress.placeholders import placeholder
from agentd.model.errors import InvalidInput
from agentd.model.secret import (
    MAX_SECRETS,
    MAX_VALUE,
    AskedSecret,
    Secret,
    SecretValue,
    asked_secrets,
    check_fits,
    check_value,
    parse_secret,
)

VALUE = "sk-ant-api03-ThisIsTheValueOfTheSecret0123456789"


def parsed(text: str) -> AskedSecret:
    return parse_secret(text)


def test_the_short_form() -> None:
    asked = parsed("TOKEN@API.example.com")
    assert (asked.binding.name, asked.binding.hosts) == ("TOKEN", ("api.example.com",))
    assert (asked.source, asked.value, asked.binding.source) == ("", None, "")
    assert asked.binding.endpoints == (("api.example.com", 443),)
    assert asked.binding.places == ("header",)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("T=env:MY_TOKEN@h.example.com", "env:MY_TOKEN"),
        ("T=file:~/a,b=c@h.example.com", "file:~/a,b=c"),
        ("T=file:/a@b/c@h.example.com", "file:/a@b/c"),
        ("T=command:pass show me@home, please@h.example.com", "command:pass show me@home, please"),
        ("T=command:printf 'a\nb'@h.example.com", "command:printf 'a\nb'"),
    ],
)
def test_sources(text: str, source: str) -> None:
    asked = parsed(text)
    assert asked.source == source
    assert asked.binding.hosts == ("h.example.com",)
    assert asked.binding.source == source.partition(":")[0]


def test_hosts_ports_places_and_a_header() -> None:
    asked = parsed("T@one.example.com+two.example.com:8443+one.example.com:443")
    assert asked.binding.hosts == ("one.example.com", "two.example.com:8443")
    assert asked.binding.endpoints[1] == ("two.example.com", 8443)
    assert parsed("T@h.example.com,places=body+header").binding.places == ("header", "body")
    header = parsed("T=env:V@h.example.com,header=Authorization: Bearer {}, a@b").binding.header
    assert header == "Authorization: Bearer {}, a@b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TOKEN", "a secret has no host"),
        ("T@h.example.com,place=body", "behind its hosts"),
        ("T@h.example.com,U@g.example.com", "behind its hosts"),
        ("@h.example.com", "no name"),
        ("1TOKEN@h.example.com", "no name"),
        ("PATH@h.example.com", "secret PATH has the name of a variable"),
        ("T@", "has no host behind its @"),
        (f"T={VALUE}@h.example.com", "no source"),
        ("T=env:@h.example.com", "no source"),
        ("T@*.example.com", "wildcard"),
        ("T@https://h.example.com", "cannot be read|its name alone|has the host"),
        ("T@10.0.0.1", "no name of a host"),
        ("T@localhost", "own"),
        ("T@h.example.com:0", "port"),
        ("T@h.example.com:99999", "port"),
        ("T@h.example.com,places=cookie", "to be put in"),
        ("T@h.example.com,places=", "to be put in"),
        ("T@h.example.com,header=Authorization: Bearer", "without one place"),
        ("T@h.example.com,header=", "header that is none"),
        ("T@h.example.com,header=A: {}{}", "without one place"),
        ("T@h.example.com,header=A b: {}", "header that is none"),
        ("T@h.example.com,header=A: x\r\nB: {}", "header that is none"),
        ("T@h.example.com,header=A: {}" + "x" * 512, "header that is none"),
        ("T=command:" + "x" * 8192 + "@h.example.com", "cannot be read"),
        ("T@h.example.com,header=Content-Length: {}", "the connection's"),
        ("T@h.example.com,header=host: {}", "the connection's"),
        ("T@h.example.com,places=body,header=A: {}", "leave one out"),
        ("T@h.example.com,header=A: {},places=body", "leave one out"),
        ("T@" + "+".join(f"h{n}.example.com" for n in range(17)), "more than 16 hosts"),
    ],
)
def test_mistakes_are_told_without_what_may_be_a_value(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        asked_secrets([text])
    assert VALUE not in f"{caught.value} {caught.value.as_dict()}"
    assert caught.value.remediation


def test_a_value_alone_is_not_said_again() -> None:
    value = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"
    with pytest.raises(InvalidInput, match="has no host") as caught:
        asked_secrets([value])
    assert value not in f"{caught.value} {caught.value.as_dict()}"


def test_two_that_cannot_both_be_had() -> None:
    with pytest.raises(InvalidInput, match="twice"):
        asked_secrets(["T@a.example.com", "T@b.example.com"])
    with pytest.raises(InvalidInput, match="two secrets set the header x-key"):
        asked_secrets(["T@a.example.com,header=X-Key: {}", "U@a.example.com,header=x-key: {}"])
    assert asked_secrets(["T@a.example.com,header=X-Key: {}", "U@b.example.com,header=X-Key: {}"])
    with pytest.raises(InvalidInput, match="more than the 32"):
        asked_secrets([f"T{n}@a.example.com" for n in range(MAX_SECRETS + 1)])
    with pytest.raises(InvalidInput, match="no list"):
        asked_secrets("T@a.example.com")


@pytest.mark.parametrize(
    "value",
    [
        "short12",
        "x" * (MAX_VALUE + 1),
        "a value\r\nX-Admin: yes",
        "a value\nof two lines",
        "a value\x00with a NUL",
        "a value\x7f with a DEL",
        " a value with a space before",
        "a value with one behind ",
        "ein schönes Geheimnis",
    ],
)
def test_a_value_that_no_header_can_hold_is_refused_and_not_said(value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_value("T", value)
    assert value not in f"{caught.value} {caught.value.as_dict()}"


def test_a_short_value_needs_a_header() -> None:
    short = check_value("T", "hunter2hunter2")
    with pytest.raises(InvalidInput, match="too short for a placeholder") as caught:
        check_fits(parsed("T@h.example.com").binding, short)
    assert "hunter2" not in str(caught.value.as_dict())
    check_fits(parsed("T@h.example.com,header=X-Key: {}").binding, short)


@pytest.mark.parametrize(
    "given",
    [
        {"name": "T", "hosts": "api.example.com"},
        {"name": "T", "hosts": ("api.example.com",), "places": "body"},
        {"name": "T", "hosts": ("api.example.com",), "value": b"bytes of the value"},
        {"name": "T", "hosts": ("api.example.com",), "header": None},
        {"name": "T", "hosts": (5,)},
        {"name": 5, "hosts": ("api.example.com",)},
    ],
)
def test_what_python_lets_be_written_is_looked_at(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        asked_secrets([Secret(**given)])
    assert "bytes of" not in str(caught.value.as_dict())


def test_no_repr_has_a_value() -> None:
    assert VALUE not in repr(SecretValue(VALUE)) + str(SecretValue(VALUE))
    secret = Secret(name="T", hosts=("h.example.com",), value=VALUE)
    assert VALUE not in repr(secret) + repr(asked_secrets([secret]))


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (VALUE, "sk-ant-api03-"),
        ("ghp_0123456789abcdefghijABCDEFGHIJ", "ghp_"),
        ("no provider's, twenty and more", ""),
        ("sk-short-one-12", "sk-"),
    ],
)
def test_a_placeholder_has_the_length_and_the_shape(value: str, shape: str) -> None:
    one, other = placeholder(SecretValue(value)), placeholder(SecretValue(value))
    assert one != other
    assert len(one) == max(len(value), 20)
    assert one.startswith(shape)
    assert one[len(shape) :].isalnum()
    assert value[len(shape) : len(shape) + 6] not in one
