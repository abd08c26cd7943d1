"""The probe where KVM works: a guest with a KVM of its own is booted and asked.

By make test-combinations; every run finds a KVM in its emulated machine, by the same probe.
"""

from typing import Any

import pytest
from tests import combinations
from tests.vm import debian, nested

pytestmark = pytest.mark.skipif(
    not combinations.ALL, reason="make test-combinations boots a machine for this alone"
)


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    try:
        return nested.reports()
    except debian.Unavailable as missing:
        pytest.skip(f"needs a guest under QEMU: {missing}")


def test_a_kvm_that_runs_a_guest_is_usable(reports: dict[str, dict[str, Any]]) -> None:
    assert reports["after"] == {
        "usable": True,
        "what": "",
        "fix": "",
        "detail": "ran a guest in long mode until it halted",
    }


def test_a_cpu_that_could_lacks_only_the_module(reports: dict[str, dict[str, Any]]) -> None:
    assert reports["before"]["what"] == "/dev/kvm does not exist"
    assert reports["before"]["fix"] == "modprobe kvm_amd"


def test_a_user_without_the_right_is_told_which(reports: dict[str, dict[str, Any]]) -> None:
    assert reports["another user"]["what"] == "uid 1000 may not open /dev/kvm"
    assert "usermod -aG kvm" in reports["another user"]["fix"]
