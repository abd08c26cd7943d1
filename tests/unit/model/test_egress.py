"""One spelling a rule, and each mistake named with its fix."""

import pytest

from agentd.egress.compile import preset
from agentd.model.egress import MAX_RULES, PRESETS, network, parse_rule, parse_rules
from agentd.model.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("pypi", "pypi"),
        ("preset:PyPI", "pypi"),
        ("!github", "!github"),
        (" API.Example.com ", "api.example.com"),
        ("*.example.com", "*.example.com"),
        ("*.Example.com:443", "*.example.com:443"),
        ("example.com:*", "example.com:*"),
        ("db:5432", "db:5432"),
        ("my_bucket.example.com", "my_bucket.example.com"),
        ("xn--bcher-kva.de", "xn--bcher-kva.de"),
        ("10.1.2.3:05432", "10.1.2.3:5432"),
        ("10.0.0.0/8:*", "10.0.0.0/8:*"),
        ("[2001:0DB8::0:1]:443", "[2001:db8::1]:443"),
        ("[2001:db8::/32]:*", "[2001:db8::/32]:*"),
        ("!10.0.0.0/8", "!10.0.0.0/8"),
        ("!gist.github.com", "!gist.github.com"),
        ("Learn", "learn"),
        ("!gist.github.com:22", "!gist.github.com:22"),
        ("HEAD|get  API.Example.com/V1/*", "GET|HEAD api.example.com/V1/*"),
        ("OPTIONS|GET|HEAD a.example.com/**", "read a.example.com/**"),
        ("Read *.example.com:8443", "read *.example.com:8443/**"),
        ("api.example.com/%7eme/a%2fb%20c", "api.example.com/~me/a%2Fb%20c"),
        ("!delete api.example.com", "!DELETE api.example.com/**"),
        ("api.example.com/https://x", "api.example.com/https://x"),
        ("Ask  API.example.com", "ask api.example.com"),
        ("ask *.example.com:*", "ask *.example.com:*"),
        ("ask 10.0.0.0/8:5432", "ask 10.0.0.0/8:5432"),
        ("ask preset:pypi", "ask pypi"),
        ("ASK Public", "ask public"),
    ],
)
def test_a_rule_has_one_spelling_which_says_the_same(text: str, canonical: str) -> None:
    rule = parse_rule(text)
    assert rule.text == canonical
    assert parse_rule(rule.text) == rule


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "write a preset"),
        ("ask ", "write ask api.example.com, or ask public"),
        ("ask *", "--net host"),
        ("ask 10.1.2.3", "write it as 10.1.2.3:443"),
        ("ask !example.com", "write !example.com, or leave ! out"),
        ("!ask example.com", "write !example.com, or leave ! out"),
        ("!ask public", "name what is needed"),
        ("ask read example.com", "ask about the host, as ask example.com"),
        ("ask example.com/v1", "ask about the host, as ask example.com"),
        ("ask ask example.com", "write ask public"),
        ("ask learn", "write ask public"),
        ("ask private", "name what is needed"),
        ("public", "write ask public, or name what is needed"),
        ("!", "write a preset"),
        ("*", "--net host"),
        ("*:443", "--net host"),
        ("*.", "--net host"),
        ("*.com", "*.example.com"),
        ("*.co.uk", "*.example.com"),
        ("a.*.com", "at the front"),
        ("a*.example.com", "at the front"),
        ("*.*.example.com", "at the front"),
        ("example.com.", "write example.com"),
        ("bücher.de", "write it as xn--bcher-kva.de"),
        ("*.bücher.de:443", "write it as *.xn--bcher-kva.de"),
        ("pypy", "use one of crates"),
        ("pypy", "did you mean pypi? use one"),
        ("preset:pypy", "use one of crates"),
        ("npmjs", "did you mean npm?"),
        ("pypi,npm", "each as a text of its own"),
        ("preset:a.b", "preset:pypi"),
        ("none", "as pypi"),
        ("host", "ask for host alone, or for rules, as pypi"),
        ("!learn", "as pypi"),
        ("public", "as pypi"),
        ("localhost", "always there"),
        ("localhost:80", "always there"),
        ("a.localhost", "always there"),
        ("example.com:0", "from 1 to 65535"),
        ("example.com:65536", "from 1 to 65535"),
        ("example.com:https", "from 1 to 65535"),
        ("example.com:", "from 1 to 65535"),
        ("example.com:٤٤٣", "from 1 to 65535"),
        ("example.com:80:80", "in brackets"),
        ("https://pypi.org/simple", "write its host, as pypi.org"),
        ("10.1.2.3", "write it as 10.1.2.3:443"),
        ("0x7f.1:80", "four decimal numbers"),
        ("2130706433:80", "four decimal numbers"),
        ("127.1:80", "four decimal numbers"),
        ("010.1.2.3:80", "four decimal numbers"),
        ("example.0x7f:80", "four decimal numbers"),
        ("10.1.2.3/8:80", "write 10.0.0.0/8"),
        ("10.0.0.0/255.0.0.0:80", "write 10.0.0.0/8"),
        ("10.0.0.0/33:80", "four decimal numbers"),
        ("2001:db8::1", "in brackets"),
        ("2001:db8::1:443", "in brackets"),
        ("[1.2.3.4]:80", "in brackets"),
        ("[fe80::1%eth0]:80", "in brackets"),
        ("[::ffff:1.2.3.4]:80", "write 1.2.3.4"),
        ("[::1", "in brackets"),
        ("-a.example.com", "write a preset"),
        ("a..example.com", "write a preset"),
        ("a b.example.com", "read api.example.com"),
        ("CONNECT api.example.com", "nobody's proxy"),
        ("get|x y.example.com", "read api.example.com"),
        ("read pypi", "as read api.example.com"),
        ("pypi/simple", "as read api.example.com"),
        ("GET 10.1.2.3:443", "[[egress.host]]"),
        ("10.1.2.3:443/v1", "[[egress.host]]"),
        ("GET [2001:db8::1]:443/v1", "[[egress.host]]"),
        ("api.example.com/v1?a=b", "leave out what follows"),
        ("api.example.com/ü", "write it as /%C3%BC"),
        ("api.example.com/a b", "as %20"),
        ("api.example.com/%zz", "as %20"),
        ("api.example.com/a/../b", "that is meant"),
        ("api.example.com/a/%2e%2E/b", "that is meant"),
        ("api.example.com/***", "** is anything"),
        ("api.example.com/" + "*a" * 17, "at most 16"),
        ("api.example.com/" + "a" * 1024, "at most 1024"),
        ("exa\0mple.com", "write a preset"),
        ("x" * 64 + ".example.com", "write a preset"),
        ("a." * 130 + "com", "253"),
        (5, "write a preset"),
    ],
)
def test_a_mistake_is_named_with_its_fix(text: str, told: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_rule(text)
    assert told in raised.value.remediation


def test_rules_are_had_once_and_are_bounded() -> None:
    texts = [rule.text for rule in parse_rules(["npm", "PYPI", "preset:npm", "pypi"])]
    assert texts == ["npm", "pypi"]
    names = [f"n{number}.example.com" for number in range(MAX_RULES)]
    assert len(parse_rules([*names, names[0]])) == MAX_RULES
    with pytest.raises(InvalidInput, match="more than 256"):
        parse_rules([*names, "one.example.com"])
    with pytest.raises(InvalidInput, match="more than 16384 characters"):
        parse_rules([f"{'x' * 60}.{'x' * 60}.n{number}.example.com" for number in range(200)])
    with pytest.raises(InvalidInput, match="no list of texts"):
        parse_rules("pypi")


def test_a_network_is_none_the_hosts_or_rules() -> None:
    assert network(None) == network("none") == ("none", ())
    assert network("host") == ("host", ())
    assert network("pypi, api.example.com") == ("restricted", ("pypi", "api.example.com"))
    assert network(["pypi"]) == ("restricted", ("pypi",))
    assert network([]) == ("restricted", ())
    for wrong in ("", " ", "pypi,", "none,pypi", ["host"], "restricted", 5, [5]):
        with pytest.raises(InvalidInput):
            network(wrong)  # type: ignore[arg-type]


def test_each_preset_is_a_file_of_names_on_one_port() -> None:
    for name in PRESETS:
        found = preset(name)
        assert found.version >= 1 and found.about and found.source.startswith("https://")
        for rule in map(parse_rule, found.rules):
            assert rule.allow and rule.host
            assert name == "debian" or rule.ports == (443,)
            assert bool(rule.path) == (name == "github-read")
