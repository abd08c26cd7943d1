import math

import pytest

from agentd.client import build
from agentd.client.sandbox import Sandbox
from agentd.model.errors import InvalidInput
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.mount import MountMode
from agentd.model.spec import ExecLimits, SandboxSpec


def test_nothing_asked_is_the_default_level_and_no_limit():
    spec = build.sandbox_spec()
    assert spec.isolation is IsolationLevel.NAMESPACE
    assert (spec.backend, spec.limits, spec.mounts, spec.net) == (None, Limits(), (), "none")


def test_everything_asked(tmp_path):
    spec = build.sandbox_spec(
        isolation="process",
        memory="128M",
        cpus="0.5",
        pids="20",
        disk="1G",
        open_files=64,
        output="1K",
        timeout="2s",
        workspace=f"{tmp_path}:cow",
        mounts=[f"{tmp_path}:/data"],
        net="host",
        user=0,
        env={"A": "1"},
    )
    assert spec.limits == Limits(
        memory=128 << 20,
        cpus=0.5,
        pids=20,
        disk=1 << 30,
        open_files=64,
        output=1024,
        timeout=2.0,
    )
    assert [(m.target, m.mode) for m in spec.mounts] == [
        ("/workspace", MountMode.COW),
        ("/data", MountMode.RO),
    ]
    assert (spec.isolation, spec.net, spec.user) == (IsolationLevel.PROCESS, "host", "root")


@pytest.mark.parametrize(
    ("isolation", "backend", "level"),
    [
        (None, "host", IsolationLevel.NONE),
        ("namespace", "host", IsolationLevel.NAMESPACE),
        (IsolationLevel.MICROVM, None, IsolationLevel.MICROVM),
    ],
)
def test_naming_a_wall_asks_for_what_it_gives(isolation, backend, level):
    assert build.sandbox_spec(isolation=isolation, backend=backend).isolation is level


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation": "vm"}, r"unknown isolation level 'vm' \(use one of: none, process"),
        ({"memory": "lots"}, r"memory 'lots' is not a size \(write it as 512K"),
        ({"memory": "0"}, r"memory '0' is out of range \(give at least 1 MiB\)"),
        ({"disk": "0"}, r"disk '0' is out of range \(give at least 64 KiB\)"),
        ({"cpus": "two"}, r"cpus 'two' is not a number of cores \(write 0.5 or 2, at least 0.01"),
        ({"cpus": "nan"}, "not a number of cores"),
        ({"cpus": 0}, "not a number of cores"),
        ({"pids": "-1"}, "pids '-1' is not a count"),
        ({"pids": 0}, "pids 0 is not a count"),
        ({"pids": "9" * 5000}, "is not a count"),
        ({"pids": "0000000019999999"}, r"is not a count \(give a number from 1 to 4194304\)"),
        ({"open_files": "0"}, r"is not a count \(give a number from 16 to 4194304\)"),
        ({"open_files": "1.5"}, "open_files '1.5' is not a count"),
        ({"timeout": "soon"}, r"timeout 'soon' is not a time \(write it as 250ms"),
        ({"net": "bridge"}, "network rule 'bridge' is no preset"),
        ({"net": [".."]}, r"'\.\.' ends with a dot \(write a preset, a name"),
        ({"user": "alice"}, r"user 'alice' is not known.*use root, sandbox or a uid"),
        ({"user": "9" * 30}, "is not known"),
        ({"image": "../x"}, r"image '../x' is not a name .*agentd image ls"),
        ({"image": ""}, "is not a name"),
        ({"workspace": "/no/such/place"}, r"'/no/such/place' does not exist \(create it"),
        ({"workspace": "/etc/passwd"}, "workspace '/etc/passwd' is not a directory"),
        ({"mounts": ["/tmp"]}, "has no target"),
        ({"mounts": ["/tmp:/usr"]}, "belongs to the wall"),
        ({"mounts": ["/tmp:/a", "/var:/a"]}, "two mounts have the target '/a'"),
        ({"env": {"A=B": "1"}}, "environment variable 'A=B' is not usable"),
        ({"env": {"A": "x\0"}}, "environment variable 'A' is not usable"),
        ({"env": {"A": 8080}}, r"environment variable 'A' is not text \(write it as {"),
        ({"env": {8: "x"}}, "environment variable 8 is not text"),
        ({"env": "A=x"}, "env is no mapping of names to values"),
        ({"mounts": "/tmp:/a"}, r"mounts are no list of mounts \(write them as \["),
        ({"mounts": [5]}, "mount 5 is no text and no Mount"),
        ({"memory": 1.5}, r"memory 1.5 is not a size \(write it as 512K"),
        ({"disk": 1.5}, "disk 1.5 is not a size"),
        ({"memory": True}, "memory True is not a size"),
    ],
)
def test_wrong_input_says_what_and_how_to_mend_it(options, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        build.sandbox_spec(**options)
    assert caught.value.remediation
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        (2.5, 2.5),
        ("250ms", 0.25),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("2d12h", 216000),
        ("1m30s", 90),
        ("1 hour 30 minutes", 5400),
        ("90 sec", 90),
        ("5 Mins", 300),
        ("2 days", 172800),
        (" 1hr ", 3600),
    ],
)
def test_times_are_read_as_people_write_them(text, seconds):
    assert build.sandbox_spec(timeout=text).limits.timeout == seconds


@pytest.mark.parametrize("text", ["0.5ms", "0.0000001s", 1e-05, 0.0, 0, "367d", math.inf])
def test_a_time_that_is_too_short_or_too_long_says_which_there_are(text):
    with pytest.raises(InvalidInput, match=r"is out of range \(between 1ms and 366d\)"):
        build.sandbox_spec(timeout=text)


