"""Files and folders of a sandbox."""

from agentd.ingest.rest.download import BYTES, TAR, get_file, get_tar
from agentd.ingest.rest.operation import Arguments, Operation
from agentd.ingest.rest.output import EVENTS
from agentd.ingest.rest.query import Parameter
from agentd.ingest.rest.upload import put_file, put_tar
from agentd.ingest.rest.watch import watch
from agentd.model.api import EntryView, MkdirBody, MoveBody
from agentd.model.service import Service

_FILES = "/v1/sandboxes/{id}/files"
_PATH = Parameter("path")
_RECURSIVE = Parameter("recursive", bool, False)


def _list(service: Service, a: Arguments) -> object:
    return service.files.list(a.id, a.query["path"])


def _stat(service: Service, a: Arguments) -> EntryView:
    return service.files.stat(a.id, a.query["path"])


def _mkdir(service: Service, a: Arguments) -> None:
    body: MkdirBody = a.body
    service.files.mkdir(a.id, body.path, mode=body.mode, parents=body.parents)


def _delete(service: Service, a: Arguments) -> None:
    service.files.remove(a.id, a.query["path"], recursive=a.query["recursive"])


OPERATIONS = (
    Operation(
        method="GET",
        path=_FILES,
        scope="read",
        help="a file's bytes, or a Range of them",
        stream=get_file,
        query=(_PATH,),
        answer=BYTES,
        also={206: BYTES},
    ),
    Operation(
        method="HEAD",
        path=_FILES,
        scope="read",
        help="a file's size",
        stream=get_file,
        query=(_PATH,),
    ),
    Operation(
        method="PUT",
        path=_FILES,
        scope="files",
        help="write a file: the whole of it or nothing",
        stream=put_file,
        query=(
            _PATH,
            Parameter("mode", "mode", 0o644, help="octal"),
            Parameter("parents", bool, False, help="make the folders above it"),
        ),
        body=BYTES,
        answer=dict[str, int],
        once=True,
    ),
    Operation(
        method="DELETE",
        path=_FILES,
        scope="files",
        help="remove a file or a folder",
        call=_delete,
        query=(_PATH, _RECURSIVE),
        status=204,
        waits=True,
        once=True,
    ),
    Operation(
        method="GET",
        path=_FILES + "/list",
        scope="read",
        help="what is in a folder",
        call=_list,
        query=(_PATH,),
        answer=list[EntryView],
        waits=True,
    ),
    Operation(
        method="GET",
        path=_FILES + "/stat",
        scope="read",
        help="what a path is",
        call=_stat,
        query=(_PATH,),
        answer=EntryView,
        waits=True,
    ),
    Operation(
        method="POST",
        path=_FILES + "/mkdir",
        scope="files",
        help="make a folder",
        call=_mkdir,
        body=MkdirBody,
        status=204,
        waits=True,
        once=True,
    ),
    Operation(
        method="POST",
        path=_FILES + "/move",
        scope="files",
        help="move a file or a folder",
        call=lambda s, a: s.files.move(a.id, a.body.path, a.body.to),
        body=MoveBody,
        status=204,
        waits=True,
        once=True,
    ),
    Operation(
        method="GET",
        path=_FILES + "/watch",
        scope="read",
        help="changes, as they happen",
        stream=watch,
        query=(_PATH, _RECURSIVE),
        answer=EVENTS,
    ),
    Operation(
        method="GET",
        path=_FILES + "/tar",
        scope="read",
        help="a tar of a folder or file, whose names begin with the last part of path",
        stream=get_tar,
        query=(_PATH,),
        answer=TAR,
    ),
    Operation(
        method="PUT",
        path=_FILES + "/tar",
        scope="files",
        help="unpack a tar into a folder, or as one",
        stream=put_tar,
        query=(
            _PATH,
            Parameter("whole", bool, False, help="the tar's one tree becomes path, or nothing"),
            Parameter("replace", bool, False, help="whole in the place of what is there"),
        ),
        body=TAR,
        status=204,
        once=True,
    ),
)
