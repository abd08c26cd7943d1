"""``agentd``: finds the command and turns every failure into one line and an exit code.

Nothing is imported that the command does not need: Python's start is most of the time.
"""

import atexit
import contextlib
import errno
import gc
import io
import os
import sys

_CLI = "agentd.client.cli"
GROUPS = {
    "run": {
        "run": "run a command in a fresh sandbox",
        "doctor": "say what agentd run gets here, and how to get more",
        "selftest": "attack the walls of this machine, to see that they hold",
    },
    "sandboxes of a daemon": {
        "create": "make a sandbox that goes on until it is killed",
        "ls": "list them",
        "inspect": "show all about one",
        "renew": "give one more time",
        "fork": "copy one as it is now",
        "pause": "let one stand still",
        "resume": "let it go on",
        "kill": "end them, or signal a command",
    },
    "commands and files in them": {
        "exec": "run a command",
        "shell": "open a shell",
        "attach": "go back to a command that runs",
        "logs": "print what a command wrote",
        "cp": "copy files and directories in and out",
        "port": "reach a server inside from this machine",
        "net": "show and change what they may reach, and see what they did",
    },
    "what can be asked for by name": {
        "capability": "list the capabilities, or show one",
        "call": "call one, in a sandbox or in one made for it",
    },
    "the daemon": {
        "serve": "run it",
        "stats": "show what it is doing",
        "events": "show what happens to sandboxes, as it happens",
        "key": "make, list and revoke API keys",
        "sign": "sign a request, or make a key to sign with",
        "approval": "decide on requests that wait for it",
        "config": "check its configuration, or show what holds",
        "policy": "check, test, explain and learn what is allowed",
    },
    "what was done": {
        "audit": "look at the audit log, verify it, export it",
        "receipt": "look at what a receipt says, and verify it",
    },
    "what sandboxes are made of": {
        "image": "fetch, build and list images",
        "template": "list what the configuration says they may be made as",
        "volume": "make, list, copy and delete folders that outlive sandboxes",
        "packages": "list what was fetched for them, and remove it",
        "secret": "keep, list and remove what sandboxes use and never have",
        "snapshot": "keep a sandbox as it is, list and delete what is kept",
        "guest": "write the guest agent, with a Python or without",
        "print-seccomp": "show the filter of system calls, and why it is as it is",
    },
    "this command line": {"completion": "let a shell complete commands and options"},
}
COMMANDS = {
    name: (f"{_CLI}.{name.replace('-', '_')}", text)
    for group in GROUPS.values()
    for name, text in group.items()
}
# As other tools call it.
_ELSEWHERE = {
    "ps": "ls",
    "list": "ls",
    "rm": "kill",
    "stop": "kill",
    "delete": "kill",
    "destroy": "kill",
    "new": "create",
    "ssh": "shell",
    "copy": "cp",
    "images": "image ls",
    "pull": "image pull",
    "build": "image build",
    "push": "image push",
    "commit": "image commit",
    "daemon": "serve",
    "start": "serve, or resume",
    "unpause": "resume",
    "top": "stats",
    "status": "stats",
    "info": "doctor",
    "version": "--version",
}
# An option of Python's, by which a process started again knows what it was given by the first.
_KEPT = "agentd_printed_as_before"
BAD_INPUT = 2
# New objects before garbage is looked for. A command makes half as many as it starts, and they all
# stay: to look through them twenty times took a tenth of its time.
_GARBAGE = 50_000
OWN_FAILURE = 125


def main(argv: list[str] | None = None) -> int:
    """Run a command; return the exit code. Raises SystemExit and KeyboardInterrupt alone."""
    if argv is None:
        _take_names_for_utf8()
        os.umask(os.umask(0o077) & 0o077)  # what we make we can open ourselves
        _open_streams()
        atexit.register(gc.freeze)  # at the end of a process of our own what it holds is let be
    _survive_any_text()
    words = sys.argv[1:] if argv is None else argv
    if argv is None and words[:1] != ["serve"]:
        gc.set_threshold(_GARBAGE)
    try:
        return _written(_ran(words))
    except SystemExit as ended:  # argparse's, after --help
        raise SystemExit(_written(int(ended.code or 0))) from None
    except OSError as error:  # of --help and --version
        return _unwritten(error)


