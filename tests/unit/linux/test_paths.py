import errno
import os
from pathlib import Path

import pytest

from agentd.linux import paths


def test_a_plain_path_is_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    for path, folder in ((tmp_path / "folder", True), (tmp_path / "folder" / "file", False)):
        fd = paths.open_plain(f"{path}/" if folder else str(path))
        try:
            assert os.path.samestat(os.fstat(fd), path.stat())
            assert paths.is_folder(fd) is folder
        finally:
            os.close(fd)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("link", errno.ELOOP),
        ("link/file", errno.ELOOP),
        ("folder/file/x", errno.ENOTDIR),
        ("folder/../folder", errno.EINVAL),
        ("absent", errno.ENOENT),
    ],
)
def test_a_link_on_the_way_is_refused(tmp_path: Path, path: str, code: int) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        paths.open_plain(f"{tmp_path}/{path}")
    assert caught.value.errno == code
