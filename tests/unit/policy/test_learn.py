import contextlib
import json
import shutil

import msgspec
import pytest

from agentd.model.errors import InvalidInput
from agentd.policy.checking import check
from agentd.policy.example import example
from agentd.policy.learn import learn
from agentd.policy.store import PolicyStore
from agentd.policy.testing import test as run_tests

SCOPES = ["run", "read", "files", "create", "ports", "egress"]


def call(name, parameters, **sandbox):
    return example(name, parameters, principal="bob", scopes=SCOPES, sandbox=sandbox)


def connect(host, port=443):
    asked, rules = {"host": host, "port": port, "rule": "ask public"}, ["ask public"]
    return call("network.connect", asked, net="restricted", egress=rules)


SEEN = [
    call("fs.read.v1", {"path": "/workspace/src/a.py"}),
    call("fs.read.v1", {"path": "src/b.py"}),
    call("fs.write.v1", {"path": 'out/ö "x"', "content": "\x01" * 1000}),
    call("fs.list.v1", {"path": "/workspace/lib"}),
    call("http.fetch.v1", {"url": "https://example.org/x?y=1"}),
    call("git.clone.v1", {"url": "git@example.org:a.git", "path": "a"}),
    call("shell.exec.v1", {"command": "ls", "args": ["secret"]}),
    call("sandbox.port.v1", {"port": 8080}),
    call("sandbox.create.v1", {"mounts": ["/a:/b"], "isolation": "namespace"}),
    call("my.own.v1", {}),
    call("python.exec.v1", {"code": "1"}, net="restricted", egress=["pypi"]),
    connect("x.example.org"),
]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "policy"
    return str(learn(SEEN, str(out)))


@pytest.fixture(scope="module")
def opened(learned):
    """Compiled once: it decides each question by itself."""
    with contextlib.closing(PolicyStore(learned, workers=1)) as store:
        yield store


def test_it_passes_its_own_tests_and_the_check(learned):
    results = run_tests(learned)
    assert [result for result in results if not result.passed] == []
    names = [result.name for result in results]
    assert sum(".test_seen_" in name for name in names) == 11  # two of the twelve are one kind
    assert sum(".test_unseen_" in name for name in names) > 10
    assert check(learned) == []


def test_what_was_seen_is_allowed(opened):
    for asked in SEEN:
        assert opened.decide(asked).allow, asked
    duties = opened.decide(SEEN[6]).obligations
    assert duties.level is not None and duties.level.label == "namespace"


@pytest.mark.parametrize(
    "asked",
    [
        call("fs.read.v1", {"path": "/workspace/src/../../etc/passwd"}),
        call("fs.read.v1", {"path": "/workspace/other"}),
        call("fs.read.v1", {"path": "/workspace/src2/a"}),
        call("fs.read.v1", {"path": "/etc/passwd"}),
        call("fs.read.v1", {}),
        call("fs.edit.v1", {"path": "/workspace/src/a.py"}),
        call("http.fetch.v1", {"url": "http://example.org/x"}),
        call("http.fetch.v1", {"url": "https://example.org:444/"}),
        call("http.fetch.v1", {"url": "https://example.org@evil.example/"}),
        call("http.fetch.v1", {"url": "https://example.org.evil.example/"}),
        call("http.fetch.v1", {}),
        call("shell.exec.v1", {"command": "ls"}, net="host"),
        call("shell.exec.v1", {"command": "ls"}, mounts=[{"source": "/home"}]),
        call("python.exec.v1", {"code": "1"}, net="restricted", egress=["npm"]),
        call("python.exec.v1", {"code": "1"}, net="restricted", egress=["pypi", "npm"]),
        call("python.exec.v1", {"code": "1"}, net="restricted"),
        call("python.exec.v1", {"code": "1"}, egress=["pypi"]),
        call("shell.exec.v1", {"command": "ls"}, net="restricted", egress=["pypi"]),
        call("sandbox.port.v1", {"port": 8081}),
        call("sandbox.create.v1", {"mounts": ["/home:/b"], "isolation": "namespace"}),
        call("sandbox.create.v1", {"mounts": ["/a:/b"], "isolation": "none"}),
        call("sandbox.create.v1", {}),
        call("your.own.v1", {}),
        connect("y.example.org"),
        connect("x.example.org", 22),
        example("shell.exec.v1", {"command": "ls"}, scopes=["read"]),
    ],
)
def test_neighbours_are_denied(opened, asked):
    assert not opened.decide(asked).allow


