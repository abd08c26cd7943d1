"""What a sandbox asked is recorded, and played to another one that reaches nothing."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.read_server import EchoServer, serving
from tests.security.daemons import Daemon, running
from tests.unit.capability.fetch.authority import Authority

from agentd import InvalidInput, Refused, Sandbox
from agentd.client.cli.main import main
from agentd.egress.terminator.recording import MAX_OF_ONE, MAX_TOGETHER
from agentd.model.cassette import (
    MAX_BODY,
    MAX_CASSETTE,
    MAX_EXCHANGES,
    MAX_VALUES,
    RecordedExchange,
    joined,
    line,
    parse,
)

HOST, PLAIN = "api.example.com", "plain.example.com"
KEY = "a-key-that-never-enters-it"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    folder.chmod(0o755)
    return Authority(folder, [HOST], [])


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[EchoServer]:
    with serving(authority.server) as made:
        yield made


@pytest.fixture(scope="module")
def daemon(server: EchoServer, authority: Authority) -> Iterator[Daemon]:
    with serving() as plain:
        config = f"""
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["{HOST}", "{PLAIN}", "*.far.example.com"]
ca_file = "{authority.ca}"
"""
        for name, each in ((HOST, server), (PLAIN, plain)):
            address = f"127.0.0.1:{each.server_port}"
            config += f'[[egress.host]]\nname = "{name}"\naddress = "{address}"\n'
        with running(config) as made:
            yield made


@pytest.fixture(scope="module")
def barred() -> Iterator[Daemon]:
    """One that grants no network at all."""
    with running('[sandbox]\nnetworks = ["none"]\n') as made:
        yield made


def curl(sandbox: Sandbox, *words: str) -> tuple[int, str]:
    """The status and the body; the status is 0 where there was no answer."""
    argv = ["curl", "-sS", "-m", "60", "-o", "/tmp/body", "-w", "%{http_code}", *words]
    done = sandbox.run(["sh", "-c", '"$@" && echo && cat /tmp/body', "sh", *argv])
    status, _, body = done.stdout.decode().partition("\n")
    return int(status or 0), body if done.exit_code == 0 else done.stderr.decode()


def lines(tape: Path) -> list[dict[str, Any]]:
    first, *exchanges, last = map(json.loads, tape.read_text().splitlines())
    assert first == {"cassette": "agentd", "version": 1}
    assert last["exchanges"] == len(exchanges)
    return exchanges


PAGE = (Path(__file__).parents[2] / "docs/cassettes.md").read_text()
SHELL = "".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S))
PYTHON, TEST = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
JOB = [
    (f"https://{HOST}/v1/models?a=b",),
    ("-d", '{"n": 1}', "-H", "Content-Type: application/json", f"https://{HOST}/v1/x"),
    (f"http://{PLAIN}/v1/plain",),
]


@pytest.fixture(scope="module")
def tape(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of ``JOB``, whose answers are beside it."""
    path = tmp_path_factory.mktemp("tape") / "tape.jsonl"
    with Sandbox.create(url=daemon.url, net=[f"record:{path}", HOST, PLAIN]) as sandbox:
        answers = [curl(sandbox, *words) for words in JOB]
    assert [status for status, _ in answers] == [200, 200, 200]
    path.with_suffix(".answers").write_text(json.dumps(answers))
    return path


@pytest.mark.needs("curl")
def test_what_was_asked_is_read_in_the_file(tape: Path) -> None:
    models, posted, plain = lines(tape)
    assert (models["method"], models["host"], models["port"]) == ("GET", HOST, 443)
    assert (models["target"], models["status"]) == ("/v1/models?a=b", 200)
    assert json.loads(models["answer"]["text"])["line"] == "GET /v1/models?a=b HTTP/1.1"
    assert posted["body"] == {"text": '{"n": 1}'}
    assert ["content-type", "application/json"] in posted["headers"]
    assert (plain["host"], plain["port"], plain["target"]) == (PLAIN, 80, "/v1/plain")


