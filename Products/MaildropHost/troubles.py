"""What goes wrong with a spool, so that Zope's log says it when it begins and not for each mail."""


class Troubles:
    """Spools with a trouble of one kind, as this process knows them. For any thread."""

    def __init__(self):
        self._began = {}

    def begin(self, directory):
        """There is trouble. Returns whether that is news."""
        mine = object()
        return self._began.setdefault(directory, mine) is mine    # in one step: of several threads one tells

    def end(self, directory):
        """All is well. Returns whether that is news."""
        return self._began.pop(directory, None) is not None
