"""Programs as they are, in the namespace wall: what they ask of the kernel is there."""

import shutil
from collections.abc import Iterator

import pytest

from agentd.client.sandbox import Sandbox


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox.create(isolation="namespace", backend="linux") as made:
        yield made


def needs(program: str) -> None:
    if not any(shutil.which(program, path=path) for path in ("/usr/bin", "/usr/sbin", "/bin")):
        pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize(("program", "arguments", "said"), [
    ("node", ["-e", "console.log(Object.keys(os.networkInterfaces()))"], "lo"),
    ("python3", ["-c", "import socket; print(socket.if_nameindex())"], "'lo'"),
    ("ip", ["addr"], "127.0.0.1/8"),
    ("ip", ["route", "get", "127.0.0.1"], "dev lo"),
])  # fmt: skip
def test_a_program_lists_the_interfaces(
    box: Sandbox, program: str, arguments: list[str], said: str
) -> None:
    needs(program)
    ran = box.run([program, *arguments])
    assert ran.ok and said in ran.text, (ran.text, ran.stderr)


def test_ip_changes_none(box: Sandbox) -> None:
    needs("ip")
    for words in ("addr add 127.0.0.9/8 dev lo", "link set lo down", "link add d0 type dummy"):
        ran = box.run(["ip", *words.split()])
        assert not ran.ok and b"Operation not permitted" in ran.stderr, words


def test_a_program_with_leak_checks_runs(box: Sandbox) -> None:
    needs("gcc")
    box.run("echo 'int main(void) { return 0; }' > clean.c", check=True)
    built = box.run("gcc -fsanitize=address clean.c -o clean")
    if not built.ok:
        pytest.skip("gcc has no address sanitizer here")
    ran = box.run("./clean")
    assert ran.ok, ran.stderr


@pytest.mark.parametrize(("body", "how"), [
    ("*(volatile int *)0 = 1;", "-ex run -ex bt --args ./a.out"),
    ("pause();", "-ex bt -p $(./a.out >&2 & echo $!)"),
], ids=["run", "attach"])  # fmt: skip
def test_a_debugger_runs_and_attaches(box: Sandbox, body: str, how: str) -> None:
    needs("gdb")
    needs("gcc")
    source = f"#include <unistd.h>\nint main(void) {{ {body} return 0; }}"
    box.files.write("/workspace/a.c", source)
    box.run("gcc -g a.c", check=True)
    ran = box.run(f"gdb -nx -batch {how} < /dev/null; pkill -9 a.out; true", timeout=60)
    assert "main () at a.c:2" in ran.text, (ran.text, ran.stderr)


@pytest.mark.parametrize("options", [[], ["-f"], ["-fc"]], ids=str)
def test_system_calls_are_shown(box: Sandbox, options: list[str]) -> None:
    needs("strace")
    ran = box.run(["strace", *options, "sh", "-c", "/bin/true; exit 3"])
    assert ran.exit_code == 3 and b"execve" in ran.stderr, ran.stderr


def test_the_agent_is_attached_to_by_no_debugger(box: Sandbox) -> None:
    needs("gdb")
    ran = box.run("gdb -nx -batch -ex bt -p 1 < /dev/null", timeout=60)
    assert b"ptrace: Operation not permitted" in ran.stderr, (ran.text, ran.stderr)


@pytest.mark.parametrize(("program", "script"), [
    ("chmod", "mkdir d; chmod g+s d; test -g d"),
    ("install", "install -d -m 2775 d; test -g d"),
    ("git", "git init -q --shared r; test -g r/.git/refs"),
    ("tar", "mkdir d; chmod 6775 d; tar cf t d; rm -r d; tar xpf t; test -g d; test -u d"),
    ("cp", "mkdir d; chmod 2775 d; cp -a d e; test -g e"),
])  # fmt: skip
def test_set_id_bits_are_kept(box: Sandbox, program: str, script: str) -> None:
    needs(program)
    ran = box.run(["sh", "-ec", script])
    assert ran.ok, ran.stderr