@pytest.mark.parametrize("text", ["1h30", "30m1h", "1h1h", "1h-30m", "h", "1x", "1 mss", "1e3"])
def test_what_could_be_two_times_is_none(text):
    with pytest.raises(InvalidInput, match=r"is not a time \(write it as 250ms, 2s, 10m or 1h30m"):
        build.sandbox_spec(timeout=text)


def test_a_string_is_run_by_the_shell_and_a_list_is_not():
    assert build.exec_request("echo $A").argv == ("sh", "-c", "echo $A")
    assert build.exec_request(["echo", "$A"]).argv == ("echo", "$A")


@pytest.mark.parametrize("cmd", [[], [""], ["a", "b\0"], "x\0", ["a", 1], None, 5, b"ls"])
def test_a_command_that_cannot_be_run(cmd):
    with pytest.raises(InvalidInput, match="cannot be run"):
        build.exec_request(cmd)


@pytest.mark.parametrize("cwd", ["", "a\0", 5])
def test_a_directory_that_is_none(cwd):
    with pytest.raises(InvalidInput, match="is not a path"):
        build.exec_request("true", cwd=cwd)


def test_none_is_the_default_of_every_option():
    names = list(build.SandboxOptions.__annotations__)
    assert build.sandbox_spec(**dict.fromkeys(names)) == build.sandbox_spec()


@pytest.mark.parametrize("options", [{"env": ["A"]}, {"env": {"A": None}}, {"limits": {"cpu": 1}}])
def test_options_of_a_command_of_a_wrong_type(options):
    with pytest.raises(InvalidInput, match=r"\(write "):
        build.exec_request("true", **options)


@pytest.mark.parametrize("pty", [True, 5, (24,), [24, 80], "24x80", ("24", 80), (24.5, 80)])
def test_a_terminal_without_a_size(pty):
    with pytest.raises(InvalidInput, match=r"(pty .* has no|a terminal cannot have) .*rows"):
        build.exec_request("sh", pty=build.terminal(pty))


@pytest.mark.parametrize("where", [{"url": ""}, {"api_key": "agd_x_y"}])
def test_a_daemon_that_is_not_named_is_not_this_process(where, monkeypatch):
    """``url=os.environ.get("HERE", "")``: what was meant to run there would run here."""
    monkeypatch.delenv("AGENTD_URL", raising=False)
    with pytest.raises(InvalidInput, match="of a daemon"):
        Sandbox.create(**where)


def test_a_bare_variable_takes_the_callers_value(monkeypatch):
    monkeypatch.setenv("AGENTD_T", "v=1")
    assert build.parse_variable("AGENTD_T") == ("AGENTD_T", "v=1")
    assert build.parse_variable("A=b=c") == ("A", "b=c")
    monkeypatch.delenv("AGENTD_T")
    with pytest.raises(InvalidInput, match=r"'AGENTD_T' is not set here \(write AGENTD_T=value"):
        build.parse_variable("AGENTD_T")


def test_env_file(tmp_path):
    path = tmp_path / "env"
    path.write_text("# note\n\nA=1\nexport B=two words\nC='quo ted'\nD=\nE=a\u2028b=\x0bc=d\r\n")
    assert build.parse_env_file(str(path)) == {
        "A": "1",
        "B": "two words",
        "C": "quo ted",
        "D": "",
        "E": "a\u2028b=\x0bc=d",
    }


def test_an_env_file_of_a_windows_editor(tmp_path):
    path = tmp_path / "env"
    path.write_bytes(b"\xef\xbb\xbfA=1\r\nB='2'\r\n")
    assert build.parse_env_file(str(path)) == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A=1\nnonsense\n", "env:2 is not a variable: 'nonsense'"),
        (b"A='open\n", "env:1 is not a variable"),
        (b"A=\xff\n", "it is not UTF-8 text"),
        (None, "No such file or directory"),
        (b"A=1\n" * (1 << 19) + b"B", "env' has more than 2097152 bytes"),
    ],
)
def test_a_wrong_env_file_names_the_line(tmp_path, content, message):
    path = tmp_path / "env"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        build.parse_env_file(str(path))


def test_limits_of_a_command():
    limits = ExecLimits(cpu=2, processes=3)
    assert build.exec_request("x", limits=limits).limits == limits
    assert build.exec_request("x", limits=ExecLimits()).limits is None


@pytest.mark.parametrize("value", [0, -1, 1.5, "1M", True, 1 << 63])
def test_a_limit_that_is_none(value):
    with pytest.raises(InvalidInput, match=r"limit file_size of a command is .*whole number"):
        build.exec_request("x", limits=ExecLimits(file_size=value))


def test_a_sandbox_from_a_snapshot_has_its_machine():
    kept = build.sandbox_spec(isolation="microvm", memory="1G", timeout=5, env={"A": "1", "B": "1"})
    assert build.restored_spec(kept) == kept
    found = build.restored_spec(kept, env={"B": "2"}, output="1K", isolation="namespace")
    assert found.env == {"A": "1", "B": "2"}
    assert found.limits == Limits(memory=1 << 30, timeout=5, output=1024)
    assert found.isolation is IsolationLevel.NAMESPACE


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"memory": "1G"}, "memory"),
        ({"cpus": 1}, "cpus"),
        ({"net": "host"}, "net"),
        ({"workspace": "/tmp"}, "mounts"),
        ({"user": "root"}, "user"),
        ({"image": "other"}, "image"),
    ],
)
def test_what_a_snapshot_decides_cannot_be_asked_for(options, name):
    with pytest.raises(InvalidInput, match=f"has the snapshot's {name}"):
        build.restored_spec(SandboxSpec(), **options)
