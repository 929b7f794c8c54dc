"""The newest frame of each sensor: a frame that waits gives way to a newer one, so no queue ever grows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class OfSensor(Protocol):
    """Anything that belongs to one sensor."""

    @property
    def sensor(self) -> str: ...


SlotItem = TypeVar("SlotItem", bound=OfSensor)


class NewestFrames(Generic[SlotItem]):
    """One slot for each sensor. Any thread may put a frame, any may take one."""

    def __init__(self, superseded: Callable[[str], None]):
        """superseded: called with the sensor of each frame that gives way to a newer one."""
        self._superseded = superseded
        self._slots: dict[str, SlotItem] = {}  # by sensor, in the order in which they were filled
        self._filled = threading.Condition()

    def put(self, frame: SlotItem) -> bool:
        """Put the frame into its sensor's slot; an older frame there is dropped. Return whether there was one."""
        with self._filled:
            gives_way = frame.sensor in self._slots
            self._slots[frame.sensor] = frame  # a filled slot keeps its place: a fast sensor cannot delay a slow one
            self._filled.notify()
        if gives_way:
            self._superseded(frame.sensor)
        return gives_way

    def take(self, timeout: float) -> SlotItem | None:
        """Remove and return the frame whose slot was filled first; None where none arrives within `timeout` s."""
        with self._filled:
            if self._filled.wait_for(lambda: self._slots, timeout):
                return self._slots.pop(next(iter(self._slots)))
        return None
