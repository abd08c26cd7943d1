"""The image of a sandbox, where the machine is short of something."""

import errno
import os
from types import SimpleNamespace

import pytest

from agentd.model.errors import SandboxError
from agentd.sandbox.backends.linux.image import LinuxImageRoot


@pytest.mark.parametrize(
    ("number", "fix"), [(errno.EMFILE, "ulimit -n"), (errno.EINVAL, "set XDG_CACHE_HOME")]
)
def test_an_image_that_cannot_be_mounted_is_to_blame_for_that_alone(number: int, fix: str) -> None:
    root = LinuxImageRoot.__new__(LinuxImageRoot)
    root._root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    root.image = SimpleNamespace(name="alpine")  # type: ignore[assignment]
    root.lease = SimpleNamespace(path="/images/alpine")  # type: ignore[assignment]

    def refused(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    lender = SimpleNamespace(may_mount=False, clone_tree=refused)
    try:
        with pytest.raises(SandboxError, match="alpine cannot be mounted") as caught:
            root.mount(lender, None)  # type: ignore[arg-type]
    finally:
        os.close(root._root)
    assert fix in caught.value.remediation
