"""What is said of a file that cannot be run as a program, beside the kernel's word for it."""

from agentd import Sandbox

_ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0"
_MAKE = "make #!/bin/sh, say, its first line"
_NONE = "its first line names no interpreter"


def test_a_format_that_is_none() -> None:
    with Sandbox.create(embedded=True) as sandbox:
        for data, why, fix in (
            (b"", "it is empty", ""),
            (b"echo hi\n", f"it is no program, and {_NONE}", _MAKE),
            (b"#!\necho hi\n", _NONE, _MAKE),
            (_ELF + b"\xf3\0" + bytes(100), "it is for another kind of machine", ""),
            (_ELF[:4], "it is damaged", ""),
        ):
            sandbox.files.write("/workspace/tool", data, mode=0o755)
            ended = sandbox.run(["./tool"])
            assert ended.exit_code == 126
            assert f"./tool: Exec format error, as {why} (stage exec)" in ended.cause.message
            assert fix in ended.cause.remediation


def test_a_working_directory_that_is_none() -> None:
    with Sandbox.create(embedded=True) as sandbox:
        sandbox.run("mkdir closed; chmod 0 closed; touch file", check=True)
        for folder, code, why, fix in (
            ("none", 127, "No such file or directory", "make it first: mkdir -p"),
            ("closed", 126, "Permission denied", "let others in (chmod a+x)"),
            ("file", 126, "Not a directory", "that is a file"),
        ):
            ended = sandbox.run("true", cwd=f"/workspace/{folder}")
            assert (ended.exit_code, why in ended.cause.message) == (code, True)
            assert fix in ended.cause.remediation
