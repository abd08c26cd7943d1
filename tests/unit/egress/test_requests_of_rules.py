"""Which requests rules allow, which of their connections are read, and who may be granted them."""

import pytest

from agentd.egress import paths
from agentd.egress.compile import compile_table
from agentd.egress.table import EgressTable, EgressVerdict
from agentd.model.egress import EgressBounds
from agentd.model.errors import Refused

HOST = "api.example.com"


def table(*rules: str, allow: tuple[str, ...] | None = None) -> EgressTable:
    return EgressTable(compile_table(rules, EgressBounds(allow)))


def asked(found: EgressTable, method: str, target: str, host: str = HOST) -> EgressVerdict:
    return found.of_request(host, 443, method, paths.read(target))


@pytest.mark.parametrize(
    ("rules", "read"),
    [
        ([HOST], False),
        ([f"GET {HOST}"], True),
        ([f"{HOST}/**"], True),
        ([HOST, f"GET {HOST}/v1/*"], False),  # which allows no more than the other
        ([HOST, f"!DELETE {HOST}"], True),
        (["*.example.com", f"!{HOST}/private/**"], True),
        (["learn", f"!{HOST}/private/**"], True),
        ([f"{HOST}:8443", f"GET {HOST}:443"], True),
        ([f"GET {HOST}:8443", HOST], False),
    ],
)
def test_connections_are_read_where_their_requests_matter(rules: list[str], read: bool) -> None:
    verdict = table(*rules).of_name(HOST, 443)
    assert verdict.allowed and verdict.read is read
    other = table(*rules, "other.example.org").of_name("other.example.org", 443)
    assert other.allowed and not other.read


@pytest.mark.parametrize(
    ("pattern", "within", "without"),
    [
        ("/v1/*", ["/v1/x", "/v1/", "/v1/x?y=/z", "/v1/%78"], ["/v1", "/v1/x/y", "/V1/x", "/"]),
        ("/v1/**", ["/v1/", "/v1/x/y"], ["/v1", "/v10/x"]),
        ("/**", ["/", "/a/b?c"], []),
        ("/*/info", ["/a/info"], ["/a/b/info", "/info", "/a/info/"]),
        ("/**/info", ["/a/b/info"], ["/info", "/a/infos"]),
        ("/a*c", ["/ac", "/abc"], ["/a/c", "/abcd"]),
        ("/a%20b", ["/a%20b"], ["/a+b"]),
        # As servers may read them: each way has to be allowed.
        ("/v1/x", [], ["/v1//x", "/v1/x;a=b", "/v1/x/"]),
        ("/v1/*", ["/v1/x;a=b"], ["//v1/x", "/v1;/x/y", "/v1/./x"]),
        ("/v1/**", ["/v1/debian/./Packages", "/v1/././x"], ["/./v1/x"]),
        # An escaped slash is one where the rule has one.
        ("/p/*", [], ["/p/a%2Fb"]),
        ("/p/@*%2F*", ["/p/@a%2fb"], ["/p/@a/b"]),
    ],
)
def test_a_pattern_has_the_paths_that_it_says(
    pattern: str, within: list[str], without: list[str]
) -> None:
    found = table(f"GET {HOST}{pattern}")
    assert [target for target in within if not asked(found, "GET", target).allowed] == []
    assert [target for target in without if asked(found, "GET", target).allowed] == []
    assert not any(asked(found, "POST", target).allowed for target in within)


@pytest.mark.parametrize(
    "target",
    [
        *("/private/x", "//private/x", "/private;a/x", "/%70rivate/x", "/private//x"),
        *("/private%2Fx", "/;a/private/x", "/./private/x", "/private/.//./x"),
    ],
)
def test_what_is_denied_is_so_in_every_spelling(target: str) -> None:
    found = table(HOST, f"!{HOST}/private/**")
    verdict = asked(found, "GET", target)
    assert not verdict.allowed and verdict.rule == f"!{HOST}/private/**"
    assert asked(found, "GET", "/public/x").allowed


@pytest.mark.parametrize(
    "target",
    [
        *("/v1/../x", "/v1/..", "/v1/.", "/v1/%2e/x", "/v1/.%2e/x", "/v1/.;a/x", "/v1/..;a/x"),
        *("/v1/./../x", "/v1%2F..%2Fx", "/v1/.%2F./x"),
    ],
)
def test_what_leads_elsewhere_for_some_servers_is_no_path(target: str) -> None:
    with pytest.raises(ValueError, match=r"has \. or \.\. in its path"):
        paths.read(target)


@pytest.mark.parametrize(
    "target", ["/Private/x", "/PRIVATE%2Fx", "/repos/Acme/It/", "/REPOS/acme/it"]
)
def test_capitals_and_a_slash_at_the_end_escape_no_rule(target: str) -> None:
    """Repositories of GitHub, and all of some servers, are named in any case."""
    found = table(HOST, f"!{HOST}/private/**", f"!{HOST}/repos/acme/it")
    assert not found.of_request(HOST, 443, "GET", paths.read(target)).allowed
    # What is allowed is so as it is written.
    only = table(f"{HOST}/private/**", f"{HOST}/repos/acme/it")
    assert not only.of_request(HOST, 443, "GET", paths.read(target)).allowed


def test_what_is_asked_has_to_lie_within_what_may_be_granted() -> None:
    allow = (f"GET|HEAD {HOST}/v1/**", "*.example.org", f"!DELETE {HOST}")
    for rule in (f"GET {HOST}/v1/x/*", f"HEAD {HOST}:443/v1/y", f"GET {HOST}/v1/**"):
        assert table(rule, allow=allow).of_name(HOST, 443).read
    assert table("POST a.example.org/x", allow=allow).of_name("a.example.org", 443).read
    for rule in (
        *(HOST, f"{HOST}/v1/x", f"POST {HOST}/v1/x", f"read {HOST}/v1/x"),
        *(f"GET {HOST}/v2/x", f"GET {HOST}/**", f"GET {HOST}:8443/v1/x", f"GET *.{HOST}/v1/x"),
    ):
        with pytest.raises(Refused, match="is not allowed here"):
            table(rule, allow=allow)
    whole = table(HOST, allow=(HOST, f"!DELETE {HOST}"))
    assert whole.of_name(HOST, 443).read
    assert not asked(whole, "DELETE", "/x").allowed and asked(whole, "GET", "/x").allowed


def test_no_path_takes_long() -> None:
    """What is compared goes on and never back: this would take years."""
    pattern = "/" + "*a" * 15 + "b"
    assert not paths.matches(pattern, "/" + "a" * 5000)
    assert not paths.matches(pattern.replace("*", "**"), "/" + "a" * 5000)
