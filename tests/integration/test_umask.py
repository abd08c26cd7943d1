"""What agentd's caller keeps from others is no matter of its sandboxes: the unit has umask 077."""

import subprocess
import sys

import pytest
from tests.conftest import OrdinaryUser


@pytest.mark.parametrize("backend", ["linux", "landlock"])
@pytest.mark.parametrize("umask", [0o027, 0o077], ids=oct)
def test_a_sandbox_is_the_same_under_any_umask(backend: str, umask: int) -> None:
    where = ["--backend", backend, "--isolation", "process"]
    command = "umask; cd $HOME; cat /etc/passwd >file && stat -c %a file"
    argv = [sys.executable, "-m", "agentd", "run", *where, "--", "sh", "-c", command]
    done = subprocess.run(argv, capture_output=True, text=True, umask=umask, check=False)
    assert done.stdout.split() == ["0022", "644"], done.stderr


@pytest.mark.parametrize("backend", ["linux", "landlock"])
def test_a_umask_that_takes_from_its_owner_too_is_no_matter(
    as_user: OrdinaryUser, backend: str
) -> None:
    where = ["--backend", backend, "--isolation", "process"]
    start = ["sh", "-c", 'umask 0777; exec "$@"', "sh", *as_user._python, "-m", "agentd"]
    done = as_user.run([*start, "run", *where, "--", "sh", "-c", "umask; echo a >f && cat f"])
    assert done.stdout.split() == [b"0022", b"a"], done.stderr


def test_a_program_whose_umask_takes_from_its_owner_is_told_so(as_user: OrdinaryUser) -> None:
    """Before anything is left that could not be removed."""
    for mask, said in (("0o777", "the umask of this process, 0777, takes from us"), ("0o077", "")):
        where = "isolation='process', backend='landlock', embedded=True"
        code = f"""
import os, agentd
os.umask({mask})
try:
    with agentd.Sandbox.create({where}) as box:
        print(box.run("umask").stdout)
except agentd.AgentdError as error:
    print(error)
"""
        done = as_user.python("-c", code)
        assert done.stdout.decode().startswith(said or "b'0022"), done.stderr
    assert all(path.lstat().st_mode & 0o400 for path in as_user.home.rglob("*"))
