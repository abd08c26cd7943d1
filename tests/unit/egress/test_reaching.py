"""What is dialled for a sandbox, on a host with neighbours."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.needs("ip"), pytest.mark.needs("nsenter")]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.egress.world"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def reason(found: dict[str, Any], name: str) -> str:
    return "; ".join(why for who, _, why in found["rows"] if who == name and why)


def test_a_name_is_reached_at_the_address_that_it_has(found: dict[str, Any]) -> None:
    assert found["far.example"] == "203.0.113.9"
    assert found["203.0.113.9"] == "203.0.113.9"


def test_the_next_address_is_tried_where_one_does_not_answer(found: dict[str, Any]) -> None:
    assert found["second.example"] == "203.0.113.9"


def test_a_host_of_ipv6_alone_is_reached_by_its_name_over_ipv4(found: dict[str, Any]) -> None:
    assert found["six.example"] == "2001:db8::9"


def test_of_several_addresses_only_those_that_may_be_are_dialled(found: dict[str, Any]) -> None:
    assert found["both.example"] == "203.0.113.9"


def test_a_private_address_is_reached_by_its_hosts_whole_name_alone(found: dict[str, Any]) -> None:
    assert found["mine.example"] == "10.9.0.9"
    assert found["wild.evil.example"] == errno.ECONNRESET
    assert "10.9.0.9 is private" in reason(found, "wild.evil.example")
    assert found["10.9.0.9"] in (errno.ECONNRESET, errno.ECONNREFUSED)


def test_this_hosts_own_addresses_are_nobodys(found: dict[str, Any]) -> None:
    assert found["host.example"] is None
    assert found["203.0.113.1"] == errno.ECONNRESET
    assert reason(found, "203.0.113.1") == "203.0.113.1 is this host itself"


def test_this_hosts_own_addresses_are_nobodys_within_ipv6_either(found: dict[str, Any]) -> None:
    assert (found["mapped.example"], found["translated.example"]) == (None, None)
    for name in ("mapped.example", "translated.example"):
        assert reason(found, name) == "203.0.113.1 is this host itself"
    assert found["mappedfar.example"] == "203.0.113.9"


def test_what_is_denied_of_ipv6_is_so_where_it_leads_to_ipv4(found: dict[str, Any]) -> None:
    assert found["denied.example"] == errno.ECONNRESET
    assert reason(found, "denied.example") == "denied by ![64:ff9b::/96]"


def test_rules_that_change_while_a_name_is_resolved_hold_for_where_it_leads(
    found: dict[str, Any],
) -> None:
    assert found["late"] == errno.ECONNRESET
    assert "denied by !10.0.0.0/8" in reason(found, "late.example")


def test_where_nobody_listens_the_connection_is_reset_and_told(found: dict[str, Any]) -> None:
    assert found["closed"] == errno.ECONNRESET
    assert reason(found, "203.0.113.9") == "203.0.113.9 cannot be reached: ECONNREFUSED"
