"""From the names in ``[[listen]] serves`` to doors on listeners."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module

from agentd.ingest import doors
from agentd.ingest.web.door import Mount
from agentd.ingest.web.routes import Doors
from agentd.ingest.web.web import Web
from agentd.model.errors import InvalidInput
from agentd.model.gatekeeper import Gatekeeper

MountFunction = Callable[[Web, Gatekeeper], Mount]


def load(names: Iterable[str]) -> dict[str, MountFunction]:
    """Import what these doors are made of, and nothing of any other.

    Raises InvalidInput for a door that cannot be imported. That each is there, the configuration
    has seen to.
    """
    return {name: _load(name) for name in dict.fromkeys(names)}


def mounted(
    loaded: Mapping[str, MountFunction], web: Web, gatekeeper: Gatekeeper
) -> dict[str, Mount]:
    """Each of them once, however many listeners serve it. Raises InvalidInput."""
    return {name: _mount(name, loaded[name], web, gatekeeper) for name in loaded}


def on_listeners(
    serves: Sequence[tuple[str, ...]], web: Web, mounts: Mapping[str, Mount]
) -> list[Doors]:
    """Return what each listener serves. Raises InvalidInput where two doors claim one path."""
    shared: dict[tuple[str, ...], Doors] = {}
    for names in serves:
        if names not in shared:
            shared[names] = Doors(web, {name: mounts[name] for name in names})
    return [shared[names] for names in serves]


def _load(name: str) -> MountFunction:
    try:
        if name in doors.BUILTIN:
            module, _, attribute = doors.BUILTIN[name].partition(":")
            found: MountFunction = getattr(import_module(module), attribute)
            return found
        loaded: MountFunction = doors.installed()[name].load()
        return loaded
    except (Exception, SystemExit) as error:  # a package's module may raise anything
        raise _broken(name, "be loaded", error) from error


def _mount(name: str, mount: MountFunction, web: Web, gatekeeper: Gatekeeper) -> Mount:
    try:
        made: object = mount(web, gatekeeper)
        if not isinstance(made, Mount):
            raise TypeError(f"it returned {type(made).__name__}, not a Mount")
    except (Exception, SystemExit) as error:
        raise _broken(name, "be mounted", error) from error
    if not made.paths or not all(path.startswith("/") for path in made.paths):
        raise _broken(name, "be mounted", ValueError(f"it claims the paths {made.paths!r}"))
    return made


def _broken(name: str, what: str, error: BaseException) -> InvalidInput:
    point = doors.installed().get(name) if name not in doors.BUILTIN else None
    package = "agentd-sandbox" if point is None else doors.package_of(point)
    return InvalidInput(
        f"the door {name!r} of the package {package} cannot {what}",
        cause=f"{type(error).__name__}: {error}",
        remediation=f"install {package} anew, or take {name!r} out of [[listen]] serves",
    )
