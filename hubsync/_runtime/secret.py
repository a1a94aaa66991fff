"""What nobody may see: the token, the keys of a blob store, signed addresses.

A `Secret` is unwrapped in the one call that needs it, so no variable, repr or pickle holds it; and what comes from
outside (an answer, an error's text, the log of httpx) is gone through for the secrets of the request in use.
"""

from __future__ import annotations

import contextvars
import logging
import re
from typing import NoReturn

_SECRET_LENGTH = 16  # a real token has 37 characters; a shorter one is a test's, and may be a word of any text


class Secret:
    """A text that nobody may see: it shows as `***`, and can't be pickled.

    `reveal` it within the call that needs it, never into a variable: a crash report shows the variables of every frame.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text.strip()

    @classmethod
    def of(cls, text: str | Secret | None) -> Secret | None:
        """`text` as a secret; None where there is none, or nothing but space."""
        if isinstance(text, str):
            return cls.of(cls(text))
        return text if text is not None and text._text else None

    def reveal(self) -> str:
        return self._text

    @property
    def fits_a_header(self) -> bool:
        """Whether it is printable ASCII without spaces, as every token is."""
        return self._text.isascii() and self._text.isprintable() and " " not in self._text

    def hide_in(self, text: str) -> str:
        """`text` without this secret. Of "Bearer …" and "Basic …" only what follows is one."""
        key = len(self._text) - len(self._text.split(" ")[-1])
        return text.replace(self._text[key:], "***") if len(self._text) - key >= _SECRET_LENGTH else text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled: let the other process read its token itself (HF_TOKEN).")


# What the request that this task sends keeps secret; None in a task that sends none of ours.
in_use: contextvars.ContextVar[tuple[Secret, ...] | None] = contextvars.ContextVar("hubsync_secrets", default=None)


def hide(text: str) -> str:
    """`text` without the secrets in use."""
    for secret in in_use.get() or ():
        text = secret.hide_in(text)
    return text


class _QuietLog(logging.Filter):
    """httpx logs every URL, signed ones too, and httpcore the headers of every answer, whatever they send back."""

    def filter(self, record: logging.LogRecord) -> bool:
        if in_use.get() is not None:
            text = re.sub(r"return_value=.*", "return_value=…", record.getMessage(), flags=re.DOTALL)
            record.msg, record.args = hide(text), None
        return True


_quiet_log = _QuietLog()


def quieten_logs() -> None:
    """Keeps the secrets in use out of the logs of httpx and httpcore, at every level; other clients' logs stay as they
    are. Calling it again changes nothing.
    """
    for name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy", "httpcore.socks"):
        logging.getLogger(name).addFilter(_quiet_log)
