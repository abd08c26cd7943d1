import os
import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.auth.jwt import ALGORITHMS
from agentd.daemon import config
from agentd.daemon.config import PROFILES, RELOADED, Config, Problem
from agentd.daemon.config.problem import dotted
from agentd.daemon.config.reader import known_keys
from agentd.daemon.config.schema import LimitBounds
from agentd.daemon.config.values import Algorithm, Isolation, Scope
from agentd.model.errors import InvalidInput
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.principal import SCOPES
from agentd.sandbox.backends import identity


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "agentd.toml"
        path.write_text(text)
        return str(path)

    return write


def one(problems):
    (problem,) = problems
    return problem


def sound(read):
    """Its warnings but those of a machine without a control group of ours."""
    return [each for each in read.warnings if "virtual machines alone" not in each.message]


# --- what is wrong, where, and what would be right ---


@pytest.mark.parametrize(
    ("text", "line", "key", "hint"),
    [
        ("[deamon]\nstate = '/x'\n", 1, "deamon", "did you mean 'daemon'?"),
        ("\n[leases]\n\ndefualt = '5m'\n", 4, "leases.defualt", "did you mean 'default'?"),
        ("leases.defualt = '5m'", 1, "leases.defualt", "did you mean 'default'?"),
        ("leases = {\"default\" = '5m', mx = '9m'}", 1, "leases.mx", "did you mean 'max'?"),
        (
            "[[listen]]\naddress = '127.0.0.1:1'\n[[listen]]\naddress = 'unix:/x'\nmod = '0600'\n",
            5,
            "listen[1].mod",
            "did you mean 'mode'?",
        ),
        ("[sandbox]\nmemory = '3G'\n", 2, "sandbox.memory", "'quotas.default.memory'?"),
        ("[log]\nqqq = 1", 2, "log.qqq", "known: level, format"),
        ("zzz = 1", 1, "zzz", "known: profile, daemon, listen"),
        ("[egress]\nallow = ['pubic']", 2, "egress.allow[0]", "did you mean 'public'?"),
        (
            "[[template]]\nname = 'web'\nnet = ['pypi', 'npm']",
            3,
            "template[0].net",
            'write it as one text: "pypi,npm"',
        ),
        ("[sandbox]\nminimum = 'namespce'", 2, "sandbox.minimum", "did you mean 'namespace'?"),
        ("[sandbox]\nminimum = 3", 2, "sandbox.minimum", "use one of: none, process"),
        ("profile = 'sever'", 1, "profile", "did you mean 'server'?"),
        (
            "[[template]]\nname = 'a'\nlimits = {memory = '1G'}",
            3,
            "template[0].limits",
            "[limits] is a section of its own; known here: memory, ",
        ),
        ("profile = 7", 1, "profile", "use one of: workstation, server, paranoid"),
        ("auth.peers = [{uid = 'self', scopes = ['runn']}]", 1, "auth.peers[0].scopes[0]", "'run'"),
        ("[leases]\ndefault = '2 weeks'", 2, "leases.default", "write it as 250ms, 2s"),
        ("[[pool]]\nmin = -1", 2, "pool[0].min", "0 or more"),
        ("[[pool]]\nmin = true", 2, "pool[0].min", ""),
        ("[[pool]]\nmin = 1.0", 2, "pool[0].min", ""),
        ("[quotas.default]\nrequests = nan", 2, "quotas.default.requests", "0 or more"),
        ("[auth.keys]\nenabled = 'yes'", 2, "auth.keys.enabled", ""),
        ("[pool]\nmin = 1", 1, "pool", "write it as [[pool]]"),
        ("log = 'debug'", 1, "log", "write it as [log]"),
        ("quotas.principals = 1", 1, "quotas.principals", "write it as [quotas.principals]"),
        ("sandbox.networks = 'none'", 1, "sandbox.networks", "in brackets"),
        ("[[listen]]\nmode = '0600'", 1, "listen[0]", "it needs: address"),
        ("[quotas.principals.'a b']\nsandbxes = 1", 2,
         'quotas.principals."a b".sandbxes', "'sandboxes'"),
        ("policy.bundle = 'x'", 1, "policy.bundle", "a folder as /a/b"),
        ("policy.sha256 = ''", 1, "policy.sha256", ""),
        ('policy.sha256 = "\\u0000"', 1, "policy.sha256", ""),
        ("[auth.keys\n", 1, "", ""),
        ("a = 1\na = 2", 2, "", ""),
        ("a = [", 1, "", ""),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named_with_its_line_and_the_nearest_right_one(file, text, line, key, hint):
    problem = one(config.check(file(text), {}))
    assert (problem.line, problem.key) == (line, key)
    assert hint in problem.suggestion and problem.message


def test_every_problem_is_told_at_once_in_the_order_of_the_file(file):
    problems = config.check(file("[log]\nlevel = 'x'\nformt = 1\n[leases]\nmax = []\n"), {})
    assert [(p.line, p.key) for p in problems] == [
        (2, "log.level"),
        (3, "log.formt"),
        (5, "leases.max"),
    ]


@given(st.sampled_from(sorted(set(known_keys()))), st.data())
def test_a_slip_of_the_pen_finds_its_way_back(key, data):
    """A character that is doubled, in any key of a table, suggests the right key."""
    *section, leaf = key.split(".")
    if len(leaf) < 4 or "*" in key or any(f"{part}[" in ARRAYS for part in section):
        return
    at = data.draw(st.integers(0, len(leaf) - 1))
    wrong = leaf[: at + 1] + leaf[at:]
    layers = config.layers.Layers()
    layers.tree = tree = {}
    for part in section:
        tree[part] = tree = {}
    tree[wrong] = 1
    typed = config.reader.ConfigReader(layers.problem)
    typed.read(layers.tree)
    assert one(typed.problems).suggestion == f"did you mean {leaf!r}?"


ARRAYS = "listen[peers[jwt[certificates[pool[template[host["


# --- what must hold between settings ---

TCP = "[[listen]]\naddress = '{}'\n"
JWT = "[[auth.jwt]]\nname = 'a'\nissuer = 'i'\naudience = ['x']\nalgorithms = ['RS256']\n"


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ("listen = []", 1, "listen", "listens nowhere"),
        (TCP.format("0.0.0.0:80"), 2, "listen[0].address", "in the clear"),
        (TCP.format("agentd.example:80"), 2, "listen[0].address", "in the clear"),
        ("daemon.insecure = true\n" + TCP.format("0.0.0.0:80") + "plain = true", 3,
         "listen[0].address", "without a credential"),
        ("auth.keys.enabled = false\n" + TCP.format("0.0.0.0:80") + "plain = true", 3,
         "listen[0].address", "nobody could authenticate"),
        ("auth.keys.enabled = false\n" + TCP.format("127.0.0.1:80"), 3, "listen[0].address",
         "nobody could authenticate"),
        (TCP.format("127.0.0.1:80") * 2, 4, "listen[1].address", "there twice"),
        (TCP.format("127.0.0.1:80") + "group = 'x'", 3, "listen[0].group", "unix socket"),
        (TCP.format("unix:/x") + "cert = '/bin/sh'", 1, "listen[0]", "has no TLS"),
        (TCP.format("127.0.0.1:80") + "cert = '/bin/sh'", 3, "listen[0].cert", "needs 'key'"),
        (TCP.format("127.0.0.1:80") + "client_ca = '/bin/sh'", 3, "listen[0].client_ca", "'cert'"),
        (JWT, 1, "auth.jwt[0]", "from one place"),
        (JWT + "jwks_url = 'http://x.example'", 6, "auth.jwt[0].jwks_url", "cannot be trusted"),
        (JWT + "jwks_url = 'https://[x'", 6, "auth.jwt[0].jwks_url", "Invalid IPv6"),
        (JWT + "jwks_file = '/absent/x'", 6, "auth.jwt[0].jwks_file", "no file '/absent/x'"),
        (JWT + "jwks_file = '/'", 6, "auth.jwt[0].jwks_file", "is no file"),
        (JWT.replace("['x']", "[]") + "jwks_url = 'https://x'", 4, "auth.jwt[0].audience", "empty"),
        ("[[auth.peers]]\nuid = 'nobody-here'", 2, "auth.peers[0].uid", "no user"),
        ("[[auth.peers]]\nuid = '*'\nprincipal = 'all'", 3, "auth.peers[0].principal", "one princ"),
        ("[auth.keys]\nmax_ttl = '1h'\ndefault_ttl = '2h'", 3, "auth.keys.default_ttl", "max_ttl"),
        ("[leases]\nmax = '1m'", 1, "leases", "is more than leases.max"),
        ("limits.max.memory = '1G'\nlimits.default.memory = '2G'", 2, "limits.default.memory",
         "is more than limits.max.memory"),
        ("journal.total = '1M'", 1, "journal", "is more than journal.total"),
        ("[[pool]]\nmin = 9", 2, "pool[0].min", "is more than max"),
        ("[[pool]]\nisolation = 'process'", 2, "pool[0].isolation", "less than sandbox.minimum"),
        ("".join(f"[[template]]\nname = 't{n}'\n" for n in range(65)), 1, "template", "over 64"),
        ("[[template]]\nname = 'a'\nmin = 9", 3, "template[0].min", "is more than max"),
        ("sandbox.networks = ['none']\n[[template]]\nname = 'a'\nnet = 'host'", 4,
         "template[0].net", "sandbox.networks"),
        ("[[template]]\nname = 'a'\nisolation = 'process'", 3, "template[0].isolation", "less"),
        ("[[template]]\nname = 'a'\nimage = '/x'", 3, "template[0].image", "image"),
        ("[[template]]\nname = 'a'\nimage = 'b'\nnet = 'pypy'", 4, "template[0].net", "pypi"),
        ("sandbox.networks = ['host']\n[[template]]\nname = 'a'\nnet = 'host'\nnet_bytes = '1M'", 5,
         "template[0].net_bytes", "bounds a network of rules"),
        ("[[template]]\nname = 'a'\nnet_rate = '1M'", 3, "template[0].net_rate", "bounds"),
        ("[[template]]\nname = 'a'\n[[template]]\nname = 'a'", 4, "template[1].name", "twice"),
        ("sandbox.backends = ['linux']\n[[template]]\nname = 'a'\nbackend = 'oci'", 4,
         "template[0].backend", "sandbox.backends"),
        ("limits.max.pids = 9\n[[template]]\nname = 'a'\npids = 99", 4, "template[0].pids",
         "limits.max.pids"),
        ("[[egress.host]]\nname = 'A.b'\naddress = '10.0.0.1:1'\n" * 2, 5, "egress.host[1].name",
         "there twice"),
        ("[[egress.host]]\nname = '*.b'\naddress = '10.0.0.1:1'", 2, "egress.host[0].name",
         "no name of a host"),
        ("[[egress.host]]\nname = 'a.b'\naddress = '10.0.0.1'", 3, "egress.host[0].address",
         "no port"),
        ("[[egress.host]]\nname = 'a.b'\naddress = '10.0.0.0/8:1'", 3, "egress.host[0].address",
         "no address and port"),
        ("egress.allow = ['pypy']", 1, "egress.allow[0]", "is no preset"),
        ("policy.sha256 = 'ab'", 1, "policy.sha256", "no SHA-256"),
        (f"policy.sha256 = '{'ab' * 32}'\npolicy.bundle = 'none'", 1, "policy.sha256", "no policy"),
        ("auth.signed.required = true", 1, "auth.signed.required", "nobody could sign"),
        ("auth.signed.signers = '/absent/x'", 1, "auth.signed.signers", "no directory '/absent/x'"),
        ("auth.signed.signers = '/bin/sh'", 1, "auth.signed.signers", "no directory"),
        ("auth.signed.max_age = '2h'", 1, "auth.signed.max_age", "more than an hour"),
        ("[auth.signed]\nmax_age = '20s'", 1, "auth.signed", "more than max_age"),
        ("approvals.max = 0", 1, "approvals.max", "ever be approved"),
        ("ids.start = 1000", 1, "ids.start", "machine's own users"),
        ("ids.start = 2000000001", 1, "ids.start", "overlap"),
        ("ids.blocks = 3", 1, "ids.blocks", "too few"),
        ("ids.blocks = 99999", 1, "ids.blocks", "above the kernel's last id"),
        ("policy.bundle = '/absent/x'", 1, "policy.bundle", "no folder"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(file, text, line, key, message):
    problem = one(config.check(file(text), {}))
    assert message in problem.message
    # What only the other setting says is shown where the section begins.
    assert (problem.line, problem.key.startswith(key)) == (line, True)


@pytest.mark.root
@pytest.mark.parametrize("which", [0, 1], ids=["users", "groups"])
def test_ids_that_somebody_has_for_containers_are_refused(file, tmp_path, monkeypatch, which):
    others = (tmp_path / "subuid", tmp_path / "subgid")
    monkeypatch.setattr(identity, "SUBORDINATE", tuple(map(str, others)))
    text = "[ids]\nstart = 2000000000\nblocks = 8\n"  # to 2000524287
    for first, count in ((2_000_524_287, 65536), (1_999_934_465, 65536), (2_000_100_000, 1)):
        others[which].write_text(f"nobody:1:9\nalice:{first}:{count}\n")
        problem = one(config.check(file(text), {}))
        assert (problem.line, problem.key) == (2, "ids.start")
        assert f"{others[which]} gives 'alice'" in problem.message
    for first, count in ((2_000_524_288, 65536), (1_999_934_464, 65536), (100_000, 65536)):
        others[which].write_text(f"alice:{first}:{count}\n")
        assert config.check(file(text), {}) == []


def test_what_is_wrong_among_the_signers_is_told(file, tmp_path):
    folder = tmp_path / "signers"
    folder.mkdir(mode=0o755)
    text = f"[auth.signed]\nrequired = true\nsigners = '{folder}'\n"
    assert config.check(file(text), {}) == []
    (folder / "alice.pem").write_text("no key")
    problem = one(config.check(file(text), {}))
    assert (problem.line, problem.key) == (3, "auth.signed.signers")
    assert problem.message == "alice.pem: it is no public key in PEM"
    (folder / "alice.pem").unlink()
    folder.chmod(0o777)
    assert "others may write" in one(config.check(file(text), {})).message


def test_signatures_and_approvals_are_shown_and_taken_over(file):
    text = "[auth.signed]\naudience = 'build-1'\nmax_age = '1m'\n[approvals]\nttl = '5m'\nmax = 7\n"
    before, after = config.load(None, {}), config.load(file(text), {})
    assert 'auth.signed.audience = "build-1"' in config.render(after)
    assert "approvals.self_approve = false" in config.render(after)
    assert 'auth.signed.signers = "none"' in config.render(after)
    assert (after.auth.signed.max_age, after.approvals.ttl) == (60.0, 300.0)
    found = config.changes(before, after)
    assert found.waiting == ()
    assert set(found.reloaded) == {
        "auth.signed.audience",
        "auth.signed.max_age",
        "approvals.ttl",
        "approvals.max",
    }


def test_policy_audit_and_capabilities_are_read(file):
    found = config.load(
        file(
            "[policy]\nbundle = 'strict'\n"
            "[audit]\nfile = '1M'\nfiles = 3\nkeep = '7d'\nsinks = ['stdout', 'https://log/in']\n"
            "receipts = '2M'\n"
            "[capabilities]\nfetch_hosts = ['*.example.org']\nfetch_networks = ['10.1.0.0/16']\n"
        ),
        {},
    )
    assert (found.policy.bundle, found.policy.sha256) == ("strict", None)
    audit = found.audit
    assert (audit.file, audit.files, audit.keep) == (1 << 20, 3, 7 * 86400)
    assert audit.sinks == ("stdout", "https://log/in") and audit.receipts == 2 << 20
    assert found.capabilities.fetch_hosts == ("*.example.org",)
    assert found.capabilities.fetch_networks == ("10.1.0.0/16",)


@pytest.mark.parametrize(
    ("profile", "bundle"),
    [("workstation", "permissive"), ("server", "strict"), ("paranoid", "paranoid")],
)
def test_a_profile_has_its_policy_and_none_is_said_in_so_many_words(file, profile, bundle):
    assert config.load(None, {"AGENTD_PROFILE": profile}).policy.bundle == bundle
    said = file("policy.bundle = 'none'")
    assert config.load(said, {"AGENTD_PROFILE": profile}).policy.bundle is None


def test_issuers_are_told_apart(file):
    text = JWT + "jwks_url = 'https://x'\n" + JWT.replace("'i'", "'j'") + "jwks_url = 'https://x'"
    assert one(config.check(file(text), {})).key == "auth.jwt[1].name"


def test_any_free_port_may_be_had_twice(file):
    assert config.check(file(TCP.format("127.0.0.1:0") * 2), {}) == []


def test_certificates_need_a_listener_that_asks_for_them(file):
    text = "[[auth.certificates]]\nmatch = 'ci'\nprincipal = 'ci'\n"
    assert [p.key for p in config.check(file(text), {})] == [
        "auth.certificates",
        "auth.certificates[0].match",
    ]


@pytest.fixture
def tls(tmp_path):
    for name in ("cert", "key", "ca"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o640)
    return (
        f"[[listen]]\naddress = '0.0.0.0:8443'\ncert = '{tmp_path}/cert'\n"
        f"key = '{tmp_path}/key'\nclient_ca = '{tmp_path}/ca'\n"
    )


def test_tls_and_a_way_to_authenticate_make_the_network_fine(file, tls):
    certificates = "[[auth.certificates]]\nmatch = 'dns:ci'\nprincipal = 'ci'\n"
    assert config.check(file(tls), {}) == []
    assert config.check(file("auth.keys.enabled = false\n" + tls + certificates), {}) == []
    one(config.check(file("auth.keys.enabled = false\n" + tls), {}))
    # Certificates let nobody in where none is asked for.
    beside = "auth.keys.enabled = false\n" + tls + TCP.format("127.0.0.1:80") + certificates
    assert one(config.check(file(beside), {})).key == "listen[1].address"


def test_a_private_key_is_private(file, tls, tmp_path):
    (tmp_path / "key").chmod(0o644)
    assert "private key" in one(config.check(file(tls), {})).message


def test_insecure_is_for_loopback(file):
    text = "daemon.insecure = true\nauth.keys.enabled = false\n" + TCP.format("127.0.0.1:80")
    assert config.check(file(text), {}) == []


# --- files ---


def test_what_is_no_file_is_a_problem(tmp_path, file):
    assert "No such file" in one(config.check(str(tmp_path / "absent"), {})).message
    assert "Is a directory" in one(config.check(str(tmp_path), {})).message
    (tmp_path / "latin").write_bytes(b"a = 1\nb = '\xe4'\n")
    assert one(config.check(str(tmp_path / "latin"), {})) == Problem(2, "", "not UTF-8")
    (tmp_path / "huge").write_text("#" * (config.MAX_BYTES + 1))
    assert "bytes" in one(config.check(str(tmp_path / "huge"), {})).message
    deep = file("a = " + "[" * 5000 + "]" * 5000)
    assert one(config.check(deep, {})).message


def test_a_file_that_everybody_may_write_is_no_configuration(file):
    path = file("")
    os.chmod(path, 0o646)  # noqa: S103
    assert "everybody may write" in one(config.check(path, {})).message


def test_where_the_file_is_looked_for(tmp_path):
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert config.find(env, 1000) in (None, "/etc/agentd/agentd.toml")
    (tmp_path / "agentd").mkdir()
    (tmp_path / "agentd/agentd.toml").write_text("")
    assert config.find(env, 1000) == f"{tmp_path}/agentd/agentd.toml"
    assert config.find(env, 0) in (None, "/etc/agentd/agentd.toml")
    assert config.find(env | {"AGENTD_CONFIG": "/x"}, 0) == "/x"


# --- layers ---


def test_the_layers_stand_above_each_other(file):
    path = file("profile = 'server'\n[log]\nlevel = 'debug'\n[leases]\ndefault = '5m'\n")
    env = {"AGENTD_LEASES__DEFAULT": "6m", "AGENTD_DAEMON__STATE": "/env"}
    found = config.load(path, env, [(("daemon", "state"), "/option")])
    assert found.log.level == "debug" and found.log.format == "json"
    assert (found.leases.default, found.leases.max) == (360, 86400)
    assert found.daemon.state == "/option" and found.profile == "server"


def test_an_array_takes_the_place_of_the_presets(file):
    found = config.load(file("[[listen]]\naddress = '127.0.0.1:80'\n"), {})
    assert [str(listen.address) for listen in found.listen] == ["127.0.0.1:80"]


@pytest.mark.parametrize(
    ("name", "value", "get", "expected"),
    [
        ("AGENTD_LOG__LEVEL", "debug", lambda c: c.log.level, "debug"),
        ("AGENTD_HTTP__CONNECTIONS", "7", lambda c: c.http.connections, 7),
        ("AGENTD_DAEMON__DRAIN", "2.5", lambda c: c.daemon.drain, 2.5),
        ("AGENTD_DAEMON__DRAIN", '"9s"', lambda c: c.daemon.drain, 9),
        ("AGENTD_METRICS__ENABLED", "false", lambda c: c.metrics.enabled, False),
        ("AGENTD_SANDBOX__BACKENDS", '["linux"]', lambda c: c.sandbox.backends, ("linux",)),
        ("AGENTD_LISTEN__0__MODE", '"0660"', lambda c: c.listen[0].mode, 0o660),
        ("AGENTD_SANDBOX__NETWORKS__1", "none", lambda c: c.sandbox.networks[:2], ("none", "none")),
        ("AGENTD_AUTH__KEYS__MAX_TTL", "none", lambda c: c.auth.keys.max_ttl, None),
        ("AGENTD_QUOTAS__PRINCIPALS__CI__BURST", "3",
         lambda c: c.quotas.principals["ci"].burst, 3),
        ("AGENTD_PROFILE", "paranoid", lambda c: c.sandbox.minimum, "microvm"),
    ],
)  # fmt: skip
def test_a_variable_stands_above_the_file(name, value, get, expected):
    assert get(config.load(None, {name: value})) == expected


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("AGENTD_LOG__LEVL", "debug", "did you mean 'level'?"),
        ("AGENTD_LOG__LEVEL", "dbug", "did you mean 'debug'?"),
        ("AGENTD_LOG__LEVEL", "debug\nformat = 'json'", "use one of"),
        ("AGENTD_LOG__LEVEL", "'debug'\nformat = 'json'", "use one of"),
        ("AGENTD_LGO__LEVEL", "debug", "did you mean 'log'?"),
        ("AGENTD_LISTEN__7__MODE", "x", "nothing at"),
        ("AGENTD_LOG__LEVEL__X", "1", "write it as [log.level]"),
        ("AGENTD_LOG__", "1", "nothing at"),
        ("AGENTD_PROFILE", "severe", "did you mean 'server'?"),
    ],
)
def test_a_wrong_variable_is_named(name, value, hint):
    problem = one(config.check(None, {name: value}))
    assert (problem.line, problem.key) == (0, name)
    assert hint in problem.suggestion or name == "AGENTD_LOG__LEVEL__X"


def test_other_variables_are_none_of_the_configuration():
    env = {"AGENTD_URL": "x", "AGENTD_API_KEY": "y", "AGENTD_DEBUG": "1", "OTHER__X": "1"}
    assert config.load(None, env) == config.load(None, {})


def test_a_wrong_configuration_is_not_loaded(file):
    with pytest.raises(InvalidInput) as caught:
        config.load(file("[log]\nlevl = 1\nformat = 2\n"), {})
    assert "line 2: log.levl" in caught.value.cause and "line 3: log.format" in caught.value.cause


# --- profiles, and the configuration as text ---


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("uid", [0, 1000])
def test_a_profile_is_right_and_reads_back(profile, uid, file, monkeypatch):
    monkeypatch.setattr("agentd.daemon.config.os.geteuid", lambda: uid)
    env = {"AGENTD_PROFILE": profile, "HOME": "/home/x"}
    found = config.load(None, env)
    assert config.load(file(config.render(found)), {}) == found
    assert (
        config.load(file(config.render(found, config.read(None, env).layers.source)), {}) == found
    )
    assert all(listen.address.path for listen in found.listen)


def test_nothing_that_is_strange_is_lost_in_the_text(file):
    text = (
        'quotas.principals."a\\"b \\u007f ü.c" = {sandboxes = 3, memory = 15, cpu_seconds = 1e3}\n'
        "[[auth.jwt]]\nname = 'a'\nissuer = 'i\\\"'\naudience = ['x', '#y']\n"
        "algorithms = ['RS256']\njwks_url = 'https://x'\ngrants = {'a b' = ['run'], 'ü' = []}\n"
    )
    found = config.load(file(text), {})
    assert found.quotas.principals['a"b \x7f ü.c'].sandboxes == 3
    assert config.load(file(config.render(found)), {}) == found


def test_the_text_says_where_each_setting_is_from(file):
    path = file("profile = 'server'\n\nlog.level = 'debug'\n")
    found = config.read(path, {"AGENTD_LEASES__MAX": "1h"}, [(("daemon", "state"), "/x")])
    said = {
        line.split(" = ")[0]: line.rpartition("  # ")[2]
        for line in config.render(found.config, found.layers.source).splitlines()
    }
    assert said["profile"] == "line 1" and said["log.level"] == "line 3"
    assert said["log.format"] == "profile" and said["leases.default"] == "default"
    assert said["leases.max"] == "AGENTD_LEASES__MAX" and said["daemon.state"] == "command line"


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=1, max_size=4))
def test_a_dotted_key_is_what_toml_reads(path):
    tree = tomllib.loads(f"{dotted(path)} = 1")
    for key in path:
        tree = tree[key]
    assert tree == 1


