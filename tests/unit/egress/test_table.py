"""What a table made of rules says of names, addresses and ports."""

from ipaddress import ip_address

import pytest

from agentd.egress.compile import compile_table
from agentd.egress.learned import shortest
from agentd.egress.paths import read
from agentd.egress.table import EgressTable
from agentd.model.egress import EgressBounds, StaticHost, parse_rule
from agentd.model.errors import InvalidInput, Refused
from agentd.model.network import ConnectionView


def table(*texts: str) -> EgressTable:
    return EgressTable(compile_table(texts))


@pytest.mark.parametrize(
    ("rules", "name", "port", "by"),
    [
        (["pypi"], "pypi.org", 443, "pypi"),
        (["pypi"], "PyPI.ORG.", 443, "pypi"),
        (["pypi"], "pypi.org", 22, None),
        (["pypi"], "test.pypi.org", 443, None),
        (["pypi"], "pypi.org.example.com", 443, None),
        (["api.example.com"], "api.example.com", 80, "api.example.com"),
        (["api.example.com"], "api.example.com", 8080, None),
        (["*.example.com"], "a.b.example.com", 443, "*.example.com"),
        (["*.example.com"], "example.com", 443, None),
        (["*.example.com"], "badexample.com", 443, None),
        (["example.com:*"], "example.com", 65535, "example.com:*"),
        (["*.example.com", "!gist.example.com"], "gist.example.com", 443, None),
        (["*.example.com", "!gist.example.com"], "a.gist.example.com", 443, "*.example.com"),
        (["gist.example.com", "!*.example.com"], "gist.example.com", 443, None),
        (["gist.example.com", "!*.example.com:80"], "gist.example.com", 443, "gist.example.com"),
        (["github", "!github"], "github.com", 443, None),
        ([], "pypi.org", 443, None),
    ],
)
def test_names(rules: list[str], name: str, port: int, by: str | None) -> None:
    verdict = table(*rules).of_name(name, port)
    assert verdict.allowed is (by is not None)
    if by is not None:
        assert verdict.rule == by and not verdict.reason
    else:
        assert verdict.reason


def test_only_a_name_that_some_port_is_allowed_of_is_resolved() -> None:
    rules = table("*.example.com", "db.internal:5432", "!gist.example.com", "!ftp.example.com:21")
    assert rules.of_question("a.example.com").allowed and rules.of_question("DB.internal.").allowed
    assert rules.of_question("ftp.example.com").allowed
    for name in ("example.com", "gist.example.com", "com", "", ".", "10.1.2.3"):
        assert not rules.of_question(name).allowed


@pytest.mark.parametrize(
    ("rules", "address", "port", "allowed"),
    [
        (["10.1.2.3:5432"], "10.1.2.3", 5432, True),
        (["10.1.2.3:5432"], "::ffff:10.1.2.3", 5432, True),
        (["10.1.2.3:5432"], "10.1.2.3", 22, False),
        (["10.1.2.3:5432"], "10.1.2.4", 5432, False),
        (["10.0.0.0/8:*"], "10.200.0.1", 22, True),
        (["10.0.0.0/8:*", "!10.1.0.0/16"], "10.1.0.1", 22, False),
        (["0.0.0.0/0:443"], "8.8.8.8", 443, True),
        (["0.0.0.0/0:443"], "192.168.1.1", 443, False),
        (["[2001:db8::/32]:443"], "2001:db8::5", 443, True),
        (["[::/0]:443"], "fd00::1", 443, False),
        (["[fd00::/8]:443"], "fd00::1", 443, True),
        (["pypi", "*.example.com"], "151.101.0.223", 443, False),
        (["10.0.0.0/8:443"], "64:ff9b::10.1.2.3", 443, True),
        (["[::/0]:443", "[64:ff9b::/96]:443"], "64:ff9b::8.8.8.8", 443, False),
        (["0.0.0.0/0:443"], "64:ff9b::10.1.2.3", 443, False),
        (["0.0.0.0/0:443", "![64:ff9b::/96]"], "64:ff9b::8.8.8.8", 443, False),
    ],
)
def test_addresses(rules: list[str], address: str, port: int, allowed: bool) -> None:
    assert table(*rules).of_address(ip_address(address), port).allowed is allowed


