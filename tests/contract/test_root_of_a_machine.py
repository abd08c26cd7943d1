"""Root of a virtual machine, whose root is its own to write to."""

from collections.abc import Callable

import pytest
from tests.rootfs import IMAGE

from agentd.client.sandbox import Sandbox
from agentd.model.errors import Refused

pytestmark = [
    pytest.mark.parametrize("kind", ["qemu"], indirect=True),
    pytest.mark.skipif(bool(IMAGE), reason="the root is an image's, not the machine's"),
]


def test_it_writes_anywhere_and_is_told_so(make: Callable[..., Sandbox]) -> None:
    with pytest.raises(Refused, match="written to by its root alone"):
        make(writable=True)
    machine = make(user="root", writable=True)
    assert machine.run("mkdir /app && touch /app/x /etc/y && chown 5:6 /app/x").exit_code == 0
    assert machine.run("stat -c %u:%g /app/x").text == "5:6\n"
    told = machine.enforcement["root"]
    assert (told.asked, told.enforced) == ("writable", True)
    assert "not by the disk limit" in told.detail