@pytest.mark.needs("curl")
@pytest.mark.parametrize(
    "wall",
    [
        "linux",
        pytest.param("oci", marks=pytest.mark.needs("runc")),
        pytest.param("gvisor", marks=[pytest.mark.needs("runsc"), pytest.mark.timeout(900)]),
    ],
)
def test_it_is_played_where_nothing_may_be_reached(
    barred: Daemon, server: EchoServer, tape: Path, wall: str
) -> None:
    server.seen.clear()
    net = [f"replay:{tape}"]
    with Sandbox.create(url=barred.url, net=net, backend=wall) as sandbox:
        answers = [list(curl(sandbox, *words)) for words in JOB]
        assert answers == json.loads(tape.with_suffix(".answers").read_text())
        # The last of those that are the same is given again.
        assert [list(curl(sandbox, *JOB[0])) for _ in range(2)] == [answers[0]] * 2
        told = sandbox.enforcement["network"]
        assert "nothing is dialled" in told.detail and "replayed" in told.detail
    assert not server.seen


@pytest.mark.needs("curl")
def test_without_a_daemon_too_and_in_forks(tape: Path) -> None:
    url = JOB[0][0]
    with Sandbox.create(embedded=True, net=[f"replay:{tape}"]) as sandbox:
        answered = curl(sandbox, url)
        assert answered[0] == 200
        (fork,) = sandbox.fork()
        snapshot = sandbox.snapshot()
        with fork, Sandbox.create(snapshot=snapshot) as restored:
            for each in (fork, restored):
                status, body = curl(each, url)
                assert (status, json.loads(body)["error"]["code"]) == (403, "no_cassette")
                each.network.play(tape)
                assert curl(each, url) == answered
        with pytest.raises(Refused, match="records nothing"):
            sandbox.network.cassette()


@pytest.mark.needs("curl")
def test_a_fork_records_on_one_of_its_own(daemon: Daemon, tmp_path: Path) -> None:
    with Sandbox.create(url=daemon.url, net=["record", HOST]) as sandbox:
        curl(sandbox, f"https://{HOST}/v1/first")
        (fork,) = sandbox.fork()
        with fork:
            curl(fork, f"https://{HOST}/v1/second")
            (one,), (other,) = (
                parse(each.network.cassette()).exchanges for each in (sandbox, fork)
            )
        assert (one.target, other.target) == ("/v1/first", "/v1/second")
        # No rules at all: nothing is reached any more, and what was recorded is there.
        assert sandbox.network.set([]).egress == ("record",)
        assert curl(sandbox, f"https://{HOST}/v1/third")[0] == 0
        assert len(parse(sandbox.network.cassette()).exchanges) == 1
        with pytest.raises(InvalidInput, match="goes on to record"):
            sandbox.network.set([HOST])
        with pytest.raises(Refused, match="replays nothing"):
            sandbox.network.play(sandbox.network.cassette())
    with Sandbox.create(url=daemon.url, net=[HOST]) as plain:
        with pytest.raises(Refused, match="records nothing"):
            plain.network.cassette()
        with pytest.raises(InvalidInput, match="was not made to record"):
            plain.network.set(["record", HOST])


