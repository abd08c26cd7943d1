import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.model.errors import InvalidInput
from agentd.model.limits import DEFAULTS, Limits
from agentd.sandbox.backends import limits as of_backends
from agentd.sandbox.backends.limits import (
    file_max,
    group_controls,
    limit_control,
    on_this_kernel,
    with_defaults,
)


def test_defaults_fill_what_was_not_asked() -> None:
    limits = with_defaults(Limits(pids=3, timeout=1.5))
    assert (limits.pids, limits.timeout, limits.memory) == (3, 1.5, DEFAULTS.memory)


@pytest.mark.parametrize(
    ("asked", "value", "text"),
    [
        (None, 1 << 30, "default 1G"),
        (64 << 20, 64 << 20, "64M"),
        (0.5, 0.5, "0.5"),
        (None, 512, "default 512"),
    ],
)
def test_limits_read_as_people_write_them(asked: float | None, value: float, text: str) -> None:
    assert limit_control(asked, value, True, "how").asked == text


def test_without_a_group_nothing_is_claimed() -> None:
    asked = Limits(cpus=2.0)
    table = group_controls(asked, with_defaults(asked), None, "why not")
    assert set(table) == {"memory", "cpus", "pids"}
    assert not any(control.enforced for control in table.values())
    assert {control.detail for control in table.values()} == {"why not"}


def test_a_limit_that_has_no_value_has_no_entry() -> None:
    assert "cpus" not in group_controls(Limits(), with_defaults(Limits()), None, "x")


@pytest.mark.parametrize("table", [1 << 17, 800_000, 2_470_000, (1 << 63) - 1])
@pytest.mark.parametrize("pids", [None, 64, 512])
def test_one_sandbox_holds_at_most_a_quarter_of_the_table(
    monkeypatch: pytest.MonkeyPatch, table: int, pids: int | None
) -> None:
    monkeypatch.setattr(of_backends, "file_max", lambda: table)
    limits = on_this_kernel(Limits(pids=pids))
    assert limits.open_files is not None
    assert limits.pids is not None
    assert limits.open_files <= 4096
    assert limits.open_files >= 256
    assert limits.pids == pids or pids is None
    if pids != 512 or table > 1 << 19:  # whoever asks for many has them, of few files each
        assert limits.open_files * limits.pids <= table // 4


def test_the_default_is_of_this_machine() -> None:
    assert file_max() == int(Path("/proc/sys/fs/file-max").read_text())
    limits = on_this_kernel(Limits())
    assert (limits.open_files or 0) <= resource.getrlimit(resource.RLIMIT_NOFILE)[1] % (1 << 64)


def test_more_files_than_we_may_have_are_refused() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("this process may have any number")
    with pytest.raises(InvalidInput, match=f"more than agentd itself may have, {hard}") as error:
        on_this_kernel(Limits(open_files=hard + 1))
    assert "ulimit" in error.value.remediation


@pytest.mark.parametrize("backend", ["linux", "landlock", "host"])
def test_a_caller_with_few_files_gives_no_more(backend: str) -> None:
    agentd = [sys.executable, "-m", "agentd"]
    words = [*agentd, "run", "--json", "--backend", backend]

    def run(*more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh", *words, *more],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = run("--", "sh", "-c", "ulimit -n")
    told = json.loads(done.stdout)
    assert (told["stdout"], told["enforcement"]["open_files"]["asked"]) == ("200\n", "default 200")
    refused = run("--open-files", "201", "--", "true")
    assert refused.returncode != 0
    assert "201 open files are more than agentd itself may have, 200" in refused.stderr
