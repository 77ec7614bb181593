"""A process that is killed, in process."""

import calibrant as cal


class Killed(BaseException):
    """What stops a process and runs no handler of its own."""


class Killer(cal.AbstractProgress):
    """Kills a run after so many reports of progress."""

    def __init__(self, after):
        self._left, self.notes = after, []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def advance(self, updates, message):
        self._left -= 1
        if self._left == 0:
            raise Killed

    def note(self, what):
        self.notes.append(what)
