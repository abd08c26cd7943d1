"""What is mounted in an image's root, where something of another kind is."""

import errno
import socket
from pathlib import Path

import pytest

from agentd.guest.zygote.image_root import make_places
from agentd.guest.zygote.messages import refuse
from agentd.model.errors import InvalidInput
from agentd.sandbox.backends.oci.starting import Launcher, await_started


def test_it_is_told_by_its_path_inside_and_as_the_callers_to_mend(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    with pytest.raises(NotADirectoryError) as met:
        make_places(str(tmp_path), [("/etc/hosts", True)], {"/etc/hosts": b""})
    assert (met.value.errno, met.value.filename) == (errno.ENOTDIR, "/etc/hosts")
    ours, builder = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, builder:
        refuse(builder, None, met.value)
        with pytest.raises(InvalidInput, match="a mount has no place") as told:
            await_started(ours, 10.0, "runc", Launcher.__new__(Launcher))
    assert "no folder goes where a file is: '/etc/hosts'" in told.value.cause
