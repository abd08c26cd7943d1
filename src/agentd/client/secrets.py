"""The caller's own side of secrets: values of its environment, its files and its commands."""

import os
import select
import subprocess
import time

from agentd.model.errors import InvalidInput, NotFound
from agentd.model.secret import (
    MAX_VALUE,
    AskedSecret,
    Secret,
    SecretOption,
    SecretValue,
    asked_secrets,
    check_fits,
    check_value,
)
from agentd.model.typed import like

_COMMAND_SECONDS = 60.0  # it may ask a person, or a service far away
_LOOK_MS = 50  # how often it is looked at whether a command that says nothing has ended
_MOST = MAX_VALUE + 2  # bytes of a value with the end of its line


def read(secrets: SecretOption) -> tuple[Secret, ...]:
    """Return them with the values that are here to be read; those that a daemon keeps have none.
    Raises InvalidInput, without a value."""
    return tuple(map(_read, asked_secrets(secrets)))


def of_this_process(name: str) -> SecretValue:
    """Return the value of a secret that has no source, where no daemon is asked: there is nobody
    who keeps one. Raises InvalidInput, NotFound."""
    if name not in os.environ:
        raise NotFound(
            f"there is no secret {name}: no daemon is asked, and no variable {name} is set here",
            remediation=f"export {name}, name a source, as {name}=file:PATH@..., or start a daemon "
            f"and agentd secret set {name}",
        )
    return check_value(name, os.environ[name])


def _read(asked: AskedSecret) -> Secret:
    binding, value = asked.binding, asked.value
    if asked.source:
        value = check_value(binding.name, _text(binding.name, asked.source))
    if value is not None:
        check_fits(binding, value)
    return like(Secret, binding, value=None if value is None else value.text)


def _text(name: str, source: str) -> str:
    kind, _, what = source.partition(":")
    if kind == "env":
        return from_env(name, what)
    if kind == "file":
        return _from_file(name, os.path.expanduser(what))
    return _from_command(name, what)


def from_env(name: str, variable: str) -> str:
    """Return the value of a variable. Raises InvalidInput where it is not set."""
    if not variable:
        raise InvalidInput(
            f"secret {name}: its environment variable has no name",
            remediation="is a variable of yours unset?",
        )
    value = os.environ.get(variable)
    if value is None:
        raise InvalidInput(
            f"secret {name}: the environment variable {variable} is not set here",
            remediation=f"export {variable}, or name another source",
        )
    return value


def line(data: bytes, name: str) -> str:
    """Return what a file or a program says, without the end of its line. Raises InvalidInput."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidInput(
            f"secret {name} has a value that is no text", remediation="give one line of ASCII"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def _from_file(name: str, path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST + 1)
    except OSError as error:
        raise InvalidInput(
            f"secret {name}: {path} cannot be read: {error.strerror}",
            remediation="give a file with one line in it",
        ) from None
    return line(data, name)


def _from_command(name: str, command: str) -> str:
    fix = "give one that prints the value and ends with exit code 0"
    try:
        # Its questions and complaints are for whoever sits there; its output is for nobody.
        with subprocess.Popen(  # noqa: S602  (the caller's own command)
            command, shell=True, stdout=subprocess.PIPE
        ) as process:
            try:
                data = _printed(process)
            finally:
                process.kill()  # where it has not ended
    except subprocess.TimeoutExpired:
        raise InvalidInput(
            f"secret {name}: its command took more than {_COMMAND_SECONDS:g} s", remediation=fix
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"secret {name}: its command cannot be run", cause=str(error), remediation=fix
        ) from None
    if process.returncode and len(data) <= _MOST:
        code = process.returncode
        how = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
        raise InvalidInput(f"secret {name}: its command {how}", remediation=fix)
    return line(data, name)


def _printed(process: "subprocess.Popen[bytes]") -> bytes:
    """Return what it prints until it ends, or more than a value has. What it leaves behind may hold
    its output open, and is not waited for. Raises TimeoutExpired."""
    pipe = -1 if process.stdout is None else process.stdout.fileno()
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    until = time.monotonic() + _COMMAND_SECONDS
    data = b""
    while len(data) <= _MOST:
        has_ended = process.poll() is not None
        if poller.poll(0 if has_ended else _LOOK_MS):
            piece = os.read(pipe, _MOST)
            if not piece:
                process.wait(max(0.0, until - time.monotonic()))
                break
            data += piece
        elif has_ended:
            break
        if time.monotonic() > until:
            raise subprocess.TimeoutExpired(process.args, _COMMAND_SECONDS)
    return data
