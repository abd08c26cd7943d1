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
