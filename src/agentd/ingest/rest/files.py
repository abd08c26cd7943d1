"""Files and folders of a sandbox."""

from agentd.ingest.rest.download import BYTES, TAR, get_file, get_tar
from agentd.ingest.rest.operation import Arguments, OperationTable, Parameter
from agentd.ingest.rest.output import EVENTS
from agentd.ingest.rest.upload import put_file, put_tar
from agentd.ingest.rest.watch import watch
from agentd.model.api import EntryView, MkdirBody, MoveBody
from agentd.model.service import Service

OPERATIONS = OperationTable()
_ALL = "/v1/sandboxes/{id}/files"
_TAR = _ALL + "/tar"
_PATH = Parameter("path")
_RECURSIVE = Parameter("recursive", bool, False)
_WRITTEN = (
    _PATH,
    Parameter("mode", "mode", 0o644, help="octal"),
    Parameter("parents", bool, False, help="make the folders above it"),
)
_UNPACKED = (
    _PATH,
    Parameter("whole", bool, False, help="the tar's one tree becomes path, or nothing"),
    Parameter("replace", bool, False, help="whole in the place of what is there"),
)
_SIZE = dict[str, int]

OPERATIONS.row("GET", _ALL, "read", query=(_PATH,), answer=BYTES, also={206: BYTES})(get_file)
OPERATIONS.row("PUT", _ALL, "files", query=_WRITTEN, body=BYTES, answer=_SIZE, once=True)(put_file)


@OPERATIONS.row("DELETE", _ALL, "files", query=(_PATH, _RECURSIVE), waits=True, once=True)
def _remove(service: Service, a: Arguments) -> None:
    """Remove a file or a folder."""
    service.files.remove(a.id, a.query["path"], recursive=a.query["recursive"])


@OPERATIONS.row("GET", _ALL + "/list", "read", query=(_PATH,), waits=True)
def _list(service: Service, a: Arguments) -> tuple[EntryView, ...]:
    """List what is in a folder."""
    return service.files.list(a.id, a.query["path"])


@OPERATIONS.row("GET", _ALL + "/stat", "read", query=(_PATH,), waits=True)
def _stat(service: Service, a: Arguments) -> EntryView:
    """Tell what a path is."""
    return service.files.stat(a.id, a.query["path"])


@OPERATIONS.row("POST", _ALL + "/mkdir", "files", body=MkdirBody, waits=True, once=True)
def _mkdir(service: Service, a: Arguments) -> None:
    """Make a folder."""
    service.files.mkdir(a.id, a.body.path, mode=a.body.mode, parents=a.body.parents)


@OPERATIONS.row("POST", _ALL + "/move", "files", body=MoveBody, waits=True, once=True)
def _move(service: Service, a: Arguments) -> None:
    """Move a file or a folder."""
    service.files.move(a.id, a.body.path, a.body.to)


OPERATIONS.row("GET", _ALL + "/watch", "read", query=(_PATH, _RECURSIVE), answer=EVENTS)(watch)
OPERATIONS.row("GET", _TAR, "read", query=(_PATH,), answer=TAR)(get_tar)
OPERATIONS.row("PUT", _TAR, "files", query=_UNPACKED, body=TAR, status=204, once=True)(put_tar)
