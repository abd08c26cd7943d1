"""agentd: run untrusted commands behind a wall you choose, and learn truthfully what it was.

Nothing is imported here, so that ``agentd.guest`` stands alone and ``agentd --version`` is fast;
the public names load on first use.
"""

TYPE_CHECKING = False  # as typing's, which type checkers know by its name: typing costs 5 ms

if TYPE_CHECKING:
    from agentd._version import __version__ as __version__
    from agentd.client.aio import AsyncSandbox
    from agentd.client.aio_files import AsyncFiles
    from agentd.client.aio_process import AsyncProcess
    from agentd.client.aio_service import AsyncClient
    from agentd.client.aio_snapshot import AsyncSnapshot
    from agentd.client.chunk import Chunk
    from agentd.client.code import CodeError, CodeResult
    from agentd.client.commands import CommandFailed
    from agentd.client.files import Files
    from agentd.client.http.errors import Unreachable
    from agentd.client.ports import Snapshot
    from agentd.client.process import Process
    from agentd.client.sandbox import Sandbox
    from agentd.client.service import Client
    from agentd.model.api import CallView
    from agentd.model.capability import CallFailed
    from agentd.model.enforcement import Control, Enforcement
    from agentd.model.errors import (
        AgentdError,
        BackendLost,
        Conflict,
        Forbidden,
        Full,
        GuestError,
        InvalidInput,
        NotFound,
        NotReady,
        OperationFailed,
        PolicyDenied,
        QuotaExceeded,
        Refused,
        SandboxEnded,
        SandboxError,
        TooLarge,
        Unauthenticated,
        Unavailable,
        Undecided,
        Unsupported,
    )
    from agentd.model.isolation import IsolationLevel
    from agentd.model.mount import Mount
    from agentd.model.options import Command, ExecOptions, SandboxOptions
    from agentd.model.result import Cause, CauseCode, Result, SandboxInfo, Timing, Usage
    from agentd.model.secret import Secret
    from agentd.model.spec import ExecLimits, Pty
    from agentd.transport.files import Change, Entry

# Where each is: a test compares it with what a type checker is told above.
_WHERE = {
    "agentd._version": "__version__",
    "agentd.client.aio": "AsyncSandbox",
    "agentd.client.aio_files": "AsyncFiles",
    "agentd.client.aio_process": "AsyncProcess",
    "agentd.client.aio_service": "AsyncClient",
    "agentd.client.aio_snapshot": "AsyncSnapshot",
    "agentd.client.chunk": "Chunk",
    "agentd.client.code": "CodeError CodeResult",
    "agentd.client.files": "Files",
    "agentd.client.http.errors": "Unreachable",
    "agentd.client.ports": "Snapshot",
    "agentd.client.process": "Process",
    "agentd.client.commands": "CommandFailed",
    "agentd.client.sandbox": "Sandbox",
    "agentd.client.service": "Client",
    "agentd.model.api": "CallView",
    "agentd.model.capability": "CallFailed",
    "agentd.model.enforcement": "Control Enforcement",
    "agentd.model.errors": "AgentdError BackendLost Conflict Forbidden Full GuestError "
    "InvalidInput NotFound NotReady OperationFailed PolicyDenied QuotaExceeded Refused "
    "SandboxEnded SandboxError TooLarge Unauthenticated Unavailable Undecided Unsupported",
    "agentd.model.isolation": "IsolationLevel",
    "agentd.model.mount": "Mount",
    "agentd.model.options": "Command ExecOptions SandboxOptions",
    "agentd.model.result": "Cause CauseCode Result SandboxInfo Timing Usage",
    "agentd.model.secret": "Secret",
    "agentd.model.spec": "ExecLimits Pty",
    "agentd.transport.files": "Change Entry",
}

__all__ = [
    "AgentdError",
    "AsyncClient",
    "AsyncFiles",
    "AsyncProcess",
    "AsyncSandbox",
    "AsyncSnapshot",
    "BackendLost",
    "CallFailed",
    "CallView",
    "Cause",
    "CauseCode",
    "Change",
    "Chunk",
    "Client",
    "CodeError",
    "CodeResult",
    "Command",
    "CommandFailed",
    "Conflict",
    "Control",
    "Enforcement",
    "Entry",
    "ExecLimits",
    "ExecOptions",
    "Files",
    "Forbidden",
    "Full",
    "GuestError",
    "InvalidInput",
    "IsolationLevel",
    "Mount",
    "NotFound",
    "NotReady",
    "OperationFailed",
    "PolicyDenied",
    "Process",
    "Pty",
    "QuotaExceeded",
    "Refused",
    "Result",
    "Sandbox",
    "SandboxEnded",
    "SandboxError",
    "SandboxInfo",
    "SandboxOptions",
    "Secret",
    "Snapshot",
    "Timing",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Undecided",
    "Unreachable",
    "Unsupported",
    "Usage",
]

if not TYPE_CHECKING:  # else any misspelt name would be an object to a type checker

    def __getattr__(name):
        for module, names in _WHERE.items():
            if name in names.split():
                from importlib import import_module

                found = globals()[name] = getattr(import_module(module), name)
                return found
        raise AttributeError(f"module 'agentd' has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__, "__version__"} - {"TYPE_CHECKING"})
