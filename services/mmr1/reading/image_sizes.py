"""How large the first images of rows are, for those that have been opened anyway: eight bytes for each row.

Opens nothing.
"""

from __future__ import annotations

from array import array

Size = tuple[int, int]


class ImageSizes:
    """Of the rows of one dataset, by their position in it."""

    def __init__(self) -> None:
        self._sides = array("I")

    def remember(self, position: int, size: Size) -> None:
        """Threads may remember different rows at once, once there is `room_for` them."""
        self._sides[2 * position : 2 * position + 2] = array("I", size)

    def room_for(self, num_rows: int) -> None:
        if len(self._sides) < 2 * num_rows:
            self._sides.frombytes(bytes((2 * num_rows - len(self._sides)) * self._sides.itemsize))

    def of(self, position: int) -> Size | None:
        """None: its image has not been opened."""
        width, height = self._sides[2 * position : 2 * position + 2] or (0, 0)
        return (width, height) if width else None


__all__ = ["ImageSizes"]
