"""The caller's own side of secrets: values of its environment, its files and its commands."""

import os
import subprocess

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
    """Raises InvalidInput where it is not set."""
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
            data = file.read(MAX_VALUE + 3)
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
        done = subprocess.run(  # noqa: S602  (the caller's own command)
            command, shell=True, stdout=subprocess.PIPE, timeout=_COMMAND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InvalidInput(
            f"secret {name}: its command took more than {_COMMAND_SECONDS:g} s", remediation=fix
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"secret {name}: its command cannot be run", cause=str(error), remediation=fix
        ) from None
    if done.returncode:
        how = f"ended with exit code {done.returncode}"
        raise InvalidInput(f"secret {name}: its command {how}", remediation=fix)
    return line(done.stdout, name)