@pytest.mark.parametrize(
    ("rules", "address", "allowed"),
    [
        (["db.example.com"], "93.184.216.34", True),
        (["db.example.com"], "10.1.2.3", True),
        (["*.example.com"], "93.184.216.34", True),
        (["*.example.com"], "10.1.2.3", False),
        (["*.example.com"], "::ffff:10.1.2.3", False),
        (["*.example.com", "10.0.0.0/8:443"], "10.1.2.3", True),
        (["*.example.com", "10.0.0.0/8:5432"], "10.1.2.3", False),
        (["*.example.com", "0.0.0.0/0:443"], "10.1.2.3", False),
        (["db.example.com", "!10.0.0.0/8"], "10.1.2.3", False),
        (["db.example.com", "!93.184.216.0/24"], "93.184.216.34", False),
        (["*.example.com"], "64:ff9b::10.1.2.3", False),
        (["db.example.com", "!10.0.0.0/8"], "64:ff9b::10.1.2.3", False),
        (["db.example.com", "![::/0]"], "64:ff9b::8.8.8.8", False),
    ],
)
def test_what_a_name_is_resolved_to(rules: list[str], address: str, allowed: bool) -> None:
    """A wildcard reaches no private address: who has the domain chooses what its names are."""
    found = table(*rules)
    named = found.of_name("db.example.com", 443)
    assert named.allowed
    answer = found.of_answer(named, ip_address(address), 443)
    assert answer.allowed is allowed and bool(answer.reason) is not allowed


def test_learning_is_all_that_is_public() -> None:
    found = table("learn", "!gist.github.com")
    assert found.of_question("com").allowed and found.of_question("a.example.com").allowed
    assert not found.of_question("").allowed and not found.of_question("gist.github.com").allowed
    named = found.of_name("a.example.com", 22)
    assert (named.allowed, named.rule) == (True, "learn")
    assert found.of_answer(named, ip_address("93.184.216.34"), 22).allowed
    assert not found.of_answer(named, ip_address("10.0.0.1"), 22).allowed
    assert found.of_address(ip_address("93.184.216.34"), 22).allowed
    assert not found.of_address(ip_address("fd00::1"), 22).allowed
    with pytest.raises(Refused):
        compile_table(["learn"], EgressBounds(allow=("*.example.com", "10.0.0.0/8:*")))
    assert compile_table(["learn"], EgressBounds(allow=("public",)))["rules"]


@pytest.mark.parametrize(
    "rule",
    [
        "127.0.0.1:80",
        "127.0.0.0/8:*",
        "169.254.169.254:80",
        "224.0.0.1:*",
        "[::1]:80",
        "0.1.2.3:1",
    ],
)
def test_what_is_nobodys_to_grant_is_told(rule: str) -> None:
    with pytest.raises(InvalidInput, match="nobody's to grant"):
        compile_table([rule])
    compile_table([f"!{rule}", "0.0.0.0/0:443", "[::/0]:443"])


def test_the_shortest_rules_of_what_was_done() -> None:
    done = [
        *(("pypi.org", 443), ("files.pythonhosted.org", 443), ("pypi.org", 443)),
        *(("github.com", 443), ("b.example.com", 443), ("b.example.com", 80)),
        *(("a.example.com", 8443), ("a.example.com", 443), ("", 53), ("c.example.com", None)),
    ]
    rows = [
        ConnectionView(n, name, "2001:db8::1", port, allowed=True)
        for n, (name, port) in enumerate(done)
    ]
    assert shortest(rows) == (
        "pypi",
        "[2001:db8::1]:53",
        *("a.example.com:443", "a.example.com:8443"),
        "b.example.com",
        "github.com",
    )
    found = table(*shortest(rows))
    assert all(found.of_name(name, port).allowed for name, port in done if name and port)
    assert shortest([]) == ()


def test_no_preset_reaches_a_private_address() -> None:
    found = table("pypi")
    assert not found.of_answer(found.of_name("pypi.org", 443), ip_address("10.0.0.1"), 443).allowed


def test_the_operator_answers_for_names_of_their_own() -> None:
    bounds = EgressBounds(hosts=(StaticHost("db.internal", "127.0.0.1", 5432),))
    found = EgressTable(compile_table(["db.internal:5432"], bounds))
    assert found.static("DB.internal") == ("127.0.0.1", 5432)
    assert found.static("other.internal") is None
    assert found.of_name("db.internal", 5432).allowed
    assert not found.of_name("db.internal", 22).allowed
    assert not EgressTable(compile_table(["pypi"], bounds)).of_question("db.internal").allowed


def test_this_machine_is_reached_at_the_ports_that_rules_have_by_its_name_alone() -> None:
    own = "host.agentd.internal"
    found = table(f"{own}:5432", f"{own}:6379", "*.agentd.internal:*", "learn", f"!{own}:6379")
    assert found.static(own.upper(), 5432) == ("127.0.0.1", 5432)
    assert found.of_name(own, 5432).rule == f"{own}:5432"
    for port in (22, 80, 443, 6379):  # neither by a wildcard, nor by learn
        assert not found.of_name(own, port).allowed
    assert found.of_name("other.agentd.internal", 22).allowed
    assert not table(f"{own}:5432", "!*.agentd.internal").of_name(own, 5432).allowed
    for rules in (["learn"], ["*.agentd.internal:*"], ["pypi"]):
        assert table(*rules).static(own, 5432) is None
    for wrong in (own, f"{own}:*"):
        with pytest.raises(InvalidInput, match="name each that is meant"):
            parse_rule(wrong)