@pytest.mark.needs("curl")
def test_no_secret_is_in_it(
    daemon: Daemon, server: EchoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", KEY)
    tape, secret = tmp_path / "tape.jsonl", f"API_TOKEN=env:API_TOKEN@{HOST},places=header+body"
    server.seen.clear()
    with Sandbox.create(url=daemon.url, net=f"record:{tape}", secrets=[secret]) as sandbox:
        line = f'curl -sS -m 60 -H "X-Api-Key: $API_TOKEN" -d "k=$API_TOKEN" https://{HOST}/v1/keys'
        placeholder = sandbox.run("printenv API_TOKEN", check=True).text.strip()
        answer = sandbox.run(["sh", "-c", line], check=True).stdout
    ((_, headers, body),) = server.seen
    assert dict(headers)["X-Api-Key"] == KEY and body == f"k={KEY}".encode()
    assert KEY not in tape.read_text()
    (exchange,) = lines(tape)
    assert exchange["body"] == {"text": f"k={placeholder}"}
    assert exchange["answer"]["text"].encode() == answer and placeholder in answer.decode()
    assert ["x-api-key", "redacted"] in exchange["headers"]


@pytest.mark.needs("curl")
def test_what_is_not_in_it_is_a_denial_and_other_hosts_are_unknown(
    barred: Daemon, tape: Path
) -> None:
    with Sandbox.create(url=barred.url, net=[f"replay:{tape}"]) as sandbox:
        status, body = curl(sandbox, f"https://{HOST}/v2/x")
        error = json.loads(body)["error"]
        assert (status, error["code"]) == (403, "not_recorded")
        assert error["message"].endswith(f"the cassette has no GET {HOST}:443/v2/x")
        assert "--net record:FILE" in error["remediation"]
        assert "Could not resolve" in curl(sandbox, "https://other.example.com/")[1]
        assert curl(sandbox, "http://127.0.0.9/")[0] == 0  # its own loopback
        assert curl(sandbox, "http://192.0.2.1/")[0] == 0
        refused = [e for e in sandbox.network.connections().connections if not e.allowed]
        told = {(e.name or e.address, e.status): e.reason for e in refused}
        assert told[HOST, 403] == f"the cassette has no GET {HOST}:443/v2/x"
        assert told["other.example.com", 0] == "no rule allows that name"
        assert told["192.0.2.1", 0] == "no rule has the address 192.0.2.1"
        assert sandbox.run("true").usage.network.denied >= len(told)
    page = barred.ask("GET", "/v1/audit/records?limit=1000").json
    reasons = [
        reason
        for record in page["records"]
        if record["kind"] == "denial" and record.get("sandbox") == sandbox.id
        for reason in record["fields"]["reasons"]
    ]
    assert f"{HOST}:443: the cassette has no GET {HOST}:443/v2/x" in reasons


def agentd(
    daemon: Daemon, *words: str, stdin: str | None = None
) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "AGENTD_URL": daemon.url}
    argv = [sys.executable, "-m", "agentd", *words]
    return subprocess.run(
        argv, env=env, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.needs("curl")
def test_by_the_command_line(daemon: Daemon, barred: Daemon, tmp_path: Path) -> None:
    tape, job = str(tmp_path / "tape.jsonl"), ["curl", "-sS", "-m", "60", f"https://{HOST}/v1/x"]
    made = agentd(daemon, "run", "--net", f"record:{tape},{HOST}", "--", *job)
    assert made.returncode == 0, made.stderr
    assert f"agentd run: recorded 1 exchange in {tape}\n" in made.stderr
    played = agentd(barred, "run", "--net", f"replay:{tape}", "--", *job)
    assert (played.returncode, played.stdout) == (0, made.stdout), played.stderr
    missed = agentd(barred, "run", "--net", f"replay:{tape}", "--", *job[:-1], "-f", f"{job[-1]}y")
    assert missed.returncode != 0
    assert f"the cassette has no GET {HOST}:443/v1/xy" in missed.stderr
    assert missed.stderr.endswith(f"; record it with --net record:FILE,{HOST}:443\n")
    failed = agentd(daemon, "run", "--net", f"record:{tape},10.1.2.3:443", "--", *job)
    assert failed.returncode == 2 and "cannot be recorded" in failed.stderr
    # What is no file is not replaced by one, and a link not by what it leads to.
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("tape.jsonl")
    failed = agentd(daemon, "run", "--net", f"record:{pipe},{HOST}", "--", "true")
    assert failed.returncode == 2 and f"the cassette {pipe}: it is no file" in failed.stderr
    failed = agentd(daemon, "run", "--net", f"record:{tmp_path}/none/x,{HOST}", "--", "true")
    assert failed.returncode == 2 and f"x: there is no folder {tmp_path}/none (" in failed.stderr
    assert agentd(daemon, "run", "--net", f"record:{link},{HOST}", "--", *job).returncode == 0
    assert pipe.is_fifo() and link.is_symlink() and parse(Path(tape).read_bytes()).exchanges
    # One that goes on: the file is asked for, and put in.
    nobody = agentd(daemon, "create", "--net", f"record:{tape},{HOST}")
    assert nobody.returncode == 2 and "agentd net cassette" in nobody.stderr
    box = agentd(daemon, "create", "--net", f"record,{HOST}").stdout.strip()
    agentd(daemon, "exec", box, "--", *job)
    printed = agentd(daemon, "net", "cassette", box)
    assert [each.target for each in parse(printed.stdout.encode()).exchanges] == ["/v1/x"]
    agentd(daemon, "kill", box)
    box = agentd(barred, "create", "--net", f"replay:{tape}").stdout.strip()
    assert agentd(barred, "exec", box, "--", *job).stdout == made.stdout
    assert agentd(barred, "net", "cassette", box, "--put", tape).returncode == 0
    assert agentd(barred, "exec", box, "--", *job).stdout == made.stdout
    none = agentd(barred, "net", "cassette", box, "--put", "-", stdin="no cassette")
    assert none.returncode == 2 and "line 1 is not that of a cassette" in none.stderr
    put = agentd(barred, "net", "cassette", box, "--put", "-", stdin=printed.stdout)
    assert (put.returncode, put.stderr) == (0, "")
    assert agentd(barred, "exec", box, "--", *job).stdout in printed.stdout.replace('\\"', '"')
    agentd(barred, "kill", box)


def test_a_template_that_has_no_file_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It ran, and what it recorded was gone with its sandbox."""
    config = tmp_path / "agentd.toml"
    config.write_text(f'[[template]]\nname = "tape"\nnet = "record,{HOST}"\n')
    monkeypatch.setenv("AGENTD_CONFIG", str(config))
    assert main(["run", "--embedded", "--template", "tape", "--", "echo", "ran"]) == 2
    told = capfd.readouterr()
    assert "network rule 'record' has no file, and the sandbox ends with" in told.err
    assert "agentd net cassette" in told.err and "ran" not in told.out


@pytest.mark.needs("curl")
@pytest.mark.parametrize(
    ("word", "told", "shown"),
    [
        ("record", "recorded", "1 connection, all recorded, 0 refused"),
        ("replay", "answered from the cassette", "1 connection answered from a cassette, 0"),
    ],
)
def test_what_is_explained_and_signed_says_so(
    daemon: Daemon, word: str, told: str, shown: str
) -> None:
    with Sandbox.create(url=daemon.url, net=[word, f"{HOST}:443"]) as sandbox:
        if word == "replay":
            kept = RecordedExchange("GET", HOST, 443, "/v1/x", status=200)
            sandbox.network.play(joined([line(kept)], 0))
        explained = agentd(daemon, "net", "explain", f"https://{HOST}/v1/x", sandbox.id)
        what = f"GET /v1/x at {HOST}:443 is allowed by {HOST}:443, and {told}\n"
        assert (explained.returncode, explained.stdout) == (0, what)
        other = agentd(daemon, "net", "explain", "other.example.com", sandbox.id, "--json")
        assert (other.returncode, json.loads(other.stdout)["cassette"]) == (1, "")
        done = sandbox.run(["curl", "-sS", "-m", "60", f"https://{HOST}/v1/x"], check=True)
        assert done.usage.network.cassette == word
        assert shown in agentd(daemon, "receipt", "show", done.receipt).stdout


@pytest.mark.needs("curl")
def test_without_a_host_nothing_is_reached_and_what_is_missing_is_told(
    daemon: Daemon, tmp_path: Path
) -> None:
    tape, job = str(tmp_path / "tape.jsonl"), ["curl", "-sS", f"https://{HOST}/"]
    made = agentd(daemon, "run", "--net", f"record:{tape}", "--", *job)
    assert made.returncode == 6, made.stderr  # no such host
    assert f"allow what should be with --net record:FILE,{HOST}\n" in made.stderr
    assert f"recorded 0 exchanges in {tape}\n" in made.stderr
    played = agentd(daemon, "run", "--net", f"replay:{tape}", "--", *job)
    assert played.returncode == 6, played.stderr
    for net, said in (
        ("record", "'record' has no file, and the sandbox ends with the command (name one, as"),
        (f"replay,{HOST}", "'replay' has no file"),
        (f"record:{tape},record:{tape}2,{HOST}", f"'record:{tape}2' is one file too many"),
        ("replay:", "cannot read the cassette of no name"),
    ):
        wrong = agentd(daemon, "run", "--net", net, "--", "true")
        assert wrong.returncode == 2 and said in wrong.stderr, wrong.stderr
    # In words that hold in Python, too, where there is no --net.
    with pytest.raises(InvalidInput, match="name one that a sandbox with the rule record:FILE"):
        Sandbox.create(url=daemon.url, net=["replay:/nowhere"])
    with Sandbox.create(url=daemon.url) as plain:
        for more in ([], ["--put", tape]):
            none = agentd(daemon, "net", "cassette", plain.id, *more)
            assert "has the network none, which has no rules" in none.stderr


@pytest.mark.needs("curl")
def test_over_rest_what_is_wrong_is_told(barred: Daemon, tape: Path) -> None:
    net = ["replay", f"{HOST}:443"]
    made = barred.ask("POST", "/v1/sandboxes", {"net": net})
    assert made.status == 201, made.body
    assert made.json["egress"] == net
    path = f"/v1/sandboxes/{made.json['id']}/network/cassette"
    found = barred.ask("PUT", path, tape.read_bytes()[:-1])
    assert (found.status, found.code) == (400, "invalid_input")
    assert "it was cut" in found.json["message"]
    of_dots = RecordedExchange("GET", "." * 100_000, 443, "/", status=200)
    found = barred.ask("PUT", path, joined([line(of_dots)], 0))
    assert "line 2 has the host '....." in found.json["message"]
    odd = b'{"%s": 1}\n' % (b"x" * 100_000)
    found = barred.ask("PUT", path, joined([odd], 0))
    assert "line 2 does not fit: Object contains unknown field `xxx" in found.json["message"]
    deep = b'{"cassette": "agentd", "version": 1, "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}\n"
    found = barred.ask("PUT", path, deep + tape.read_bytes())
    assert (found.status, found.code) == (400, "invalid_input")
    # Eight bytes of a header that are a hundred of the supervisor's, which holds all sandboxes.
    many = RecordedExchange(
        "GET", HOST, 443, "/", headers=(("", ""),) * (MAX_VALUES // 3 + 1), status=200
    )
    found = barred.ask("PUT", path, joined([line(many)], 0))
    assert f"line 2 has over {MAX_VALUES} values" in found.json["message"]
    found = barred.ask("PUT", path, tape.read_bytes())
    assert f"has {PLAIN}:80, which no rule of the sandbox has" in found.json["message"]
    assert barred.ask("GET", path).status == 403
    refused = barred.ask("POST", "/v1/sandboxes", {"net": ["record", HOST]})
    assert (refused.status, refused.code) == (403, "refused")
    barred.ask("DELETE", f"/v1/sandboxes/{made.json['id']}")


@pytest.mark.needs("curl")
def test_what_is_put_in_is_an_act_that_is_written_down(barred: Daemon, tape: Path) -> None:
    with Sandbox.create(url=barred.url, net=[f"replay:{tape}"]) as sandbox:
        what = {"sandbox": sandbox.id, "capability": "sandbox.network.v1"}
        barred.until_recorded(**what, kind="end")
        for _ in range(2):
            sandbox.network.play(tape)
        digests = {each.fields["request_digest"] for each in barred.records(**what, kind="end")}
        assert len(digests) == 1
        sandbox.network.play(joined([], 0))  # another cassette is another request
        digests = {each.fields["request_digest"] for each in barred.records(**what, kind="end")}
        assert len(digests) == 2


@pytest.mark.needs("curl")
@pytest.mark.timeout(900)
def test_no_owner_takes_the_room_of_others(daemon: Daemon) -> None:
    """What is written, and what is played, of five sandboxes of one and of one of another."""
    scopes = ("run", "create", "read", "egress")
    one, other = (daemon.key(name, *scopes) for name in ("greedy", "modest"))
    count, size = 15, 4_000_000

    def recorded(key: str) -> tuple[Sandbox, bytes]:
        sandbox = Sandbox.create(url=daemon.url, api_key=key, net=["record", PLAIN])
        urls = [f"http://{PLAIN}/v1/big/{size}"] * count
        sandbox.run(["sh", "-c", 'curl -sS -m 60 "$@" >/dev/null', "sh", *urls], check=True)
        return sandbox, sandbox.network.cassette()

    def kept(cassette: bytes) -> int:
        return sum(not each.unrecorded for each in parse(cassette).exchanges)

    with contextlib.ExitStack() as made:
        tapes = []
        for key in (one,) * (MAX_OF_ONE // (count * size) + 1) + (other,):
            sandbox, tape = recorded(key)
            made.enter_context(sandbox)
            tapes.append(tape)
        *full, last, theirs = tapes
        assert {kept(each) for each in (*full, theirs)} == {count}
        assert 0 < kept(last) < count
        (lacking, *_) = [e for e in parse(last).exchanges if e.unrecorded]
        assert lacking.unrecorded == "the cassette had no room for its answer"
    net = ["replay", f"{PLAIN}:80"]
    with contextlib.ExitStack() as made:

        def player(key: str) -> Sandbox:
            return made.enter_context(Sandbox.create(url=daemon.url, api_key=key, net=net))

        for _ in full:
            player(one).network.play(theirs)
        too_many = player(one)
        with pytest.raises(Refused, match="of the sandboxes of greedy would take over"):
            too_many.network.play(theirs)
        player(other).network.play(theirs)


@pytest.mark.needs("curl")
def test_the_pages_examples_do_what_it_says(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTD_URL", daemon.url)
    script = f'set -e\nagentd() {{ {sys.executable} -m agentd "$@"; }}\n{SHELL}'
    for words in (["sh", "-c", script], [sys.executable, "-c", PYTHON]):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    example = "".join(re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S))
    (exchange,) = parse(example.encode()).exchanges
    assert exchange.answer.text == "{}"


@pytest.mark.needs("curl")
def test_the_pages_test_replays_what_it_recorded(
    daemon: Daemon, barred: Daemon, tmp_path: Path
) -> None:
    test = tmp_path / "test_models.py"
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test.name]

    def ran(where: Daemon, text: str = TEST, **more: str) -> tuple[int, str]:
        test.write_text(text)
        env = {**os.environ, "AGENTD_URL": where.url, **more}
        done = subprocess.run(pytest_, cwd=tmp_path, env=env, capture_output=True, check=False)
        return done.returncode, done.stdout.decode()

    assert ran(daemon, RECORD="1")[0] == 0
    assert lines(tmp_path / "test_models_are_listed.jsonl")[0]["target"] == "/v1/models"
    assert ran(barred)[0] == 0  # which reaches nothing
    code, said = ran(barred, TEST.replace("/v1/models", "/v1/other").replace("-fsS", "-sS"))
    assert code == 1 and "1 passed, 1 error" in said and "the cassette has no GET" in said


def test_the_page_has_every_bound_and_field() -> None:
    for bound in (
        f"{MAX_TOGETHER >> 30} GiB",
        f"of one owner together, {MAX_OF_ONE >> 20} MiB",
        f"{MAX_BODY >> 20} MiB",
        f"{MAX_CASSETTE >> 20} MiB",
        f"{MAX_EXCHANGES:,} exch",
        f"{MAX_VALUES:,} values",
    ):
        assert bound in PAGE
    told = set(re.findall(r'"(\w+)":|`(\w+)`', PAGE))
    fields = {name for pair in told for name in pair}
    assert fields >= set(RecordedExchange.__struct_fields__) - {"body", "trailers"}
