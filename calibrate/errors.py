"""The base class of every error that recald raises for its users."""

from __future__ import annotations


class RecaldError(ValueError):
    """Something from outside cannot be used: a file, a setting, a frame, a command.

    The message is one line: what is wrong, where it is, and what to do.
    """
