"""The zygote: a small process in a read-only root that clones one sandbox a request.

Started with an empty environment by ``python -I -S -E``, so standard library only. It holds no
secret: every sandbox begins as a copy of its memory. What a caller asked for (environment, names,
mounts) is read by the sandbox itself, from its own socket, once it was cloned. As root the zygote
first becomes a user that owns nothing, root of a user namespace that maps the ids of sandboxes:
each is born as another of them. It is PID 1 of a pid namespace, so that when it dies the kernel
ends every sandbox.

Requests come over a SEQPACKET socket: one JSON object each, descriptors beside it. No request and
no answer that fails ends the zygote: all sandboxes would end with it. The process
that the host started stays outside the root, in the same user namespace: without root only it can
make copies of the host's mounts (``entry``).
"""

import contextlib
import errno
import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence

from agentd.guest import agent
from agentd.guest.zygote import box as boxes
from agentd.guest.zygote import entry, image_root, immortal, reserve, restack, root, var
from agentd.guest.zygote.ahead import Ahead, maps_of, prepare
from agentd.guest.zygote.disk import WORKSPACE
from agentd.guest.zygote.entry import CONTROL_FD, MOUNTS_FD
from agentd.guest.zygote.group import enter_group
from agentd.guest.zygote.layer import Layer
from agentd.guest.zygote.maps import Maps
from agentd.guest.zygote.messages import receive, refuse, send
from agentd.guest.zygote.rehearsal import rehearse, rehearse_wall
from agentd.linux import abi, caps, process, seccomp
from agentd.linux.clone import Cloner
from agentd.linux.kernel import KERNEL
from agentd.linux.rights import close_all

# Milliseconds without a request after which there is time to clone ahead.
_IDLE_MS = 5
# Requests after which time is taken, if there was none, for what makes all later clones cheaper.
_BUSY = 16
# Enough for the interpreter to specialise what a command runs through.
_REHEARSALS = 12
# More than the keys that a class's instances share have room for: each instance made takes from it,
# which is written down there.
_WALLS = 32

# By whether a folder of the host's is written to, and whether commands are root inside.
Filters = dict[tuple[bool, bool], bytes]