def _take_names_for_utf8() -> None:
    """Start again where Python takes names for ASCII (PYTHONUTF8=0 in the C locale): a sandbox and
    a daemon are told them in UTF-8. What is printed stays as it would have been."""
    if sys._xoptions.pop(_KEPT, None):
        os.environ.pop("PYTHONIOENCODING", None)  # ours, and not for what we start
    if sys.flags.utf8_mode or sys.getfilesystemencoding() != "ascii" or not sys.executable:
        return
    env, words = dict(os.environ), ["-X", "utf8"]
    if sys.stdout is not None and "PYTHONIOENCODING" not in env:
        env["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:{sys.stdout.errors}"
        words += ["-X", _KEPT]
    with contextlib.suppress(OSError):  # then it is ASCII
        os.execve(sys.executable, [sys.executable, *words, *sys.orig_argv[1:]], env)  # noqa: S606


def _ran(words: list[str]) -> int:
    if words[:1] == ["help"] and words[1:]:
        if wrong := _of_no_help(words[1:]):
            _say(f"agentd help: {wrong}")
            return BAD_INPUT
        words = [*words[1:], "--help"]  # agentd help run, or help image build
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else BAD_INPUT
    if words[0] in ("-V", "--version"):
        from agentd._version import __version__

        print(f"agentd {__version__}")
        return 0
    if words[0] not in COMMANDS:
        _say(f"agentd: unknown command {words[0]!r} ({_meant(words[0])})")
        return BAD_INPUT
    return _guarded(words[0], words[1:])


def _of_no_help(words: list[str]) -> str:
    """Say what is wrong with ``words`` but for the first; "" where it is nothing. Behind --help
    they would be a command to run."""
    name, *rest = words
    if name not in COMMANDS or not rest:
        return ""
    from importlib import import_module

    actions = import_module(COMMANDS[name][0])._parser()._actions_here
    over = rest[1:] if rest[0] in actions else rest
    return f"unrecognized arguments: {' '.join(over)} (see agentd help {name})" if over else ""


def _guarded(name: str, words: list[str]) -> int:
    from agentd.model.errors import AgentdError, InvalidInput

    try:
        from importlib import import_module

        return int(import_module(COMMANDS[name][0]).main(words))
    except InvalidInput as error:
        _say(f"agentd {name}: {_as_typed(str(error), name, words)}")
        return BAD_INPUT
    except AgentdError as error:
        if error.code == "unauthenticated":
            error.remediation = _credential()
        _say(f"agentd {name}: {error}")
        return OWN_FAILURE
    except BrokenPipeError as error:
        return _unwritten(error)
    except KeyboardInterrupt:
        return 128 + 2
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _unwritten(error, name)
        if os.environ.get("AGENTD_DEBUG") == "1":
            raise
        if isinstance(error, FileNotFoundError) and "No usable temporary dir" in str(error):
            _say(
                f"agentd {name}: there is no folder for temporary files "
                "(set TMPDIR to one you may write to)"
            )
            return OWN_FAILURE
        if isinstance(error, RuntimeError) and "start new thread" in str(error):
            _say(
                f"agentd {name}: no thread can be started (raise the limit of processes: "
                "ulimit -u, pids.max of the control group; or see agentd doctor)"
            )
            return OWN_FAILURE
        _say(
            f"agentd {name}: internal error: {type(error).__name__}: {error} "
            "(AGENTD_DEBUG=1 shows where)"
        )
        return OWN_FAILURE


def _as_typed(text: str, command: str, words: list[str]) -> str:
    """Call options what the command line calls them: ``--net-bytes`` for ``net_bytes``, and the one
    whose value is wrong as it was typed."""
    import re
    from importlib import import_module

    typed = words[: words.index("--")] if "--" in words else words
    for option in (word.partition("=")[0] for word in typed):
        name = option.removeprefix("--")
        if name == option:
            continue
        if name == "secret" and text.startswith(("secret ", "a secret ")):
            return option + text.partition("secret")[2]
        for said in (name.replace("-", "_"), name.replace("-", " ")):
            if text.startswith((f"{said} '", f"{said} of ")):
                text = option + text.removeprefix(said)
    known = import_module(COMMANDS[command][0])._parser()._options()

    def called(found: re.Match[str]) -> str:
        option = f"--{found[0].replace('_', '-')}"
        return option if option in known else found[0]

    return re.sub(r"(?<![\w.'\"/:=-])[a-z]+(_[a-z]+)+(?![\w.'\"/=])", called, text)


def _meant(word: str) -> str:
    from agentd.client.cli.parser import near

    meant = _ELSEWHERE.get(word.lower()) or near(word, (*COMMANDS, "--help", "--version"))
    if meant:
        return f"did you mean {meant}? agentd --help lists all"
    return f"use one of: {', '.join(COMMANDS)}"


def _help() -> str:
    lines = []
    for heading, commands in GROUPS.items():
        lines += [f"{heading}:", *(f"  {name:<13} {text}" for name, text in commands.items()), ""]
    return "\n".join(
        [
            "usage: agentd COMMAND [options]",
            "",
            "Run untrusted commands behind a wall you choose, and learn what that wall was.",
            "",
            *lines,
            "examples:",
            "  agentd run -- python3 -c 'print(6*7)'",
            "  agentd run --json --timeout 2s -- sh -c 'exit 3'",
            "  agentd doctor",
            "  box=$(agentd create) && agentd exec $box -- uname -a && agentd kill $box",
            "",
            "agentd help COMMAND tells more; agentd --version tells the version.",
        ]
    )


def _credential() -> str:
    """Say the fix in the command line's words: the daemon's answer speaks of an HTTP header."""
    if os.environ.get("AGENTD_API_KEY"):
        return "AGENTD_API_KEY holds a key that this daemon does not take: get another"
    return "set AGENTD_API_KEY to a key of this daemon; agentd key create makes one there"


def _say(line: str) -> None:
    # One line whatever the message holds: an argument may contain newlines.
    text = " ".join(line.split("\n"))
    if not text.isprintable():  # others' words, which must not reach the terminal as control codes
        from agentd.client.cli.remote import safe

        text = safe(text)
    print(text, file=sys.stderr)


def _open_streams() -> None:
    """Open /dev/null for each standard stream that was closed at the start: else what is opened
    next has its number, and is read as the standard input or gets the output. Python has None for
    it, to which nothing can be written but by print(), and that to stdout in place of stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or _kept_by_nobody(1)
    sys.stderr = sys.stderr or _kept_by_nobody(2)


def _kept_by_nobody(number: int) -> io.TextIOWrapper:
    return open(number, "w", encoding="utf-8", closefd=False)


def _survive_any_text() -> None:
    """What a stream's encoding lacks is written as an escape, as Python has it for stderr: an ASCII
    stdout, or a file's name that is no UTF-8, ends no command."""
    for stream in (sys.stdout, sys.stderr):
        # Under pytest, or where the descriptor was closed, it is no text file.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _written(code: int) -> int:
    """``code``, unless what stands on stdout cannot be written: Python would see that at its exit,
    with an exit code and a traceback of its own."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        return _unwritten(error)
    return code


def _unwritten(error: OSError, name: str = "") -> int:
    """Quiet where the reader went away, as with ``| head``: as a shell reports SIGPIPE."""
    _silence()
    if isinstance(error, BrokenPipeError):
        return 128 + 13
    where = error.filename or "standard output"
    _say(f"agentd {name}".rstrip() + f": cannot write {where}: {error.strerror} (write elsewhere)")
    return OWN_FAILURE


def _silence() -> None:
    """Drop what neither stream could write; Python would try again at its exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, AttributeError):  # there is none where it was closed at the start
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1 if stream is sys.stdout else 2)
            os.close(null)
