"""What a stage is by now: its configuration, as instructions without a layer change it."""

import posixpath
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from agentd.image.oci.building import stages
from agentd.image.oci.building.errors import DockerfileError
from agentd.image.oci.building.stages import BuildStages, check_variable, expanded
from agentd.image.oci.building.syntax import Instructed, split
from agentd.image.oci.values import Descriptor, chain_id

NEVER = "1970-01-01T00:00:00Z"
_MAX_PAIRS = 1 << 20
_MAX_PORTS = 1 << 16
_SHELL = ["/bin/sh", "-c"]
# What commands have where the image says nothing, so that one can be put in front.
_USUAL = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_PORT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?")
#: Arguments that a RUN sees without an ARG, and that do not count for the cache.
PROXIES = frozenset(
    word
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for word in (name, name.upper())
)
#: What Docker knows and a build here does not, and what to do instead.
REFUSED = {"ONBUILD": "write the instruction into the Dockerfile that it is meant for"}
#: What may stand there and has no effect in a sandbox, and why.
WITHOUT_EFFECT = {
    "HEALTHCHECK": "nobody looks after the health of a sandbox; the image has none",
    "VOLUME": "folders are mounted when a sandbox is made, -v; the image names it for others",
    "STOPSIGNAL": "a command is ended by the signal that its caller names; the image names it",
}
_SIGNAL = re.compile(r"[A-Z0-9+-]{1,20}")


