"""What ratios may be at most, on each Python: what it reaches on a busy machine, and some 7 % more.

So a regression shows, and noise passes. Eight busy processes on two cores raise some ratios by up
to 15 %, most of all those of rows that hold many objects. All are CPU time to that of the same work
by hand, but the memory, the import and the modules.
"""

LIMITS: dict[str, tuple[float, float, float]] = {
    # on Python 3.11, 3.12, and 3.13 or newer
    "chain of 1,000 steps, instant": (1.3, 1.15, 1.25),
    "chain of 1,000 steps, instant, with an observer": (1.5, 1.45, 1.5),
    "chain of 1,000 steps, suspending": (1.3, 1.15, 1.25),
    "chain of 1,000 steps, suspending, with an observer": (1.45, 1.4, 1.45),
    "fan of 1,000 steps, instant": (1.45, 1.3, 1.35),
    "fan of 1,000 steps, instant, with an observer": (1.7, 1.6, 1.6),
    "fan of 1,000 steps, suspending": (1.45, 1.3, 1.35),
    "fan of 1,000 steps, suspending, with an observer": (1.6, 1.5, 1.55),
    "layered of 1,000 steps, instant": (1.45, 1.3, 1.3),
    "layered of 1,000 steps, instant, with an observer": (1.6, 1.55, 1.6),
    "layered of 1,000 steps, suspending": (1.4, 1.2, 1.3),
    "layered of 1,000 steps, suspending, with an observer": (1.6, 1.45, 1.55),
    # what a run costs, whatever it runs
    "chain of 3 steps, Orchestrator.run": (2.5, 3.0, 3.2),
    "chain of 3 steps, run_pipeline": (3.0, 3.7, 3.9),
    "chain of 3 steps, steps and run_pipeline": (3.8, 4.9, 5.1),
    "1,000 steps that succeed at the third attempt": (2.5, 3.4, 3.9),
    "fail-fast with 1,000 sleeping siblings": (1.65, 1.75, 1.75),
    "fail-fast with 5,000 sleeping siblings": (1.5, 1.6, 1.6),
    # A semaphore by hand knows no other loops, threads and runs, no queued_ms, priorities or rates.
    "1,000 steps in a pool of 100, instant": (2.3, 1.9, 2.15),
    "1,000 steps in a pool of 100, suspending": (2.3, 1.5, 1.55),
    "1,000 steps in a pool of 100 with a rate, instant": (2.5, 3.7, 4.2),
    "1,000 steps in a pool of 100 with 3 priorities, instant": (2.35, 3.0, 3.4),
    "50 runs of 100 steps in a pool of 20": (3.0, 3.0, 3.2),
    "1,000 durable steps in a shared pool, beside one that is not shared": (1.1, 1.1, 1.1),
    # An item has a result, attempts, and a slot that other runs share; a task has none of these.
    "map over 10,000 items, 100 at once, instant": (1.85, 2.35, 2.35),
    "map over 10,000 items, 100 at once, suspending": (1.85, 1.7, 1.7),
    "10,000 items, mapped steps in pools of 100: 1": (2.8, 2.3, 2.3),
    "10,000 items, mapped steps in pools of 100: 2": (3.5, 3.6, 3.7),
    "memory of a live step": (1.4, 1.35, 1.35),
    "import of asyncflow, beside asyncio / of asyncio": (0.58, 0.58, 0.58),
    "modules that a plain run loads": (41, 40, 40),
    # with a journal, against sqlite3 and group commit
    "durable chain of 100": (3.6, 3.3, 3.4),
    "durable 50 chains of 10": (4.6, 4.4, 4.4),
    "durable fan of 1,000": (4.0, 3.6, 3.6),
    "durable chain of 3": (4.0, 4.0, 4.0),
}