# --- reload ---


def test_a_reload_takes_over_what_it_can(file):
    old = config.load(file("log.level = 'info'"), {})
    new = config.load(file("log.level = 'debug'\ndaemon.state = '/x'\nhttp.body = '1M'"), {})
    assert config.changes(old, new) == (("log.level",), ("daemon.state", "http.body"))
    assert config.changes(old, old) == ((), ())
    quota = config.load(file("quotas.principals.ci.burst = 1"), {})
    assert all(key.startswith("quotas.principals") for key in config.changes(old, quota).reloaded)


def test_the_sections_that_are_reloaded_are_there():
    assert set(RELOADED) < {field.name for field in msgspec.structs.fields(Config)}


# --- what the schema repeats of the model ---


def test_the_schema_and_the_model_agree():
    assert set(Scope.__args__) == SCOPES.keys()
    assert Algorithm.__args__ == ALGORITHMS
    assert Isolation.__args__ == tuple(level.label for level in sorted(IsolationLevel))
    bounds = LimitBounds().default
    assert set(bounds.__struct_fields__) == set(Limits.__struct_fields__)
    assert bounds.limits() == Limits()
    assert Config().sandbox.level is IsolationLevel.NAMESPACE


# --- what may be said, and is told of ---

PEER = "[[auth.peers]]\nuid = 'daemon'\nscopes = ['create', 'run'{}]\n"
UNIX = "[[listen]]\naddress = 'unix:/run/a.sock'\n"
PYPI = "egress.allow = ['pypi']\n"
OWN_HOST = "[[egress.host]]\nname = 'db.internal'\naddress = '127.0.0.1:5432'\n"


