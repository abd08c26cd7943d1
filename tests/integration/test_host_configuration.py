"""What a sandbox may read of the host's /etc and /var/lib, and what a daemon's file says to it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.daemons import running

from agentd.client.sandbox import Sandbox
from agentd.daemon import config
from agentd.model.errors import InvalidInput

# Each fails, or does less, without its part of /etc or /var/lib; the last word is in its output.
PROGRAMS = {
    "mvn": ("mvn -v", "Apache Maven"),
    "Rscript": ("Rscript -e 'cat(sd(1:3))'", "1"),
    "php": ("php -r 'echo count(get_loaded_extensions());'", ""),
    "pdflatex": ("kpsewhich -engine=pdftex pdflatex.fmt", "pdflatex.fmt"),
    "dpkg": ("dpkg-query -W -f '${Package}' dpkg", "dpkg"),
    "perl": ("perl -e 'use Net::Config; print 1'", "1"),
}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox.create(isolation="namespace") as made:
        yield made


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_says_inside_what_it_says_outside(sandbox: Sandbox, name: str) -> None:
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    script, word = PROGRAMS[name]
    outside = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    if outside.returncode:
        pytest.skip(f"{name} does not work outside: {outside.stderr}")
    inside = sandbox.run(script, check=True, timeout=120)
    assert word in inside.text
    assert inside.text == outside.stdout


def test_nothing_of_it_is_what_only_root_may_read(sandbox: Sandbox) -> None:
    found = sandbox.run("find /etc /var/lib -type f ! -perm -o=r ! -path '/var/lib/dpkg/*'")
    assert found.text == ""
    names = sandbox.run("ls -d /etc/*", check=True).text.split()
    secret = ("shadow", "ssh", "apt", "machine-id", "hostname", "sudoers.d", "NetworkManager")
    assert not {f"/etc/{name}" for name in secret} & set(names)
    assert sandbox.run("ls /etc/ssl").text.split() in (["certs", "openssl.cnf"], ["certs"])


def test_the_report_counts_it(sandbox: Sandbox) -> None:
    told = sandbox.enforcement["mount_namespace"].detail
    assert "directories of /etc and /var/lib, that packages put there" in told


@pytest.mark.parametrize("minimum", ["namespace", "process"])
def test_a_daemon_shows_and_hides_what_its_file_says(minimum: str) -> None:
    settings = (
        f"[sandbox]\nminimum = '{minimum}'\nhost_configuration = 'minimal'\n"
        "host_configuration_show = ['/etc/security']\n"
        "host_configuration_hide = ['/etc/ssl/certs', '/etc/protocols']\n"
    )
    if not os.path.exists("/etc/services"):
        pytest.skip("netbase is not installed")
    with running(settings) as made, Sandbox.create(url=made.url, isolation=minimum) as sandbox:
        assert sandbox.run("cat /etc/security/limits.conf", check=True).text
        for hidden in ("ls /etc/ssl/certs/", "cat /etc/protocols", "ls /var/lib/dpkg/"):
            assert sandbox.run(hidden).exit_code != 0, hidden
        assert sandbox.run("cat /etc/services", check=True).text
        if minimum == "namespace":
            told = sandbox.enforcement["mount_namespace"].detail
            assert "that languages need, 1 shown besides, 2 hidden" in told


def test_what_is_shown_must_be_configuration(tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text("[sandbox]\nhost_configuration_show = ['/root/keys']\n")
    with pytest.raises(InvalidInput, match="/root/keys is not in /etc or /var/lib"):
        config.load(str(tmp_path / "agentd.toml"), {})


@pytest.mark.skipif(os.getuid() != 0, reason="writes to /etc, so only as root")
def test_a_file_that_becomes_private_is_closed_at_once(sandbox: Sandbox) -> None:
    path = "/etc/terminfo/agentd-test"
    with open(path, "x", encoding="ascii") as file:
        file.write("x")
    try:
        assert sandbox.run(["cat", path], check=True).text == "x"
        os.chmod(path, 0o600)
        assert sandbox.run(["cat", path]).exit_code != 0
    finally:
        os.remove(path)
