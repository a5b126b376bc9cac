"""Random pipelines for durable runs, made from a seed, whose actions check when they are called.

An action depends only on its arguments and on the number of its failed attempts in the journal. So
a run that is interrupted and resumed must end like one that is not.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import random
import zlib
from collections import Counter, defaultdict
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from fake_engine import FakeEngine
from memory_journal import MemoryJournal, MemorySession

from asyncflow import Pool, Retry, WorkflowStep, current_step
from asyncflow._core.pipeline.composition import include_steps
from asyncflow._core.pipeline.step import on_engine
from asyncflow.events import AttemptFailed, AttemptStarted

__all__ = ["CallingJournal", "CallingSession", "RandomPipeline", "World", "key_of"]

RUN_ID = "r"
A_DAY_MS = 86_400_000.0

_log = logging.getLogger("random runs")
_log.setLevel(logging.INFO)


def key_of(event):
    return event.step, event.item


class CallingSession(MemorySession):
    """A session that notes which calls have succeeded."""

    def append_cached(self, key, attempts, duration_ms):
        stored = super().append_cached(key, attempts, duration_ms)
        if key in self._results:
            _, node, _ = self._results[key]
            self._journal.calls[key] = self._journal.latest_calls[node]
        return stored


class CallingJournal(MemoryJournal):
    """A journal that knows of the steps and items with ``cache_ms`` what they were called with."""

    session = CallingSession

    def __init__(self, **options):
        super().__init__(**options)
        self.latest_calls = {}
        """The latest call of each, by run."""
        self.calls = {}
        """The calls that have succeeded, by the key of their result."""
        self.under_way = set()
        """The calls that are being made."""

    def died_after(self, count, run_id=RUN_ID):
        left = super().died_after(count, run_id)
        left.calls = dict(self.calls)
        return left


class World:
    """The history of the actions: the events in the journal, then those of the run."""

    def __init__(self, journal, pools, limit, run_id, changes=None):
        self.journal = journal
        self.run_id = run_id
        self.limit = limit
        self.pools = pools
        self.changes = changes
        """Chooses when the size of a pool changes, if any does."""
        self.failures = Counter()
        self.calls = Counter()
        self.running = Counter()
        self.violations = []
        self.said = defaultdict(list)
        """What each attempt has said, by step, item and number."""
        self.saved = set(journal.saved.get(run_id, ()))
        """The steps and items whose checkpoints earlier processes have left."""
        self.lost = set()
        """Those that have not found theirs."""
        self.is_open = False
        """Whether the resource of the run is."""
        self.failed = set()
        """Those of which an attempt has failed in this process, and another one follows."""
        for event in journal.stored.get(run_id, ()):
            self.observe(event)
        self.failed.clear()

    def observe(self, event):
        if isinstance(event, AttemptFailed):
            self.failures[key_of(event)] += 1
            self.failed.add(key_of(event))
        elif isinstance(event, AttemptStarted) and event.attempt == 1:
            self.failures[key_of(event)] = 0  # a run that starts again has all its attempts

    def enter(self, context):
        key = context.step_name, context.item
        if self.changes is not None and self.changes.random() < 0.3:
            self.changes.choice(self.pools).size = self.changes.randint(1, 3)
        self.calls[key] += 1
        self.running[key] += 1
        if self.running[key] > 1:
            self.violations.append(f"{key} overlaps itself")
        if self.limit is not None and self.running.total() > self.limit:
            self.violations.append(f"{key} makes it more than {self.limit} at once")
        start = (*key, context.attempt)
        stored = self.journal.stored[self.run_id]
        if not any(
            isinstance(event, AttemptStarted) and (*key_of(event), event.attempt) == start
            for event in reversed(stored)
        ):
            self.violations.append(f"the start of {start} was not stored")
        return key

    def begin_call(self, context, call):
        """Check that no equal call is under way, and that none has succeeded."""
        if call in self.journal.under_way:
            self.violations.append(f"equal calls overlap: {call}")
        self.journal.under_way.add(call)
        answered = {self.journal.calls[key] for key in self.journal.results}
        # One that began in an earlier process continues with its attempts.
        if context.attempt == 1 and call in answered:
            self.violations.append(f"called again: {call}")
        self.journal.latest_calls[self.run_id, context.step_name, context.item] = call

    def speak(self, context):
        key = context.step_name, context.item, context.attempt
        said = self.said[key]
        said.append(f"{len(said)} of {key}")
        _log.info(said[-1])
        context.attach(said[-1], "text")
        context.progress(len(said))
        with suppress(ValueError):  # it is secret, and there is a journal
            context.stream(said[-1])

    @asynccontextmanager
    async def resource(self):
        await asyncio.sleep(0.001)
        self.is_open = True
        try:
            yield "open"
        finally:
            self.is_open = False
            if +self.running:
                self.violations.append("the resource closes while steps run")
            await asyncio.sleep(0.001)

    @property
    def resources(self):
        return {"db": self.resource}


@dataclass
class Spec:
    """The properties of one step."""

    name: str
    needs: list[str]
    fails: int
    """How many attempts fail: of the step, or of each of its items with an even index."""
    style: str
    size: int
    """The length of its output."""
    when: str | None
    options: dict[str, Any] = field(default_factory=dict)
    pool: int | None = None
    needs_slots: str = ""
    """What its function for its slots does: nothing, ``counts``, or ``raises`` for some data."""
    repeats: bool = False
    """Whether its output has each element twice, so that steps which are mapped over it make equal
    calls."""
    speaks: bool = False
    pays: int = 0
    """How many calls by name each attempt makes."""
    takes_resource: bool = False
    key: str = ""
    """Its key in its pool: none, a name, or one that follows from its data."""

    def step(self, world):
        options = dict(self.options)
        if self.pool is not None:
            pool = options["pool"] = world.pools[self.pool]
            if self.needs_slots:
                options["slots"] = self.measure(pool)
            if self.key:
                options["pool_key"] = _key_by_data if self.key == "by data" else self.key
        if self.when is not None:
            options["when"] = CONDITIONS[self.when]
        return WorkflowStep(self.name, self.action(world), self.needs, **options)

    def measure(self, pool):
        size = pool.size

        def measure(**arguments):
            digest = zlib.crc32(json.dumps(arguments, sort_keys=True).encode())
            if self.needs_slots == "raises" and digest % 3 == 0:
                raise LookupError("slots")
            return 1 + digest % size

        return measure

    def action(self, world):
        act = self._act_in_thread(world) if self.in_thread else self._act(world)
        if not self.takes_resource:
            return act

        async def act_with(db, **arguments):
            if not world.is_open:
                world.violations.append(f"{self.name} runs without its resource")
            return await act(**arguments)

        def act_with_in_thread(db, **arguments):
            if not world.is_open:
                world.violations.append(f"{self.name} runs without its resource")
            return act(**arguments)

        return act_with_in_thread if self.in_thread else act_with

    @property
    def in_thread(self):
        return self.options.get("runs_in") == "thread"

    def _begin(self, world, context, arguments):
        """Do what each attempt begins with; return its key, and what its output follows from."""
        key = world.enter(context)
        said = [self.name, self.options.get("version", "")]
        # Equal calls have equal outputs, so a step continues what has the same arguments.
        mark = json.loads(json.dumps([*said, context.item, arguments], sort_keys=True))
        if context.last_checkpoint not in (None, mark):
            world.violations.append(("continues", context.last_checkpoint, "as", mark))
        if context.last_checkpoint is None and (key in world.saved or key in world.failed):
            world.lost.add(key)
        context.checkpoint(mark)
        if self.caches:
            world.begin_call(context, self._call_of(arguments))
        if self.speaks:
            world.speak(context)
        return key, said

    @property
    def caches(self):
        return "cache_ms" in self.options

    def _call_of(self, arguments):
        call = [self.name, self.options.get("version", ""), arguments]
        return json.dumps(call, sort_keys=True)

    async def _pay(self, world, context, mark):
        """Make calls by name: what the journal has of them must not be made again."""
        mark, key = json.loads(json.dumps(mark, sort_keys=True)), (context.step_name, context.item)

        refused = set()

        async def pay(number):
            stored = world.journal.called.get(world.run_id, {}).get(key, {})
            if f"pay {number}" in stored:
                world.violations.append(f"{key} pays {number} again")
            if self.style == "sleep":
                await asyncio.sleep(0.001 * number)
            if number % 2 and number not in refused:
                refused.add(number)
                raise ConnectionRefusedError
            return [number, mark]

        for number in range(self.pays):
            try:
                paid = await context.call(f"pay {number}", pay, number)
            except ConnectionRefusedError:
                paid = await context.call(f"pay {number}", pay, number)
            if paid != [number, mark]:
                world.violations.append((key, "has paid for", paid, "and not", mark))

    def _end(self, world, key, arguments):
        world.running[key] -= 1
        if self.caches:
            world.journal.under_way.discard(self._call_of(arguments))

    def _fails_now(self, world, key, arguments):
        may_fail = key[1] is None or not key[1] % 2
        if self.caches and key[1] is not None:  # equal calls fail alike
            may_fail = not zlib.crc32(self._call_of(arguments).encode()) % 2
        return may_fail and world.failures[key] < self.fails

    def _output(self, said, arguments):
        digest = zlib.crc32(json.dumps([said, arguments], sort_keys=True).encode())
        each = 2 if self.repeats else 1
        return [digest % 1000 + number // each for number in range(self.size)]

    def _act_in_thread(self, world):
        def act(**arguments):
            context = current_step()
            key, said = self._begin(world, context, arguments)
            try:
                if self._fails_now(world, key, arguments):
                    raise ValueError(f"{context.step_name} {world.failures[key]}")
                return self._output(said, arguments)
            finally:
                self._end(world, key, arguments)

        return act

    def _act(self, world):
        async def act(**arguments):
            context = current_step()
            key, said = self._begin(world, context, arguments)
            try:
                await self._pay(world, context, [*said, context.item, arguments])
                if self.style == "sleep":
                    await asyncio.sleep(0.002 + 0.001 * (len(self.name) + (key[1] or 0) % 3))
                elif self.style == "suspend":
                    await asyncio.sleep(0)
                if self.speaks:
                    world.speak(context)
                if self._fails_now(world, key, arguments):
                    if self.style == "hang":
                        await asyncio.Event().wait()
                    raise ValueError(f"{context.step_name} {world.failures[key]}")
                return self._output(said, arguments)
            finally:
                self._end(world, key, arguments)

        return act


def _key_by_data(**arguments):
    digest = zlib.crc32(json.dumps(arguments, sort_keys=True).encode())
    return (None, "a", "b", "c")[digest % 4]


def _instead(error):
    return [7]


def _named(error):
    """Name a time, as a service does that refuses."""
    return 3.0


def _no(**arguments):
    return False


def _yes(**arguments):
    return True


def _raises(**arguments):
    raise KeyError("condition")


CONDITIONS = {"no": _no, "yes": _yes, "raises": _raises}


class RandomPipeline:
    """A pipeline of a few steps of all kinds, and the options of its runs.

    A ``rich`` one has caches, threads, resources, rates, priorities and notes, too.
    """

    def __init__(self, seed, *, sure=False, rich=False):
        self.chance = chance = random.Random(seed)
        self.sure = sure
        """Whether no step fails for good."""
        self.workers = random.Random(f"workers {seed}").choice([None, None, 1, 3])
        """How many workers the engine of its runs has; ``None`` for no engine."""
        self.pool_sizes = [chance.randint(1, 2) for _ in range(2)]
        self.specs = self._specs("s", chance.randint(1, 6))
        self.nested = []
        if chance.random() < 0.3:
            needs = [s.name for s in self.specs if chance.random() < 0.3]
            inner = self._specs("n", chance.randint(1, 3))
            for spec in inner:
                spec.options.pop("run_if", None)
            self.nested = [("inner", inner, needs)]
        self._keep_no_outputs(self.specs, {name for _, _, needs in self.nested for name in needs})
        self.options = {
            "schedule": chance.choice(["tiers", "ready"]),
            "fail_fast": chance.random() < 0.3,
            "max_concurrency": chance.choice([None, None, 1, 2]),
            "deadline_ms": chance.choice([None, None, 100_000]),
        }
        self.latency_s = chance.choice([0.0, 0.0, 0.001])
        self.pool_options = [{} for _ in self.pool_sizes]
        self.caches = False
        self.changes = None
        """Which sizes the pools of its runs have while they go on, if they change."""
        self.given = []
        """The input over which steps are mapped."""
        if rich:
            self._enrich(random.Random(f"policies {seed}"))
            self._map_over_input(random.Random(f"mapped over input {seed}"))
            self._make_calls(random.Random(f"calls {seed}"))
            if random.Random(f"pool numbers {seed}").random() < 0.3:
                self.changes = f"pool sizes {seed}"
            self._give_keys(random.Random(f"pool keys {seed}"))

    def _all_specs(self):
        return [*self.specs, *(spec for _, inner, _ in self.nested for spec in inner)]

    @property
    def inputs(self):
        """The inputs of its runs."""
        is_taken = any("given" in spec.needs for spec in self._all_specs())
        return {"given": self.given} if is_taken else {}

    @property
    def has_resource(self):
        """Whether a step takes the resource of the run."""
        return any(spec.takes_resource for spec in self._all_specs())

    def _enrich(self, chance):
        """Add policies. No number of what there was without them changes."""
        for options in self.pool_options:
            if chance.random() < 0.3:
                options[chance.choice(["per_second", "tokens_per_minute"])] = 60_000
            if chance.random() < 0.2:
                options["retry_budget"] = 1  # it begins with ten, which no run spends
        crowded = chance.random() < 0.4
        is_local = self.workers is None
        in_threads = chance.choice([0, 0, 0.3, 0.7]) if is_local else 0
        has_resource = is_local and chance.random() < 0.3
        all_specs = self._all_specs()
        may_cache = not any(spec.options.get("secret") for spec in all_specs)
        for spec in all_specs:
            options = spec.options
            if crowded and spec.pool is None and chance.random() < 0.6:
                spec.pool = 0
            if spec.pool is not None:
                options["priority"] = chance.choice([-1, 0, 0, 1])
                spec.needs_slots = chance.choice(["", "", "counts", "" if self.sure else "raises"])
                if "tokens_per_minute" in self.pool_options[spec.pool]:
                    options["tokens"] = chance.choice([0, 1, 3])
                if spec.fails and chance.random() < 0.3:
                    options["retry"] = Retry(on=_named, jitter=False)
            if chance.random() < in_threads and spec.style != "hang":
                options["runs_in"] = "thread"
            if may_cache and not spec.fails and chance.random() < 0.3:
                options["cache_ms"] = A_DAY_MS
                self.caches = True
            spec.speaks, spec.repeats = chance.random() < 0.3, chance.random() < 0.5
            spec.takes_resource = has_resource and chance.random() < 0.5
        if self.caches:
            for spec in all_specs:
                if spec.fails and chance.random() < 0.6:
                    spec.options["cache_ms"] = A_DAY_MS

    def _give_keys(self, chance):
        """Give keys to the steps in the pools of some pipelines, by their data or not."""
        if chance.random() < 0.5:
            return
        for spec in self._all_specs():
            if spec.pool is not None:
                spec.key = chance.choice(["", "a", "by data", "by data"])
        for number, options in enumerate(self.pool_options):
            counts = any(it.pool == number and it.needs_slots for it in self._all_specs())
            options["per_key"] = chance.choice([None, 2, 2 if counts else 1])

    def _map_over_input(self, chance):
        """Map steps of some pipelines over an input of the run."""
        if chance.random() < 0.5:
            return
        self.given = [chance.randrange(3) for _ in range(chance.choice([0, 1, 2, 3, 5]))]
        for spec in self._all_specs():
            if "map_over" not in spec.options and chance.random() < 0.5:
                spec.needs = [*spec.needs, "given"]
                spec.options["map_over"] = "given"
                if chance.random() < 0.4:
                    spec.options["tolerated_failures"] = chance.choice([1, 2, 0.4, 1.0])

    def _make_calls(self, chance):
        """Let some steps make calls by name."""
        if chance.random() < 0.5 or self.workers is not None:
            return
        for spec in self._all_specs():
            if not spec.in_thread and spec.style != "hang":
                spec.pays = chance.choice([0, 1, 3])

    def _specs(self, prefix, count):
        specs = []
        for number in range(count):
            others = [spec.name for spec in specs]
            needs = sorted(self.chance.sample(others, min(len(others), self.chance.randint(0, 2))))
            specs.append(self._spec(f"{prefix}{number}", needs, specs))
        return specs

    def _keep_no_outputs(self, specs, kept):
        """Let some mapped steps keep no outputs, of which no other step takes the whole."""
        for spec in specs:
            later = [other for other in specs if spec.name in other.needs]
            is_mapped = all(
                other.options.get("map_over") == spec.name and other.when is None for other in later
            )
            may_drop = is_mapped and "map_over" in spec.options and spec.name not in kept
            if may_drop and self.chance.random() < 0.4:
                spec.options["keep_outputs"] = False

    def _spec(self, name, needs, others):
        chance = self.chance
        most = chance.randint(1, 3)
        fails = chance.choice([0, 0, 0, 0, 1, 2, 3])
        if self.sure:
            fails = min(fails, most - 1)
        style = chance.choice(["at once", "suspend", "sleep", "sleep"])
        backoff = chance.choice([0, 0, 4])
        options = {"max_retries": most, "retry": backoff if most > 1 else 0}
        if fails and chance.random() < 0.2:
            style, options["timeout_ms"] = "hang", 5
        if chance.random() < 0.25:
            options["run_if"] = chance.choice(
                ["failure", "always", "unless_failed", "unless_failed"]
            )
        if chance.random() < 0.12:
            options["secret"] = True
        if chance.random() < 0.15:
            options["fallback"] = _instead
        if chance.random() < 0.1:
            options["deadline_ms"] = 10_000
        mapped = [spec.name for spec in others if "map_over" in spec.options]
        if needs and chance.random() < 0.35:
            options["map_over"] = chance.choice(needs)
        elif mapped and chance.random() < 0.5:
            options["map_over"] = chance.choice(mapped)
            needs = sorted({*needs, options["map_over"]})
        if "map_over" in options and chance.random() < 0.4:
            options["tolerated_failures"] = chance.choice([1, 2, 0.4, 1.0])
        when = None
        if chance.random() < 0.12:
            when = chance.choice(["yes", "no"] if self.sure else ["yes", "no", "raises"])
        pool = chance.choice([0, 1]) if chance.random() < 0.2 else None
        size = chance.choice([0, 1, 2, 2, 3, 5])
        return Spec(name, needs, fails, style, size, when, options, pool)

    def steps(self, world):
        steps = [spec.step(world) for spec in self.specs]
        for name, inner, needs in self.nested:
            steps += include_steps(name, [spec.step(world) for spec in inner], needs)
        return steps if self.workers is None else [*on_engine(steps, FakeEngine(self.workers))]

    def world(self, journal, run_id=RUN_ID):
        pools = [
            # In virtual time, a shared pool is an ordinary one.
            Pool(size, name=f"pool {n}", shared=bool(n) and "per_key" not in options, **options)
            for n, (size, options) in enumerate(
                zip(self.pool_sizes, self.pool_options, strict=True)
            )
        ]
        changes = None if self.changes is None else random.Random(self.changes)
        return World(journal, pools, self.options["max_concurrency"], run_id, changes)

    def changed(self):
        """Return the same pipeline with a few changes of its steps and of its options."""
        chance, other = self.chance, copy.deepcopy(self)
        other.chance = chance
        specs = other.specs
        for _ in range(chance.randint(0, 2)):
            spec = chance.choice(specs)
            match chance.choice(["version", "needs", "drop", "secret", "options"]):
                case "version":
                    spec.options["version"] = chance.choice(["", "2", "3"])
                case "needs" if spec.needs and "map_over" not in spec.options:
                    spec.needs.remove(chance.choice(spec.needs))
                case "drop" if len(specs) > 1 and not other.nested:
                    specs.remove(spec)
                    for each in specs:
                        each.needs = [name for name in each.needs if name != spec.name]
                        if each.options.get("map_over") == spec.name:
                            del each.options["map_over"]
                            each.options.pop("tolerated_failures", None)
                            each.options.pop("keep_outputs", None)
                case "secret" if not self.caches:
                    spec.options["secret"] = not spec.options.get("secret", False)
                case _:
                    spec.options["max_crashes"] = chance.choice([0, 1, 2])
        other.options.update(
            schedule=chance.choice(["tiers", "ready"]),
            fail_fast=chance.random() < 0.4,
            max_concurrency=chance.choice([None, None, 1, 2]),
            deadline_ms=chance.choice([None, 5, 9]),
        )
        return other

    def describe(self):
        lines = [f"{self.options} latency={self.latency_s} pools={self.pool_sizes}"]
        lines += map(repr, self.specs)
        for name, inner, needs in self.nested:
            lines += [f"{name} after {needs}:", *map(repr, inner)]
        return "\n".join(lines)