def main() -> None:
    """Serve until the host closes its end. Never returns."""
    os.closerange(MOUNTS_FD + 1, os.sysconf("SC_OPEN_MAX"))  # what the host forgot to mark
    # Descriptors on their way are counted by user, and none is passed on above the sender's limit:
    # ours must not be the first that those of the sandboxes reach. Each of them sets its own.
    process.raise_file_limit()
    # The root that it makes is read by the users of all sandboxes, whatever the host's umask: the
    # unit in deploy/ has 077.
    os.umask(0o022)
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    os.set_inheritable(MOUNTS_FD, False)
    try:
        agent.preload()  # the library is out of reach once the host is left behind
        config, _ = receive(control)
        net = str(config["net"])
        filters = {
            (rw, root): seccomp.build(seccomp.of_namespaces(net, rw=rw, root=root))
            for rw in (False, True)
            for root in (False, True)
        }
        zygote = _Zygote(control, entry.prepare(config), config, filters)
        for fact in (caps.last_capability, root.masks, var.contents):
            fact()  # found out once, by the user that sandboxes have, for all of them
    except Exception as error:
        send(control, {"error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    gc.collect()
    gc.freeze()
    # Its digest is the host's business: hashlib would map OpenSSL into every sandbox.
    send(control, {"ok": True, **_told(filters)})
    zygote.serve()


def _told(filters: Filters) -> dict[str, str]:
    names = {(False, False): "filter", (True, False): "filter_rw"}
    names |= {(False, True): "filter_root", (True, True): "filter_root_rw"}
    return {name: filters[key].hex() for key, name in names.items()}


class _Zygote:
    """Answers requests one by one. Between them, when asked, it clones some ahead for the host.

    A spare is in its namespaces, prepared for one kind of sandbox, not yet confined, and never
    used. The host tells it what to prepare for, and later its request, over a socket of its own.
    """

    def __init__(
        self, control: socket.socket, cloner: Cloner, config: dict[str, object], filters: Filters
    ) -> None:
        self._control = control
        self._cloner = cloner
        self._filters = filters
        self._flags = boxes.NAMESPACES | (abi.CLONE_NEWNET if config["net"] != "host" else 0)
        plain = config["plain"]
        self._plain = plain if isinstance(plain, dict) else None
        self._ahead = Ahead()
        self._served = 0
        self._seasoned = False
        self._layer: Layer | None = None

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while True:
            if self._ahead and not poll.poll(_IDLE_MS):
                self._prepare_spare()
            try:
                request, fds = receive(self._control)
            except EOFError:
                os._exit(0)
            except (OSError, ValueError, MemoryError) as error:
                refuse(self._control, None, error)
                continue
            self._served += 1
            if self._served == _BUSY:
                self._season()
            if "layer" in request:
                restack.answer(self._control, request, fds, WORKSPACE)
            elif "reserve" in request:
                reserve.answer(self._control, request, fds)
            elif "next" in request:
                self._ahead.add(request, fds)
            else:
                self._spawn(request, fds)

    def _season(self) -> None:
        """Once: what every clone would do for itself, and would copy pages for. Some 0.1 s."""
        if self._seasoned:
            return
        self._seasoned = True
        with contextlib.suppress(OSError, MemoryError):  # the clones are dearer then, no more
            self._improve()

    def _improve(self) -> None:
        gc.unfreeze()
        # Code that runs for the first time writes to itself, and so do its first copies.
        self._rehearse(_WALLS // 8)
        gc.collect()
        immortal.immortalise()
        gc.freeze()
        # What immortal objects are asked about is found in caches from now on.
        self._rehearse(_WALLS)
        gc.freeze()
        gc.collect()  # empties the lists of free objects, which lie scattered

    def _rehearse(self, walls: int) -> None:
        rehearse(_REHEARSALS)
        if self._plain is not None:
            for _ in range(walls):
                rehearse_wall(self._plain, self._filters[False, False])
                rehearse(0)
                _rehearse_messages()

    def _prepare_spare(self) -> None:
        self._season()
        wanted = self._ahead.first()
        try:
            pidfd = self._clone(wanted.listener, wanted.id, maps=wanted.maps(), ahead=True)
        except (OSError, MemoryError):
            # The next request clones for itself and says what is wrong, and has the host ask for
            # another: of other ids, should those be what is in the way.
            self._ahead.drop_first()
            return
        self._ahead.drop_first()
        self._hand_over({"spare": wanted.number}, pidfd, [])

    def _spawn(self, request: dict[str, object], fds: list[int]) -> None:
        """Start one sandbox; answer with its pidfd, and its scratch tmpfs if the host needs it."""
        number = request.get("n")
        scratch: list[int] = []
        layer: list[int] = []
        try:
            # The request is ours, but its descriptor may have been lost on the way.
            listener = socket.socket(fileno=fds.pop(0))
            with listener:
                if request["cow"]:
                    scratch.append(_scratch_mount(request))
                if request.get("writable"):
                    layer.append(self._lend_layer(_id(request["id"])))
                id_, maps = _id(request["id"]), maps_of(request)
                pidfd = self._clone(listener, id_, scratch, maps=maps, layer=layer)
            self._hand_over({"n": number, "ok": True}, pidfd, scratch)
        except Exception as error:
            refuse(self._control, number, error)
        finally:
            close_all([*fds, *scratch, *layer])

    def _lend_layer(self, id_: int | None) -> int:
        if self._layer is None:
            self._layer = Layer()
        return self._layer.lent(id_)

    def _hand_over(self, message: dict[str, object], pidfd: int, fds: list[int]) -> bool:
        """Give the host a clone. One that cannot be given is ended, and False."""
        try:
            send(self._control, message, [pidfd, *fds])
        except OSError as error:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if "n" in message:
                refuse(self._control, message["n"], error)
            return False
        finally:
            os.close(pidfd)
        return True

    def _clone(
        self,
        listener: socket.socket,
        id_: int | None,
        scratch: Sequence[int] = (),
        maps: Maps | None = None,
        layer: Sequence[int] = (),
        *,
        ahead: bool = False,
    ) -> int:
        """The pidfd of a sandbox to be."""
        try:
            pid, pidfd = self._clone_as(id_)
        except BaseException:
            if maps is not None:
                maps.close()
            raise
        if pid == 0:
            try:
                self._control.close()
                self._ahead.close_others(listener)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                gc.enable()
                trees = self._layer.trees if self._layer is not None else []
                root = (layer[0], trees) if layer else None
                _box(listener, id_, scratch, self._filters, maps, root, ahead=ahead)
            finally:
                os._exit(1)
        if maps is not None:
            self._map(maps, pid, pidfd)
        return pidfd

    def _map(self, maps: Maps, pid: int, pidfd: int) -> None:
        """A clone whose ids cannot be mapped is ended."""
        try:
            maps.write(pid)
        except BaseException:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            raise

    def _clone_as(self, id_: int | None) -> tuple[int, int]:
        """A clone whose user namespace belongs to ``id_``: that may be mapped in it without any
        privilege, by the clone itself. Nobody has to write its maps for it."""
        pid = -1
        if id_ is not None:
            os.setresgid(-1, id_, -1)
            os.setresuid(-1, id_, -1)
        try:
            pid, pidfd = self._cloner.clone(self._flags)
        finally:
            if pid != 0 and id_ is not None:
                os.setresuid(-1, 0, -1)
                os.setresgid(-1, 0, -1)
                process.set_pdeathsig(signal.SIGKILL)  # a change of user has cleared it
        if pid == 0:
            process.set_dumpable(True)  # and this: its maps would be root's to write
        return pid, pidfd


def _rehearse_messages() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send(ours, {"ok": True}, [theirs.fileno()])
        for fd in receive(theirs)[1]:
            os.close(fd)


def _scratch_mount(request: dict[str, object]) -> int:
    fd = KERNEL.fsopen("tmpfs")
    try:
        owner = _id(request["id"]) or 0
        options = {
            "mode": "0755",
            "size": request["disk"],
            "nr_inodes": request["inodes"],
            "uid": owner,
            "gid": owner,
        }
        for key, value in options.items():
            KERNEL.fsconfig(fd, abi.FSCONFIG_SET_STRING, key, str(value))
        KERNEL.fsconfig(fd, abi.FSCONFIG_CMD_CREATE, None, None)
        return KERNEL.fsmount(fd, abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV)
    finally:
        os.close(fd)


def _box(
    listener: socket.socket,
    id_: int | None,
    scratch: Sequence[int],
    filters: Filters,
    maps: Maps | None,
    root: tuple[int, list[tuple[str, str]]] | None,
    *,
    ahead: bool,
) -> None:
    """The child: read what is asked for, confine, then be the agent. Never returns.

    One made ``ahead`` is told first what all requests that it may get have in common, and does
    that; where it fails it ends without a word, and the host asks for another.
    """
    prepared = made = None
    if maps is not None:
        maps.await_written()
    if ahead:
        rehearse(1)  # in the zygote's root still: no program of an image's runs unconfined
        made = agent.Ready(pid1=True)
        prepared = prepare(listener, id_, mapped=maps is not None)
    try:
        # Before Landlock: it opens what is closed then. And before the request, of which the host
        # may first have files to write.
        ready = made or agent.Ready(pid1=True)
        request, passed = receive(listener)
        request["outside"] = id_
        request["mapped"] = maps is not None
        fds = [listener.fileno(), *passed, *scratch]
        if scratch:
            request["scratch_fd"] = len(fds) - 1
        if root is not None:
            fds.append(root[0])
            request["layer"] = {"fd": len(fds) - 1, "trees": root[1]}
        given = len(fds)
        filter_ = filters[request["rw"] is True, request["uid"] == 0]
        done, sockets = boxes.confine(
            request,
            fds,
            filter_,
            prepared=prepared,
            enter=lambda: enter_group(listener),
            asked=ready.answer_asked,
        )
        env = request["env"]
        # Its disk, of which the host takes snapshots, and its network: nothing untrusted has run
        # so far.
        _say_ready(listener, done, sockets, fds[given:])
        for fd in (*sockets, *fds[1:]):
            os.close(fd)
        if root is not None or request.get("image") is not None:
            image_root.import_nothing()
    except EOFError:  # nobody wants it any more
        os._exit(0)
    except Exception as error:
        refuse(listener, None, error)
        os._exit(1)
    ready.serve(listener, env if isinstance(env, dict) else {})
    os._exit(0)


def _say_ready(
    listener: socket.socket, controls: list[str], sockets: list[int], disk: list[int]
) -> None:
    message = json.dumps({"controls": controls, "sockets": len(sockets)}).encode()
    try:
        socket.send_fds(listener, [message], [*sockets, *disk])
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS or sockets:
            raise
        # Others of this user have too many on their way: it works, and its files cannot be kept.
        listener.sendall(message)


def _id(value: object) -> int | None:
    return value if isinstance(value, int) else None


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
