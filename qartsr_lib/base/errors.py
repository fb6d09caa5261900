"""The exceptions that users are meant to read."""


class QartsrError(Exception):
    """A problem the user can mend: one line that names the file or option and says what to do.

    Command-line entry points print the message alone and exit with status 2; notebooks show it
    without a traceback. Programming errors stay ordinary Python exceptions.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows; its `%debug` still finds the place."""
        return [f"{type(self).__name__}: {self}"]


class Diverged(QartsrError):
    """Numbers that are not finite came out of a training or a network: a result, which tables show as n/a."""