def test_the_address_of_a_host_is_told_to_be_an_address(file):
    text = "[[egress.host]]\nname = 'a.b'\naddress = '10.0.0.1'"
    problem = one(config.check(file(text), {}))
    assert problem.message == "'10.0.0.1' has no port"
    assert problem.suggestion == 'write it as "127.0.0.1:5432"'


TEMPLATE = "[[template]]\nname = 'work'\nnet = '{}'\n"


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (PEER.format(", 'mount'"), "auth.peers[0]", "daemon may read and write beneath / with the"),
        (PEER.format("").replace("'create', 'run'", "'admin'"), "auth.peers[0]", "makes them root"),
        (PEER.format(", 'mount'").replace("daemon", "*"), "auth.peers[0]", "all of them root"),
        (PEER.format(", 'mount'") + "[sandbox]\nmounts = ['/srv', '/data']\n", "auth.peers[0]",
         "beneath /srv, /data"),
        (PEER.format("") + "[sandbox]\nminimum = 'none'\n", "auth.peers[0]", "isolation none"),
        ("auth.containers = true\n", "auth.containers", "root there"),
        (TCP.format("127.0.0.1:80"), "listen", "nobody could make the first one"),
        ("limits.default.open_files = 4000000\n", "limits.default.open_files", "hard limit"),
        ("limits.max.open_files = 4000000\n", "limits.max.open_files", "hard limit"),
        ("limits.max.memory = '1K'\n", "limits.max.memory", "1 MiB itself"),
        ("limits.default.open_files = 3\n", "limits.default.open_files", "16 itself"),
        ("quotas.default.memory = '512M'\n", "quotas.default.memory", "asks for nothing, 1 GiB"),
        ("quotas.default.disk = '1M'\n", "quotas.default.disk", "asks for nothing, 512 MiB"),
        ("quotas.principals.ci.memory = '1M'\n", "quotas.principals.ci.memory", "1 GiB"),
        ("profile = 'paranoid'\negress.allow = ['public']\n", "egress.allow", "has no effect"),
        ("sandbox.networks = ['none']\n" + OWN_HOST, "egress.host", "not among sandbox.networks"),
        ("journal.compress = false\n", "journal.compress", "output on disk is compressed"),
        ("journal.process = '64K'\n", "journal.process", "has the effect of 4M"),
        (PYPI + TEMPLATE.format("pypi,example.org"), "template[0].net", "'example.org' is not"),
        (TEMPLATE.format("127.0.0.1:80"), "template[0].net", "nobody's to grant"),
        ("[[template]]\nname = 'a'\nbackend = 'linx'\n", "template[0].backend", "'linx', and"),
        ("[[pool]]\nbackend = 'linx'\n", "pool[0].backend", "'linx', and there is none"),
        ("sandbox.backends = ['linux', 'linx']\n", "sandbox.backends", "'linx', and there is none"),
    ],
)  # fmt: skip
def test_what_makes_somebody_root_or_cannot_work_is_told(file, text, key, message):
    read = config.read(file(text), {})
    assert read.problems == [] and read.config is not None
    warning = one(sound(read))
    assert warning.key == key and message in warning.message and warning.suggestion
    assert warning.line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "profile = 'server'\n",
        "profile = 'paranoid'\n",
        PEER.format(""),
        PEER.format(", 'mount'") + "[sandbox]\nmounts = []\n",
        PEER.format(", 'mount'") + "[policy]\nbundle = 'strict'\n",
        PEER.format(", 'mount'").replace("'daemon'", "'root'"),
        TCP.format("127.0.0.1:80") + UNIX,
        "daemon.insecure = true\n" + TCP.format("127.0.0.1:80"),
        TCP.format("127.0.0.1:80") + JWT + "jwks_url = 'https://x'\n",
        "limits.default.memory = '256M'\nquotas.default.memory = '256M'\n",
        "journal.compress = true\n",
        "quotas.default.disk = '128M'\nlimits.default.memory = '256M'\n",
        "sandbox.networks = ['none']\n",  # the profile's bounds are nobody's mistake
        "profile = 'paranoid'\nsandbox.networks = ['restricted']\negress.allow = ['public']\n",
        "[[pool]]\nbackend = 'oci'\n[[template]]\nname = 'a'\nbackend = 'qemu'\n",
        OWN_HOST + TEMPLATE.format("pypi,db.internal,!gist.github.com"),
        PYPI + TEMPLATE.format("none"),
    ],
)
def test_what_is_sound_is_not_warned_of(file, text):
    read = config.read(file(text), {})
    assert (read.problems, sound(read)) == ([], [])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("quotas.default.requests = 0\n", "quotas.default.requests"),
        ("quotas.principals.ci.burst = 0\n", "quotas.principals.ci.burst"),
        ("http.connections = 0\n", "http.connections"),
        ("pool = []\n[sandbox]\nminimum = 'microvm'\nbackends = ['linux']\n", "sandbox.backends"),
        ("sandbox.backends = ['linux']\npool = [{backend = 'landlock'}]\n", "pool[0].backend"),
    ],
)
def test_what_lets_nobody_do_anything_is_a_problem(file, text, key):
    assert one(config.check(file(text), {})).key == key


def test_levels_and_their_order_are_those_of_the_model():
    assert Isolation.__args__ == tuple(level.label for level in sorted(IsolationLevel))


def test_folders_that_may_be_mounted_are_resolved_when_it_is_read(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    file = tmp_path / "agentd.toml"
    file.write_text(f'[sandbox]\nmounts = ["{tmp_path}/link"]\n')
    assert config.load(str(file), {}).sandbox.mounts == (f"{tmp_path}/real",)
