"""Secrets: the token, the keys of a blob store, signed URLs.

A `Secret` is revealed only inside the call that needs it, so no variable, repr or pickle contains it. Text from outside
(a response, an error, httpx's log) is searched for the secrets of the current request.
"""

from __future__ import annotations

import contextvars
import logging
import re
from typing import NoReturn

_SECRET_LENGTH = 16  # a real token has 37 characters; a shorter text may be an ordinary word


class Secret:
    """A secret text. Its repr is `***`, and it cannot be pickled.

    Call `reveal` only inside the call that needs the text, and never keep the result in a variable: crash reports show
    the variables of every frame.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text.strip()

    @classmethod
    def of(cls, text: str | Secret | None) -> Secret | None:
        """Return `text` as a secret; None if it is None or blank."""
        if isinstance(text, str):
            return cls.of(cls(text))
        return text if text is not None and text._text else None

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    @property
    def fits_a_header(self) -> bool:
        """Whether it is printable ASCII without spaces, as every token is."""
        return self._text.isascii() and self._text.isprintable() and " " not in self._text

    def hide_in(self, text: str) -> str:
        """Replace this secret in `text`. Of "Bearer …" and "Basic …", only the second word is secret."""
        key = len(self._text) - len(self._text.split(" ")[-1])
        return text.replace(self._text[key:], "***") if len(self._text) - key >= _SECRET_LENGTH else text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled: let the other process read its own token (HF_TOKEN).")


# The secrets of the request that this task sends; None in a task that sends none of hubsync's requests.
in_use: contextvars.ContextVar[tuple[Secret, ...] | None] = contextvars.ContextVar("hubsync_secrets", default=None)


def hide(text: str) -> str:
    """Replace the secrets of the current request in `text`."""
    for secret in in_use.get() or ():
        text = secret.hide_in(text)
    return text


class _QuietLog(logging.Filter):
    """Hides secrets in log records: httpx logs every URL, and httpcore the headers of every response."""

    def filter(self, record: logging.LogRecord) -> bool:
        if in_use.get() is not None:
            text = re.sub(r"return_value=.*", "return_value=…", record.getMessage(), flags=re.DOTALL)
            record.msg, record.args = hide(text), None
        return True


_quiet_log = _QuietLog()


def quieten_logs() -> None:
    """Hide the secrets of hubsync's requests in the logs of httpx and httpcore. Idempotent."""
    for name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy", "httpcore.socks"):
        logging.getLogger(name).addFilter(_quiet_log)
