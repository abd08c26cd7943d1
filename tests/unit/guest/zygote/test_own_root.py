"""A part of the root made again: what is copied, what lies behind an overlay, and what cannot."""

import errno
import os
from pathlib import Path

import pytest
from tests.recording import RecordingKernel

from agentd.guest.zygote import own_root
from agentd.linux import abi


def test_files_folders_and_links_are_copied(tmp_path: Path) -> None:
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "deep" / "file").write_bytes(b"text")
    (tmp_path / "from" / "link").symlink_to("deep/file")
    kernel = RecordingKernel()
    own_root.make_private(f"{tmp_path}/from", f"{tmp_path}/to", kernel)
    assert kernel.calls == []
    assert (tmp_path / "to" / "deep" / "file").read_bytes() == b"text"
    assert os.readlink(tmp_path / "to" / "link") == "deep/file"


def test_what_is_mounted_lies_behind_an_overlay_that_is_read_only(tmp_path: Path) -> None:
    kernel = RecordingKernel()
    own_root.make_private("/proc", f"{tmp_path}/to", kernel)
    ((name, args),) = kernel.calls
    assert (name, args[2], args[4]) == (
        "mount",
        b"overlay",
        b"userxattr,lowerdir=/.agentd/nothing:/proc",
    )
    assert args[3] == abi.MS_RDONLY | abi.MS_NOSUID | abi.MS_NODEV
    assert list((tmp_path / "to").iterdir()) == []


def test_where_there_is_no_overlay_the_path_and_the_setting_are_named(tmp_path: Path) -> None:
    kernel = RecordingKernel({"mount": [OSError(errno.EINVAL, "Invalid argument")]})
    with pytest.raises(OSError, match=r"/proc.*sandbox\.private_programs") as caught:
        own_root.make_private("/proc", f"{tmp_path}/to", kernel)
    assert caught.value.errno == errno.EINVAL
