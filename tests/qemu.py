"""What every run asks of QEMU's machines about networks of rules, of which each is emulated where
there is no KVM; make test-networks-vm asks all."""

import os

import pytest

ALL = os.environ.get("AGENTD_TEST_NETWORKS_VM") == "1"
#: Of a machine whose root is of an image.
PROGRAMS = ("qemu-system-x86_64", "mkfs.erofs", "skopeo", "umoci")
WALL = pytest.param("qemu", marks=[pytest.mark.needs(*PROGRAMS), pytest.mark.timeout(900)])
