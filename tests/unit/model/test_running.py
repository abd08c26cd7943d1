"""The loop over a command that says its rounds from a list."""

import os

from agentd.model.running import Stepped, drive, execute


class Scripted(Stepped):
    """Ends with the round numbered ``end``; the rounds after that have what was left."""

    def __init__(self, rounds, end):
        self._rounds = list(rounds)
        self._end = end
        self.exit = None
        self.watched = []
        self.pieces = []
        self.eof = self.killed = False

    def step(self, timeout=None, extra_fds=()):
        self.watched.append((timeout, tuple(extra_fds)))
        found = self._rounds.pop(0) if self._rounds else []
        if len(self.watched) > self._end:
            self.exit = "ended"
        return found, [fd for fd in extra_fds if self._readable(fd)]

    def _readable(self, fd):
        return False

    @property
    def backlog(self):
        """Each round takes what was written before it."""
        return sum(len(piece) for at, piece in self.pieces if at == len(self.watched))

    def write(self, data):
        self.pieces.append((len(self.watched), data))

    def close_stdin(self):
        self.eof = True

    def kill(self):
        self.killed = True

    def finish(self):
        return b"".join(data for _, data in self.pieces)


def test_output_that_is_left_after_the_end_is_given_out():
    command = Scripted([[("stdout", b"a")], [], [("stdout", b"b")], [("stderr", b"c")]], end=2)
    assert list(command.chunks()) == [("stdout", b"a"), ("stdout", b"b"), ("stderr", b"c")]


def test_after_the_end_no_descriptor_holds_up_a_round():
    command = Scripted([[("stdout", b"a")]], end=0)
    list(drive(command, lambda: (7,), lambda: 3.0))
    assert command.watched == [(3.0, (7,)), (3.0, ())]


def test_descriptors_are_asked_for_before_each_round():
    command, asked = Scripted([], end=2), iter([(5,), (), (6,)])
    list(drive(command, lambda: next(asked)))
    assert [fds for _, fds in command.watched] == [(5,), (), (6,)]


def test_stdin_is_given_in_pieces_as_the_command_takes_it():
    data = os.urandom(1 << 20)
    command = Scripted([], end=9)
    assert execute(command, data) == data
    assert command.eof
    assert max(len(piece) for _, piece in command.pieces) == 64 << 10
    assert max(at for at, _ in command.pieces) == 3  # 256 KiB before each of four rounds


def test_no_stdin_leaves_stdin_alone():
    command = Scripted([], end=0)
    execute(command, b"")
    assert not command.eof


def test_what_wakes_it_kills_it():
    class Woken(Scripted):
        def _readable(self, fd):
            return len(self.watched) == 2

    command = Woken([], end=9)
    execute(command, b"", wake=3)
    assert command.killed
    assert len(command.watched) == 2
