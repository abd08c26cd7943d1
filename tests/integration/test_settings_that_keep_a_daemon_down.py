"""What a daemon would not come up with, or could never use, is told before there is one."""

from pathlib import Path

import pytest

from agentd.client.cli.main import main

SOCKET = "[[listen]]\naddress = 'unix:/tmp/a.sock'\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SOCKET + "group = 'of-nobody'\n", "3: listen[0].group: there is no group 'of-nobody'"),
        (SOCKET + "group = '99999999999'\n", "3: listen[0].group: there is no group '9999"),
        (SOCKET + "group = '4294967295'\n", "3: listen[0].group: there is no group '4294"),
        ("[audit]\nsinks = ['syslog:x']\n", "2: audit.sinks[0]: 'x' is no address of a syslog"),
        ("[audit]\nsinks = ['syslog', 'syslog:udp:h:99999']\n", "2: audit.sinks[1]: 'udp:h:99999'"),
        ("[audit]\nsinks = ['http://h:99999']\n", "2: audit.sinks[0]: this is no address"),
        ("[audit]\nsinks = ['https:x']\n", "2: audit.sinks[0]: this is no address"),
        ("[audit]\nsinks = ['otlp:h:4318']\n", "2: audit.sinks[0]: this is no address"),
        ("[capabilities]\nfetch_hosts = ['a.org', 'http://b.org']\n",
         "2: capabilities.fetch_hosts[1]: 'http://b.org' is no pattern of hosts"),
        ("[capabilities]\nfetch_networks = ['10.0.0.1/8']\n",
         "2: capabilities.fetch_networks[0]: 10.0.0.1/8 has host bits set"),
        ("[[pool]]\nimage = '../x'\nmin = 1\n", "2: pool[0].image: '../x' is not a name"),
        ("[ids]\nstart = 4294967295\n", "whole blocks of 65536 from it, such as 2134217728"),
    ],
)  # fmt: skip
def test_what_no_daemon_could_do_with_is_told_with_its_line(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agentd.toml"
    file.write_text(text)
    assert (main(["config", "check", str(file)]), told in capsys.readouterr().out) == (1, True)


@pytest.mark.parametrize(
    "text",
    [
        SOCKET + "group = 'root'\n",
        SOCKET + "group = '4242'\n",
        "[audit]\nsinks = ['stdout', 'syslog', 'syslog:/dev/log', 'syslog:tcp:[::1]:514']\n",
        "[audit]\nsinks = ['http://u:p@h', 'https://h:1/x', 'otlp:https://[::1]:4318/v1/logs']\n",
        "[capabilities]\nfetch_hosts = ['*.a.org']\nfetch_networks = ['10.0.0.0/8', '::1']\n",
    ],
)
def test_what_a_daemon_takes_is_well(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agentd.toml"
    file.write_text(text)
    assert main(["config", "check", str(file)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("again", "told"),
    [
        ("uid = '4242'\nscopes = ['admin']\n", True),
        ("uid = 4242\nscopes = ['run']\nprincipal = 'b'\n", True),
        ("uid = 4242\nscopes = ['run']\n", False),
        ("uid = '*'\nscopes = ['read']\n", False),
    ],
)
def test_a_user_with_two_rows_is_told_which_holds(
    again: str, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a user's name and number: the second row was passed over without a word."""
    file = tmp_path / "agentd.toml"
    file.write_text(f"[[auth.peers]]\nuid = 4242\nscopes = ['run']\n[[auth.peers]]\n{again}")
    assert main(["config", "check", str(file)]) == 0
    said = "4: warning: auth.peers[1]: uid = 4242 has no effect: the user has a row before it"
    assert (said in capsys.readouterr().out) is told
