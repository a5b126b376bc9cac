"""The options of a run: what they are called, their defaults, and their checks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

from asyncflow._core.arguments import ARGUMENTS, check_count, check_limit, check_names
from asyncflow._core.pipeline.step import OpenResource, check_engine
from asyncflow._core.record import record, replace, values_by_name
from asyncflow._core.running.state import Schedule
from asyncflow._core.text import safe_text

if TYPE_CHECKING:
    from asyncflow._core.arguments import AttributeValue
    from asyncflow._core.pipeline.step import AnyEngine
    from asyncflow._policies.durable import Journal
    from asyncflow._policies.observers import AnyObserver

OnActive: TypeAlias = Literal["raise", "wait"]
OnWait: TypeAlias = Literal["suspend", "stay"]
OnConflict: TypeAlias = Literal["wait", "raise", "return", "replace"]

NO_RESOURCES: Mapping[str, OpenResource] = MappingProxyType({})
NO_ATTRIBUTES: Mapping[str, AttributeValue] = MappingProxyType({})


class Options(TypedDict, total=False):
    """The type of what `Pipeline.with_options` takes: what a run takes beside steps and inputs.

    Each key may be missing. `Pipeline.with_options` and `Orchestrator` say what they mean.
    """

    fail_fast: bool
    schedule: Schedule
    max_concurrency: int | None
    deadline_ms: float | None
    targets: Iterable[str] | None
    observers: Iterable[AnyObserver]
    name: str
    journal: Journal | None
    secret_inputs: Iterable[str]
    engine: AnyEngine | None
    resources: Mapping[str, OpenResource]
    run_id: str | None
    label: str
    attributes: Mapping[str, AttributeValue]
    key: str | None
    on_active: OnActive
    on_wait: OnWait
    allow_missing_steps: bool
    event_buffer: int


OPTIONS = ARGUMENTS["with_options"] = frozenset(Options.__annotations__)
"""The names of the options."""


@record
class RunOptions:
    """The options of a run, checked; made by `of` and `with_changes`."""

    fail_fast: bool = True
    schedule: Schedule = "tiers"
    max_concurrency: int | None = None
    deadline_ms: float | None = None
    targets: tuple[str, ...] | None = None
    observers: tuple[AnyObserver, ...] = ()
    name: str = ""
    journal: Journal | None = None
    secret_inputs: frozenset[str] = frozenset()
    engine: AnyEngine | None = None
    resources: Mapping[str, OpenResource] = NO_RESOURCES
    run_id: str | None = None
    label: str = ""
    attributes: Mapping[str, AttributeValue] = NO_ATTRIBUTES
    key: str | None = None
    on_active: OnActive = "raise"
    on_wait: OnWait = "suspend"
    allow_missing_steps: bool = False
    event_buffer: int = 10_000

    def __post_init__(self) -> None:
        _check_flag("fail_fast", self.fail_fast)
        _check_choice("schedule", self.schedule, _SCHEDULES)
        if self.max_concurrency is not None:
            kind, hint = "an int or None", "; use None for no limit"
            check_count("max_concurrency", self.max_concurrency, 1, kind=kind, hint=hint)
        check_limit("deadline_ms", self.deadline_ms)
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a str, not {type(self.name).__name__}")
        _check_journal(self.journal)
        check_engine("engine", self.engine)
        check_run_id("run_id", self.run_id)
        check_label(self.label)
        check_key(self.key)
        _check_choice("on_active", self.on_active, _ON_ACTIVE)
        _check_choice("on_wait", self.on_wait, _ON_WAIT)
        _check_flag("allow_missing_steps", self.allow_missing_steps)
        check_count("event_buffer", self.event_buffer, 1)

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> RunOptions:
        """Return the options among the arguments of a call; the others have their defaults.

        A function whose signature names them calls it first of all, with its ``locals()``.
        """
        given = {
            name: arguments[name]
            for name, default in _DEFAULTS.items()
            if arguments.get(name, default) is not default
        }
        return cls(**_copied(given)) if given else _NO_OPTIONS

    def with_changes(self, options: Mapping[str, Any]) -> RunOptions:
        """Return these options with other values for some of them."""
        for name in options.keys() - OPTIONS:
            raise TypeError(f"with_options() got {_unknown(name)}")
        return replace(self, **_copied(options))


_LONGEST_LABEL = 200
"""How many characters a line of a list can hold."""
_LONGEST_KEY = 200
"""How many characters every database can have in an index."""
_SCHEDULES, _ON_ACTIVE, _ON_WAIT = map(get_args, (Schedule, OnActive, OnWait))


def check_run_id(what: str, run_id: object) -> None:
    """Check the id of a run; ``None`` stands for a random one."""
    if run_id is None:
        return
    if not isinstance(run_id, str):
        raise TypeError(f"{what} must be a str, not {type(run_id).__name__}")
    if not run_id:
        raise ValueError(f"{what} must not be empty; leave it out to have one made")


def check_label(label: object) -> None:
    """Check the label of a run; an empty one stands for none."""
    if not isinstance(label, str):
        raise TypeError(f"label must be a str, not {type(label).__name__}")
    if len(label) > _LONGEST_LABEL:
        raise ValueError(
            f"label must have at most {_LONGEST_LABEL} characters, not {len(label):,}; what is "
            "longer belongs in an input"
        )


def check_on_conflict(on_conflict: object) -> None:
    """Check what to do about another run of a key."""
    _check_choice("on_conflict", on_conflict, get_args(OnConflict))


def check_key(key: object) -> None:
    """Check the key of a run; ``None`` stands for none."""
    if key is None:
        return
    if not isinstance(key, str):
        raise TypeError(f"key must be a str, not {type(key).__name__}")
    if not key:
        raise ValueError("key must not be empty; leave it out for none")
    if len(key) > _LONGEST_KEY:
        raise ValueError(f"key must have at most {_LONGEST_KEY} characters, not {len(key):,}")


def _unknown(name: str) -> str:
    if name == "steps":
        return "steps, but it keeps them; to run others, make another one: Orchestrator(steps, ...)"
    if name == "inputs":
        return "inputs, which are no option: give each by its name, as in run(url=...)"
    from asyncflow._core.argument_names import suggestion  # no right call needs it

    return f"an unknown option {name!r}{suggestion(name, OPTIONS)}"


def _copied(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with tuples and sets for lists, since an iterator can be read only once."""
    return {
        **options,
        **{name: _COPIES[name](options[name]) for name in _COPIES if name in options},
    }


