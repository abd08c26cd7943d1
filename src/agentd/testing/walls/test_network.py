"""A network of rules: a wall that has such a thing holds to it, and any other refuses the rules."""

from collections.abc import Callable, Iterator

import pytest

from agentd import Sandbox
from agentd.testing.walls.claims import granted, needs

#: No name server has it (RFC 6761).
RULE = "allowed.invalid:443"
DIAL = """
import errno, socket, sys
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 60) as made:
            made.sendall(b"?")
            print("through" if made.recv(1) else "closed")
    except socket.gaierror:
        print("unknown")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
OWN = """
import socket
with socket.create_server(("0.0.0.0", 8080)) as server:
    with socket.create_connection(("127.0.0.1", 8080), 60) as made, server.accept()[0] as taken:
        taken.sendall(b"own")
        print(made.recv(9).decode())
"""


@pytest.fixture
def restricted(make: Callable[..., Sandbox]) -> Iterator[Sandbox]:
    sandbox = granted(make, net=[RULE])
    needs(sandbox, "python3")
    yield sandbox


def test_the_report_has_the_rules(restricted: Sandbox) -> None:
    control = restricted.enforcement["network"]
    assert (control.asked, control.enforced) == ("restricted", True)
    assert RULE in control.detail


def test_nothing_is_reached_that_no_rule_names(restricted: Sandbox) -> None:
    numbers = ("192.0.2.1:443", "169.254.169.254:80", "2001:db8::1:443", "8.8.8.8:443")
    names = ("localhost.invalid:443", "example.com:443")
    done = restricted.run(["python3", "-c", DIAL, *numbers, *names], check=True)
    told = done.text.split()
    assert set(told[:4]) <= {"closed", "ECONNRESET", "ECONNREFUSED", "EPIPE", "ENETUNREACH"}, told
    assert told[4:] == ["unknown", "unknown"]
    found = restricted.network.connections().connections
    assert {row.address for row in found if not row.allowed} >= {"192.0.2.1", "8.8.8.8"}
    assert not any(row.allowed for row in found)


def test_its_loopback_is_its_own(restricted: Sandbox) -> None:
    assert restricted.run(["python3", "-c", OWN], check=True).text == "own\n"


def test_its_rules_can_be_changed(restricted: Sandbox) -> None:
    restricted.network.set(["other.invalid:443"])
    done = restricted.run(["python3", "-c", DIAL, "8.8.8.8:443"])
    assert done.text != "through\n"
    assert "other.invalid" in done.enforcement["network"].detail
    assert RULE not in done.enforcement["network"].detail
