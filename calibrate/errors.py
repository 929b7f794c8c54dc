"""The error that all of recald's own errors for its users are."""

from __future__ import annotations


class RecaldError(ValueError):
    """Something from outside cannot be used: a file, a setting, a frame, an order.

    The message is one line: what is wrong, where, and what to do.
    """
