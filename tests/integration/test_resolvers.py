"""How names of rules are found by resolvers: glibc's, musl's, and c-ares' in Node. Go's own is
asked by make test-clients."""

import json
import subprocess
from pathlib import Path

import pytest
from tests.integration.test_network_of_a_sandbox import daemon, port
from tests.security.daemons import Daemon

from agentd import Sandbox

__all__ = ["daemon", "port"]  # fixtures

_C = r"""
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    int families[] = {AF_UNSPEC, AF_INET, AF_INET6}, flags[] = {0, AI_ADDRCONFIG};
    for (int f = 0; f < 3; f++)
        for (int g = 0; g < 2; g++) {
            struct addrinfo *found, asked = {
                .ai_family = families[f], .ai_socktype = SOCK_STREAM, .ai_flags = flags[g]};
            int wrong = getaddrinfo(argv[1], "1", &asked, &found);
            if (wrong) { printf("%d\n", wrong); continue; }
            for (; found; found = found->ai_next) printf("%d ", found->ai_family == AF_INET6);
            printf("\n");
        }
    return 0;
}
"""
_NODE = """
const dns = require("dns"), found = {};
const asked = ["resolve4", "resolve6", "resolveTxt", "resolveAny", "resolveSrv"].map(kind =>
  new Promise(done => dns[kind](process.argv[1], (error, said) =>
    done(found[kind] = error ? error.code : said.length))));
Promise.all(asked).then(() => console.log(JSON.stringify(found)));
"""


@pytest.mark.needs("musl-gcc")
def test_musl_finds_both_addresses_and_that_there_is_no_other_name(
    daemon: Daemon, tmp_path: Path
) -> None:
    """It asks for both at once, and fails where either is refused."""
    tmp_path.chmod(0o755)
    (tmp_path / "musl.c").write_text(_C)
    made = tmp_path / "names"
    subprocess.run(["musl-gcc", "-static", "-o", made, tmp_path / "musl.c"], check=True)
    mounts = [f"{tmp_path}:/made:ro"]
    with Sandbox.create(url=daemon.url, net=["db.internal:5432"], mounts=mounts) as box:
        found = box.run(["/made/names", "db.internal"], check=True).text.splitlines()
        both, v4, v6 = found[:2], found[2:4], found[4:]
        assert both[0].split() in (["0", "1"], ["1", "0"]) and both[1].split()[0] in "01"
        assert v4 == ["0 ", "0 "] and v6[0] == "1 "
        assert set(box.run(["/made/names", "no.internal"], check=True).text.split()) == {"-2"}


@pytest.mark.needs("node")
def test_c_ares_finds_addresses_and_no_other_records(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url, net=["db.internal:5432"]) as box:
        found = json.loads(box.run(["node", "-e", _NODE, "db.internal"], check=True).text)
        assert found == {
            "resolve4": 1, "resolve6": 1, "resolveTxt": "ENODATA", "resolveAny": "ENODATA",
            "resolveSrv": "ENODATA",
        }  # fmt: skip
        found = json.loads(box.run(["node", "-e", _NODE, "no.internal"], check=True).text)
        assert set(found.values()) == {"ENOTFOUND"}


_GLIBC = """
import socket
def found(family, flags):
    try:
        return [each[0].name for each in socket.getaddrinfo("db.internal", 1, family, 1, 0, flags)]
    except OSError as error:
        return error.strerror
for family in (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6):
    print(found(family, 0), found(family, socket.AI_ADDRCONFIG))
"""


def test_glibc_finds_addresses_by_udp_alone(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url, net=["db.internal:5432"]) as box:
        both, v4, v6 = box.run(["python3", "-c", _GLIBC], check=True).text.splitlines()
        assert both in (
            "['AF_INET', 'AF_INET6'] ['AF_INET']",
            "['AF_INET6', 'AF_INET'] ['AF_INET']",
        )
        assert v4 == "['AF_INET'] ['AF_INET']"
        # lo has no other address of IPv6 than its own: with one each name would be asked for twice.
        assert v6.startswith("['AF_INET6'] ") and "'AF_INET6'" not in v6.split(maxsplit=1)[1]
        script = ["python3", "-c", _GLIBC]
        by_tcp = box.run(script, env={"RES_OPTIONS": "use-vc"}, check=True).text
        assert "AF_" not in by_tcp, by_tcp