def _check_flag(what: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, not {safe_text(repr, value)}")


def _check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        shown = safe_text(repr, value)
        raise ValueError(f"{what} must be {' or '.join(map(repr, choices))}, not {shown}")


def _check_journal(journal: Any) -> None:
    if journal is not None and not callable(getattr(journal, "open", None)):
        is_path = isinstance(journal, str | os.PathLike)
        hint = "; wrap it in one: SQLiteJournal(...)" if is_path else ""
        raise TypeError(
            "journal must be a journal, such as those of asyncflow.journal, not "
            f"{type(journal).__name__}{hint}"
        )


def _copied_secret_inputs(names: object) -> frozenset[str]:
    return frozenset(check_names("secret_inputs", names, "input"))


def _copied_targets(targets: Any) -> Any:
    if isinstance(targets, str) or not isinstance(targets, Iterable):
        return targets  # the plan refuses it
    return tuple(targets)


def _copied_observers(observers: Any) -> tuple[AnyObserver, ...]:
    from asyncflow._policies.observers import check_observers  # few runs have any

    return check_observers(observers)


def _copied_resources(resources: Mapping[str, OpenResource]) -> Mapping[str, OpenResource]:
    if resources is NO_RESOURCES:
        return resources
    from asyncflow._policies.resources import checked_resources  # few need it

    return checked_resources(resources)


def _copied_attributes(attributes: object) -> Mapping[str, AttributeValue]:
    if attributes is NO_ATTRIBUTES:
        return NO_ATTRIBUTES
    from asyncflow._core.run_attributes import checked_attributes  # few runs have any

    return checked_attributes(attributes)


_COPIES: dict[str, Callable[[Any], Any]] = {
    "targets": _copied_targets,
    "observers": _copied_observers,
    "secret_inputs": _copied_secret_inputs,
    "resources": _copied_resources,
    "attributes": _copied_attributes,
}
_NO_OPTIONS = RunOptions()
_DEFAULTS = values_by_name(_NO_OPTIONS) | {"secret_inputs": ()}
"""The defaults as signatures have them: an argument that is one needs no check and no copy."""