@pytest.mark.parametrize(
    "allow", [["public", "private"], ["host.agentd.internal:22"], ["*.agentd.internal:5432"]]
)
def test_a_port_of_this_machine_is_granted_by_an_operators_very_rule(allow: list[str]) -> None:
    asked = ["host.agentd.internal:5432"]
    with pytest.raises(Refused, match="not allowed here"):
        compile_table(asked, EgressBounds(tuple(allow)))
    found = EgressTable(compile_table(asked, EgressBounds((*allow, *asked))))
    assert found.static(asked[0].partition(":")[0], 5432) == ("127.0.0.1", 5432)


@pytest.mark.parametrize(
    ("rules", "name", "port", "by", "asks"),
    [
        (["ask example.com"], "example.com", 443, "ask example.com", True),
        (["ask example.com"], "example.com", 22, "", False),
        (["ask *.example.com", "example.com"], "example.com", 443, "example.com", False),
        (["ask api.example.com", "*.example.com"], "api.example.com", 443, "*.example.com", False),
        (["ask example.com:*", "example.com:22"], "example.com", 22, "example.com:22", False),
        (["ask example.com:*", "example.com:22"], "example.com", 80, "ask example.com:*", True),
        (["ask example.com", "!example.com:80"], "example.com", 80, "!example.com:80", False),
        (["ask public"], "example.com", 22, "ask public", True),
        (["ask public", "learn"], "example.com", 22, "learn", False),
        (["ask public", "pypi"], "pypi.org", 443, "pypi", False),
        (["ask public"], "8.8.8.8", 53, "ask public", True),
        (["ask public"], "10.1.2.3", 53, "", False),
        (["ask 10.0.0.0/8:*"], "10.1.2.3", 53, "ask 10.0.0.0/8:*", True),
        (["ask 10.0.0.0/8:*", "10.1.2.3:53"], "10.1.2.3", 53, "10.1.2.3:53", False),
        (["ask debian"], "deb.debian.org", 80, "ask debian", True),
    ],
)
def test_who_is_asked(rules: list[str], name: str, port: int, by: str, asks: bool) -> None:
    """What denies wins over what allows, and that over what asks."""
    made = table(*rules)
    verdict = made.of_address(ip_address(name), port) if name[0].isdigit() else None
    verdict = verdict or made.of_name(name, port)
    assert (verdict.rule, verdict.ask, made.asks(name, port)) == (by, asks, asks)
    assert verdict.allowed is (by != "" and not by.startswith("!"))


def test_requests_are_of_rules_that_need_no_question() -> None:
    """A rule that asks lets nothing through beside those that allow some requests of a host."""
    made = table("GET example.com/v1", "ask example.com")
    verdict = made.of_name("example.com", 443)
    assert (verdict.read, verdict.ask) == (True, False)
    assert made.of_request("example.com", 443, "GET", read("/v1")).allowed
    assert not made.of_request("example.com", 443, "POST", read("/v1")).allowed
    # Where it alone allows, what is denied of its requests is.
    made = table("ask example.com", "!DELETE example.com")
    verdict = made.of_name("example.com", 443)
    assert (verdict.read, verdict.ask) == (True, True)
    assert made.of_request("example.com", 443, "GET", read("/")).allowed
    assert not made.of_request("example.com", 443, "DELETE", read("/")).allowed


def test_a_question_about_a_network_lets_no_name_lead_into_it() -> None:
    made = table("*.example.com", "ask 10.0.0.0/8:443")
    named = made.of_name("a.example.com", 443)
    assert not made.of_answer(named, ip_address("10.1.2.3"), 443).allowed
    made = table("ask a.example.com")
    assert made.of_answer(made.of_name("a.example.com", 443), ip_address("10.1.2.3"), 443).allowed


def test_a_preset_of_requests_is_not_asked_about() -> None:
    with pytest.raises(InvalidInput, match="asks about requests"):
        compile_table(["ask github-read"])


@pytest.mark.parametrize(
    ("allow", "rule", "granted"),
    [
        (["public"], "ask public", True),
        (["*.example.com"], "ask api.example.com", True),
        (["*.example.com"], "ask public", False),
        (["example.com:443"], "ask example.com:22", False),
        ([], "ask example.com", False),
    ],
)
def test_what_may_not_be_granted_is_not_asked_about(
    allow: list[str], rule: str, granted: bool
) -> None:
    if granted:
        compile_table([rule], EgressBounds(tuple(allow)))
    else:
        with pytest.raises(Refused, match="is not allowed here"):
            compile_table([rule], EgressBounds(tuple(allow)))


def test_nobody_is_asked_where_nothing_is_dialled() -> None:
    assert table("record", "ask example.com").of_name("example.com", 443).ask
    verdict = table("replay", "ask example.com").of_name("example.com", 443)
    assert verdict.allowed and verdict.read and not verdict.ask