def test_within_a_folder_and_an_origin_all_is_allowed(opened):
    assert opened.decide(call("fs.read.v1", {"path": "src/deep/er/c.py"})).allow
    assert opened.decide(call("http.fetch.v1", {"url": "https://example.org/other"})).allow
    assert opened.decide(call("shell.exec.v1", {"command": "rm"})).allow


def test_contents_and_words_of_commands_are_not_written_down(learned):
    import pathlib

    for path in pathlib.Path(learned).iterdir():
        assert "secret" not in path.read_text()
        assert "\\u0001" not in path.read_text()


def test_without_a_network_none_is_given(tmp_path, store):
    path = learn([call("fs.read.v1", {"path": "a"})], str(tmp_path / "out"))
    assert store(str(path)).decide(call("fs.read.v1", {"path": "b"})).obligations.no_network


def test_a_file_of_the_root_folder_is_not_all_files(tmp_path, store):
    opened = store(str(learn([call("fs.read.v1", {"path": "/motd"})], str(tmp_path / "out"))))
    assert opened.decide(call("fs.read.v1", {"path": "/motd"})).allow
    assert not opened.decide(call("fs.read.v1", {"path": "/etc/passwd"})).allow


@pytest.mark.parametrize(
    "seen",
    [
        [],
        [call("fs.read.v1", {"path": "../a"})],
        [call("fs.read.v1", {"path": 5})],
        [call("fs.read.v1", {"path": "a\x01/b"})],
        [call("sandbox.port.v1", {"port": n}) for n in range(501)],
    ],
)
def test_what_cannot_be_learned_is_refused(tmp_path, seen):
    with pytest.raises(InvalidInput):
        learn(seen, str(tmp_path / "out"))


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InvalidInput, match="is not empty"):
        learn(SEEN, str(tmp_path))
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_level_is_the_least_that_was_seen(tmp_path, store):
    seen = [call("my.v1", {}, level=level) for level in ("microvm", "process")]
    opened = store(str(learn(seen, str(tmp_path / "out"))))
    level = opened.decide(msgspec.structs.replace(seen[0])).obligations.level
    assert level is not None and level.label == "process"


@pytest.fixture(scope="module")
def of_the_workspace(tmp_path_factory):
    seen = [call("fs.list.v1", {"path": "."}), call("fs.write.v1", {"path": "./out//./x"})]
    learned = str(learn(seen, str(tmp_path_factory.mktemp("learned") / "policy")))
    assert [result for result in run_tests(learned) if not result.passed] == []
    with contextlib.closing(PolicyStore(learned, workers=1)) as store:
        yield store


@pytest.mark.parametrize("path", [".", "/workspace", "./", "/workspace/./", "a/..", "/"])
def test_the_same_folder_by_another_name_is_learned_as_one(of_the_workspace, path):
    allowed = path not in ("a/..", "/")
    assert of_the_workspace.decide(call("fs.list.v1", {"path": path})).allow is allowed
    assert of_the_workspace.decide(call("fs.write.v1", {"path": "out/y"})).allow
    assert not of_the_workspace.decide(call("fs.write.v1", {"path": "./outer/y"})).allow


def test_what_was_learned_before_there_were_rules_holds(learned, store, tmp_path):
    """Of an older version: its shapes have no egress, and were of sandboxes without any."""
    older = tmp_path / "older"
    shutil.copytree(learned, older)
    data = json.loads((older / "data.json").read_text())
    for shapes in data["learned"].values():
        for shape in shapes:
            shape.pop("egress", None)
            shape.pop("host", None)
    (older / "data.json").write_text(json.dumps(data))
    opened = store(str(older))
    assert all(opened.decide(asked).allow for asked in SEEN[:-2])
    assert not any(opened.decide(asked).allow for asked in SEEN[-2:])
