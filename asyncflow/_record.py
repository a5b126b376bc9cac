"""How plain data that is made in large numbers is declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

__all__ = ["record"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """Make the class a slotted dataclass that type checkers know as frozen.

    A run makes three of these a step. Python would take three to four times as long to make
    them if it had to refuse assignments at run time too.
    """
    return dataclass(slots=True)(cls)
