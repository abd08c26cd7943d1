"""Overlays as the kernel makes them, in a user namespace of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

IN_NAMESPACES = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c"]
BEGIN = """
import errno, json, os, sys
from agentd.linux import mounts, overlay
from agentd.linux.kernel import KERNEL
os.chdir(sys.argv[1])
for name in ("disk", "there"):
    os.mkdir(name)
KERNEL.mount("tmpfs", "disk", "tmpfs", 0, "size=1m")
here = os.getcwd()
"""


def run(folder: Path, code: str) -> Any:
    argv = [*IN_NAMESPACES, BEGIN + code, str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def layers(folder: Path) -> None:
    for name, text in (("top", "top"), ("bottom", "bottom")):
        (folder / name / "both").mkdir(parents=True)
        (folder / name / "file").write_text(text)
        (folder / name / "both" / name).write_text(text)


def test_layers_lie_on_one_another_and_stay_as_they_were(tmp_path: Path) -> None:
    layers(tmp_path)
    said = run(
        tmp_path,
        """
lowers = [mounts.clone_tree(f"{here}/{name}", readonly=True) for name in ("top", "bottom")]
overlay.mount(f"{here}/there", lowers, f"{here}/disk", KERNEL)
found = [open("there/file").read(), sorted(os.listdir("there/both"))]
found.append(os.stat("there").st_mode & 0o777)
open("there/file", "a").write(" changed")
os.remove("there/both/bottom")
os.mkdir("there/new")
os.rmdir("there/new")
os.rename("there/both/top", "there/both/moved")
found += [open("there/file").read(), os.listdir("there/both"), sorted(os.listdir("disk/u"))]
print(json.dumps(found))
""",
    )
    assert said == ["top", ["bottom", "top"], 0o755, "top changed", ["moved"], ["both", "file"]]
    for name in ("top", "bottom"):
        assert (tmp_path / name / "file").read_text() == name
        assert os.listdir(tmp_path / name / "both") == [name]


def test_the_disk_bounds_what_is_written(tmp_path: Path) -> None:
    layers(tmp_path)
    said = run(
        tmp_path,
        """
overlay.mount(f"{here}/there", [mounts.clone_tree(f"{here}/top", readonly=True)], f"{here}/disk",
              KERNEL)
try:
    open("there/large", "wb", 0).write(b"x" * (2 << 20))
    open("there/larger", "wb", 0).write(b"x" * (2 << 20))
    print("null")
except OSError as error:
    print(json.dumps(errno.errorcode[error.errno]))
""",
    )
    assert said == "ENOSPC"


def test_a_read_only_one_takes_no_change(tmp_path: Path) -> None:
    layers(tmp_path)
    said = run(
        tmp_path,
        """
overlay.mount_readonly(f"{here}/there", [f"{here}/top", f"{here}/bottom"], KERNEL)
found = [open("there/file").read(), sorted(os.listdir("there/both"))]
try:
    open("there/new", "w")
except OSError as error:
    found.append(errno.errorcode[error.errno])
print(json.dumps(found))
""",
    )
    assert said == ["top", ["bottom", "top"], "EROFS"]
