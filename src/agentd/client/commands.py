"""What a sandbox is asked to do: its commands, and the capabilities that are called in it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from agentd.client import arguments, build, wording
from agentd.client.build import Command, ExecOptions
from agentd.client.code import PYTHON, CodeResult, code_parameters, code_result
from agentd.client.process import Process
from agentd.client.signature import options_shown
from agentd.model.errors import AgentdError
from agentd.model.options import Time
from agentd.model.result import Result
from agentd.model.spec import ExecRequest, Pty

if TYPE_CHECKING:
    from agentd.client.ports import Service
    from agentd.model.api import CallView


class CommandFailed(AgentdError):
    """``run(check=True)`` met a command that did not succeed; ``result`` has all of it."""

    code = "command_failed"

    def __init__(self, result: Result) -> None:
        super().__init__(
            f"command failed: {result.cause.message}", remediation=result.cause.remediation
        )
        self.result = result
        self.infrastructure = result.cause.infrastructure


class SandboxCommands:
    """The part of ``Sandbox`` that runs something in it."""

    @property
    def id(self) -> str:
        raise NotImplementedError

    @property
    def _open(self) -> "Service":
        raise NotImplementedError

    @options_shown
    def run(
        self,
        cmd: Command,
        *,
        stdin: bytes | str | None = None,
        check: bool = False,
        **options: Unpack[ExecOptions],
    ) -> Result:
        """Run a command to its end and return its Result, output captured.

        ``cmd`` is a list of words, or a string for ``sh -c``; ``cwd`` is relative to the workspace;
        ``env`` adds to the sandbox's; ``timeout`` is seconds or "2s"; ``limits`` are ExecLimits,
        which the kernel holds for an ordinary user, too. A command that fails is a Result like any
        other, unless ``check``: then CommandFailed.

        Raises InvalidInput, SandboxError, and where a policy decides PolicyDenied or Undecided.
        """
        return self._run(-1, cmd, stdin=stdin, check=check, **options)

    @options_shown
    def stream(
        self, cmd: Command, *, stdin: bytes | str | None = None, **options: Unpack[ExecOptions]
    ) -> Process:
        """Begin a command with all of its stdin: iterate over its chunks, then ask for ``result``.

        The options are those of ``run``.
        """
        data = arguments.stdin(stdin)
        process = self.start(cmd, stdin=data is not None, **options)
        if data is not None:
            process.write(data)
            process.close_stdin()
        return process

    @options_shown
    def start(
        self,
        cmd: Command,
        *,
        stdin: bool = False,
        pty: Pty | tuple[int, int] | None = None,
        **options: Unpack[ExecOptions],
    ) -> Process:
        """Begin a command and return at once, for ``write``, ``signal``, ``wait`` and the like.

        ``stdin``: it will be written to; ``pty``: a terminal, as Pty or (rows, columns). The other
        options are those of ``run``.
        """
        return self._start(-1, cmd, stdin=stdin, pty=pty, **options)

    def attach(self, process: str, cursors: Mapping[str, int] | None = None) -> Process:
        """Take up a command of a daemon's sandbox, from its output's beginning or ``cursors`` on.

        Raises NotFound; Refused where there is no daemon.
        """
        return self._attach(-1, process, cursors)

    def run_code(
        self,
        code: str,
        *,
        context: str = "default",
        timeout: Time = None,
        reset: bool = False,
        emit: "Callable[[str, bytes], None] | None" = None,
    ) -> CodeResult:
        """Run Python in an interpreter that keeps its state, by ``python.exec.v1``.

        Each ``context`` is an interpreter of its own; ``reset`` begins it anew. After ``timeout``
        the code is interrupted, and the state stays. ``emit(kind, data)`` gets its output as it
        comes. An exception of the code is a CodeResult like any other. Raises CallFailed.
        """
        return self._run_code(-1, code, context=context, timeout=timeout, reset=reset, emit=emit)

    def call(
        self,
        /,
        capability: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        emit: "Callable[[str, bytes], None] | None" = None,
        bundle: str = "",
        keep: bool = False,
        **more: Any,
    ) -> "CallView":
        """Call a capability in it: ``sb.call("fs.read.v1", path="a.txt").value["content"]``.

        Parameters are those of ``agentd capability show``, as a mapping or by name. ``emit(kind,
        data)`` gets what it has before its end; ``bundle`` is the digest of the policy that must
        be in force; with ``keep``, at a daemon, its commands can be looked at afterwards, by their
        ids in ``commands``. Raises PolicyDenied, Undecided, and what the capability fails with.
        """
        return self._call(-1, capability, parameters, emit=emit, bundle=bundle, keep=keep, **more)

    # The same with ``cancel``, a descriptor: once it is readable, what has begun is ended.

    def _run(
        self,
        cancel: int,
        cmd: Command,
        *,
        stdin: bytes | str | None = None,
        check: bool = False,
        **options: Unpack[ExecOptions],
    ) -> Result:
        request = build.exec_request(cmd, **options)
        data = arguments.stdin(stdin) or b""
        arguments.flags(check=check)
        with wording.spoken():
            result = wording.of_result(self._open.commands.complete(self.id, request, data, cancel))
        if check and result.status != "ok":
            raise CommandFailed(result)
        return result

    def _start(
        self,
        cancel: int,
        cmd: Command,
        *,
        stdin: bool = False,
        pty: Pty | tuple[int, int] | None = None,
        **options: Unpack[ExecOptions],
    ) -> Process:
        arguments.open_stdin(stdin)
        terminal = build.terminal(pty)
        request = build.exec_request(cmd, stdin=stdin, pty=terminal, **options)
        return self._begin(request, cancel)

    def _attach(
        self, cancel: int, process: str, cursors: Mapping[str, int] | None = None
    ) -> Process:
        running = self._open.commands.attach(self.id, *arguments.attached(process, cursors))
        return Process(running)

    def _run_code(
        self,
        cancel: int,
        code: str,
        *,
        context: str = "default",
        timeout: Time = None,
        reset: bool = False,
        emit: "Callable[[str, bytes], None] | None" = None,
    ) -> CodeResult:
        asked = code_parameters(code, context, timeout, reset=reset)
        return code_result(self._call(cancel, PYTHON, asked, emit=emit))

    def _call(
        self,
        cancel: int,
        /,
        capability: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        emit: "Callable[[str, bytes], None] | None" = None,
        bundle: str = "",
        keep: bool = False,
        **more: Any,
    ) -> "CallView":
        with wording.spoken():
            arguments.flags(keep=keep)
            arguments.function(emit, "emit")
            asked = {**arguments.called(capability, parameters, bundle), **more}
            return wording.of_call(
                self._open.capabilities.call(
                    capability,
                    asked,
                    sandbox=self.id,
                    bundle=bundle or None,
                    keep=keep,
                    emit=emit,
                    cancel=cancel,
                )
            )

    def _begin(self, request: ExecRequest, cancel: int) -> Process:
        with wording.spoken():
            return Process(self._open.commands.begin(self.id, request, cancel=cancel))
