"""The attributes of runs in a journal: a column of the run's row, and an index of its own.

Lists show what the column says, which the row's checksum covers. `run_attributes` has a row for
each attribute of a run, with its start, so that runs with an attribute are found in the order of
lists however many others there are. Values are JSON in both: so they differ as their types do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from asyncflow._core.arguments import AttributeValue
from asyncflow.journal._codec.events import from_json, to_json
from asyncflow.journal._database.sql import Statement

OF_ATTRIBUTE = "run_attributes a CROSS JOIN"
"""Before ``runs r``: SQLite reads tables with CROSS JOIN in their order."""

_HAS_ATTRIBUTE = "a.name = ? AND a.value = ? AND r.run_id = a.run_id"
_HAS_ANOTHER = (
    "EXISTS (SELECT 1 FROM run_attributes b WHERE b.run_id = a.run_id AND b.name = ? "
    "AND b.value = ?)"
)


def attributes_column(attributes: Mapping[str, AttributeValue]) -> str | None:
    """Return the attributes of a run for the column of its row; ``None`` for none."""
    return to_json(attributes) if attributes else None


def attributes_of(column: Any) -> dict[str, AttributeValue]:
    """Return the attributes that a column has. Raise `ValueError` if it is damaged."""
    return {} if column is None else from_json(column, dict[str, str | int | float | bool])


def indexed(run_id: str, started_at: float, attributes: Mapping[str, AttributeValue]) -> Statement:
    """Return the statement that lets a new run be found by its attributes."""
    # It may have been committed before.
    rows = ", ".join(["(?, ?, ?, ?)"] * len(attributes))
    sql = f"INSERT INTO run_attributes VALUES {rows} ON CONFLICT DO NOTHING"
    values = [(run_id, name, to_json(value), started_at) for name, value in attributes.items()]
    return Statement(sql, list(chain(*values)))


def conditions_of(attributes: Mapping[str, AttributeValue]) -> dict[str, Sequence[Any]]:
    """Return the SQL conditions that a run has all of some attributes, with their values."""
    values = [*chain(*((name, to_json(value)) for name, value in attributes.items()))]
    conditions = " AND ".join([_HAS_ATTRIBUTE, *[_HAS_ANOTHER] * (len(attributes) - 1)])
    return {conditions: values}
