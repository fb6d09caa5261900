"""The exceptions that users are meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QartsrError(Exception):
    """A problem the user can mend: one line that names the file or option and says what to do.

    Command lines print the message alone and exit with status 2; notebooks show it without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows; its `%debug` still finds the place."""
        return [f"{type(self).__name__}: {self}"]


class Diverged(QartsrError):
    """Numbers that are not finite came out of a training or a network: a result, which tables show as n/a."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """"did you mean 'a' or 'b'?" with the `known` names nearest to a misspelt one, whatever their case; "" for none."""
    by_case = {known_name.lower(): known_name for known_name in known}
    near = [repr(by_case[match]) for match in difflib.get_close_matches(name.lower(), by_case)]
    return f"did you mean {' or '.join(near)}?" if near else ""


def check_finite(tensors: Iterable[tuple[str, "torch.Tensor"]], source: object, advice: str) -> None:  # noqa: F821, UP037
    """Raise Diverged, with the file or model `source` and what to do, where a tensor (by name) is not finite."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise Diverged(f"{source}: {name} holds NaN or infinity; {advice}")