def utc(seconds: int) -> str:
    """Return it as a configuration tells time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class BuiltLayer(NamedTuple):
    """``path`` is that of its blob; ``plain``: it was built here, and is a tar archive."""

    blob: Descriptor
    diff_id: str
    path: str
    plain: bool


class StageState:
    """``whole`` is the image's configuration as JSON, of which this keeps all that it does not
    know; ``layers`` are all, its base's among them."""

    def __init__(self, around: BuildStages, whole: dict[str, Any], given: dict[str, str]) -> None:
        self.around, self._given = around, given
        self.file = around.file
        self.whole = whole
        self.config: dict[str, Any] = dict(whole.get("config") or {})
        self.history: list[dict[str, Any]] = list(whole.get("history") or [])
        self.created = str(whole.get("created") or NEVER)
        self.layers: list[BuiltLayer] = []
        self.args: dict[str, str] = {}
        self._own_cmd = False
        self._env_of: tuple[object, dict[str, str]] = (None, {})

    def copy(self, given: dict[str, str]) -> "StageState":
        """Return it as another stage begins that is FROM this one."""
        again = StageState(self.around, self.whole, given)
        again.config = dict(self.config)  # what an instruction changes in it, it makes anew
        again.history, again.layers = list(self.history), list(self.layers)
        again.created, again.args = self.created, dict(self.args)
        return again

    @property
    def chain(self) -> str:
        return chain_id(layer.diff_id for layer in self.layers)

    @property
    def env(self) -> dict[str, str]:
        """Return the environment, not to be changed: it is kept until ENV says something else."""
        told = self.config.get("Env") or []
        if self._env_of[0] is not told:
            pairs = (each.partition("=") for each in told)
            self._env_of = told, {name: value for name, equals, value in pairs if equals}
        return self._env_of[1]

    @property
    def shell(self) -> list[str]:
        return list(self.config.get("Shell") or _SHELL)

    @property
    def workdir(self) -> str:
        return str(self.config.get("WorkingDir") or "/")

    def lookup(self, name: str) -> str | None:
        return self.env.get(name, self.args.get(name, _USUAL.get(name)))

    def arguments(self) -> dict[str, str]:
        """Return what a RUN has in its environment beside ENV, proxies left out."""
        own = self.env
        return {name: value for name, value in self.args.items() if name not in own}

    def proxies(self) -> dict[str, str]:
        own = self.env
        return {n: v for n, v in self._given.items() if n in PROXIES and n not in own}

    def expanded(self, instruction: Instructed, text: str, *, quotes: bool = True) -> str:
        """Expand a text by its variables. Raises DockerfileError."""
        return expanded(self.file, instruction.line, text, self.lookup, quotes=quotes)

    def remember(self, instruction: Instructed, created: str | None = None) -> None:
        """Add to the history; ``created`` where there is a new layer."""
        entry: dict[str, Any] = {"created": created or self.created}
        entry["created_by"] = instruction.shown[:4096]
        if created is None:
            entry["empty_layer"] = True
        self.created = entry["created"]
        self.history.append(entry)

    def absolute(self, path: str) -> str:
        """Return a path in the image, from the working directory; a slash at its end stays."""
        end = "/" if path.endswith(("/", "/.")) or path == "." else ""
        whole = posixpath.normpath(posixpath.join("/", self.workdir, path))
        return whole.replace("//", "/").rstrip("/") + end or "/"

    def apply(self, instruction: Instructed) -> bool:
        """Do what an instruction without a layer says; False for one with a layer. Raises
        DockerfileError."""
        known: dict[str, Callable[[Instructed], None]] = {
            "ARG": self._arg,
            "ENV": self._env,
            "LABEL": self._label,
            "USER": self._user,
            "CMD": self._cmd,
            "ENTRYPOINT": self._entrypoint,
            "EXPOSE": self._expose,
            "SHELL": self._shell,
            "MAINTAINER": self._maintainer,
            "STOPSIGNAL": self._stop_signal,
            "VOLUME": self._volume,
            "HEALTHCHECK": lambda _: None,
        }
        done = known.get(instruction.word)
        if done is None:
            return False
        done(instruction)
        self.remember(instruction)
        return True

    def wrong(self, instruction: Instructed, what: str, fix: str) -> DockerfileError:
        return self.file.wrong(instruction.line, what, fix)

    def _arg(self, instruction: Instructed) -> None:
        for name, default in stages.arguments(self.file, instruction, self.lookup):
            outer = (stages.platform() | self.around.args).get(name)
            value = self._given.get(name, outer if default is None else default)
            if value is not None:
                self.args[name] = value

    def _env(self, instruction: Instructed) -> None:
        env = self.env | self._pairs(instruction)
        self._check_size(instruction, env)
        self.config["Env"] = [f"{name}={value}" for name, value in env.items()]

    def _label(self, instruction: Instructed) -> None:
        labels = dict(self.config.get("Labels") or {})
        labels.update(self._pairs(instruction, names=False))
        self._check_size(instruction, labels)
        self.config["Labels"] = labels

    def _check_size(self, instruction: Instructed, pairs: dict[str, str]) -> None:
        """What an image says of itself is read as a whole, by all that start of it."""
        if sum(len(name) + len(value) for name, value in pairs.items()) > _MAX_PAIRS:
            what = f"{instruction.word} has more than {_MAX_PAIRS} letters in all"
            raise self.wrong(instruction, what, "put it into a file of the image")

    def _user(self, instruction: Instructed) -> None:
        user = self.expanded(instruction, instruction.text)
        if not user or len(user.split()) != 1:
            raise self.wrong(instruction, f"USER {user!r} is no user", "write USER NAME[:GROUP]")
        self.config["User"] = user

    def _cmd(self, instruction: Instructed) -> None:
        self.config["Cmd"] = self.command(instruction)
        self._own_cmd = True

    def _entrypoint(self, instruction: Instructed) -> None:
        self.config["Entrypoint"] = self.command(instruction)
        if not self._own_cmd:
            self.config.pop("Cmd", None)  # the base's, which was for another entrypoint

    def command(self, instruction: Instructed) -> list[str]:
        """Return the exec form as it is, or the text for the shell."""
        words = instruction.words
        return list(words) if words is not None else [*self.shell, instruction.text]

    def _expose(self, instruction: Instructed) -> None:
        ports = dict(self.config.get("ExposedPorts") or {})
        asked = 0
        for word in split(self.expanded(instruction, instruction.text), self.file.escape):
            found = _PORT.fullmatch(word.lower())
            last = int(found[2] or found[1]) if found else 0
            if found is None or not int(found[1]) <= last < 1 << 16:
                raise self.wrong(
                    instruction, f"EXPOSE {word[:80]}", "write a port, as 80 or 53/udp"
                )
            asked += last + 1 - int(found[1])
            if asked > _MAX_PORTS:
                raise self.wrong(instruction, f"EXPOSE of over {_MAX_PORTS} ports", "name fewer")
            for port in range(int(found[1]), last + 1):
                ports[f"{port}/{found[3] or 'tcp'}"] = {}
        self.config["ExposedPorts"] = ports

    def _maintainer(self, instruction: Instructed) -> None:
        self.whole = self.whole | {"author": self.expanded(instruction, instruction.text)}

    def _stop_signal(self, instruction: Instructed) -> None:
        signal = self.expanded(instruction, instruction.text)
        if not _SIGNAL.fullmatch(signal):
            raise self.wrong(instruction, f"STOPSIGNAL {signal}", "write a signal, as SIGTERM")
        self.config["StopSignal"] = signal

    def _volume(self, instruction: Instructed) -> None:
        words = instruction.words or split(instruction.text, self.file.escape)
        paths = [self.expanded(instruction, word) for word in words]
        if not all(paths):
            raise self.wrong(instruction, "VOLUME of nothing", "write the path of a folder")
        volumes = dict(self.config.get("Volumes") or {}) | {path: {} for path in paths}
        self._check_size(instruction, dict.fromkeys(volumes, ""))
        self.config["Volumes"] = volumes

    def _shell(self, instruction: Instructed) -> None:
        words = instruction.words
        if not words:
            raise self.wrong(instruction, "SHELL wants words", 'write SHELL ["/bin/sh", "-c"]')
        self.config["Shell"] = list(words)

    def _pairs(self, instruction: Instructed, *, names: bool = True) -> dict[str, str]:
        """``a=b c="d e"``, or the old ``a b c``, which is one."""
        words = split(instruction.text, self.file.escape)
        if "=" not in words[0]:
            name, *rest = instruction.text.split(None, 1)
            if not rest:
                raise self.wrong(
                    instruction, f"{instruction.word} {name[:80]} has no value", "write NAME=VALUE"
                )
            pairs = [(name, rest[0])]
        else:
            pairs = [(name, value) for name, _, value in (word.partition("=") for word in words)]
        found = {}
        for name, value in pairs:
            told = self.expanded(instruction, name)
            if names or not told:
                check_variable(self.file, instruction, told)
            found[told] = self.expanded(instruction, value)
        return found
