"""The PostgreSQL store survives faults of servers, connections and processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest
from postgres_server import PostgresServer, until
from psycopg.pq import TransactionStatus

from asyncflow._core.errors import JournalError, RunAlreadyActiveError
from asyncflow._core.history.results import Payload
from asyncflow.events import AttemptStarted, StepSucceeded
from asyncflow.journal._codec.events import row_of
from asyncflow.journal._codec.payloads import Codec
from asyncflow.journal._database import postgres as postgres_connection
from asyncflow.journal._database.postgres import Postgres
from asyncflow.journal._read.queries import RunFilter
from asyncflow.journal._read.reader import RunReader
from asyncflow.journal._read.run_lists import RunLists
from asyncflow.journal._write.store import Change, Claim, CommitBatch, Store

MINE = Claim("me", '{"claim": "mine"}', 30.0, lambda process: False)
THEIRS = MINE._replace(process='{"claim": "of another process"}')
TAKEOVER = Claim("another owner", '{"claim": "theirs"}', 30.0, lambda process: True)

MakeStore = Callable[..., Store]


@pytest.fixture
def make_store(dsn: str) -> Iterator[MakeStore]:
    stores = []

    def make(dsn: str = dsn, lease_s: float = 10.0) -> Store:
        store = Store(Postgres(dsn, lease_s))
        stores.append(store)
        return store

    yield make

    for store in stores:
        store.database.close()


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


def batch(
    run_id: str, token: int, *positions: int, attempt: int = 1, release: bool = False
) -> CommitBatch:
    rows = [row_of(run_id, each, AttemptStarted("a", attempt, each / 3)) for each in positions]
    change = Change("running", 1, "", 0.0) if 1 in positions else None
    return CommitBatch(run_id, token, rows, change, release)


def claim(store: Store, run_id: str, how: Claim) -> int:
    (token,) = store.claim([(run_id, how)])
    if isinstance(token, Exception):
        raise token
    return token


def positions(store: Store, run_id: str) -> list[int]:
    return [at for at, _ in enumerate(store.events(run_id), 1)]


def process_of(store: Store) -> int:
    with store.database.reading() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    return pid


def test_events_come_back_unchanged(store: Store) -> None:
    token = claim(store, "r", MINE)
    events = [
        AttemptStarted("%s ? ü", 1, 1 / 3),
        StepSucceeded("a", 1, 1e-9, Payload("cloudpickle", bytes(range(256)) * 10), item=2**40),
        StepSucceeded("a", 1, 1e9, Payload("json", '"%s ? ü"'.encode())),
    ]
    rows = [row_of("r", position, event) for position, event in enumerate(events, 1)]

    assert store.write(lambda: [CommitBatch("r", token, rows, None, False)]) == {}

    assert [*store.events("r")] == events


# --- connections that are cut, and servers that restart -------------------------------------------


def test_a_cut_idle_connection_is_replaced(store: Store, postgres_server: PostgresServer) -> None:
    token = claim(store, "r", MINE)
    postgres_server.cut_connections()

    store.write(lambda: [batch("r", token, 1)])

    assert positions(store, "r") == [1]


def test_a_cut_connection_fails_no_read(store: Store, postgres_server: PostgresServer) -> None:
    claim(store, "r", MINE)

    for read in (partial(store.saved, "r"), partial(store.cached, {"key": 1.0}, None)):
        postgres_server.cut_connections()
        assert not any(read())


def test_a_connection_that_is_cut_before_its_first_use_is_replaced(
    store: Store, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = store.database._connect

    def connect_and_cut() -> psycopg.Connection:
        monkeypatch.undo()
        connection = connect()
        postgres_server.cut_connections()
        return connection

    monkeypatch.setattr(store.database, "_connect", connect_and_cut)

    assert claim(store, "r", MINE) > 0


def test_a_cancellation_request_survives_a_cut_connection(
    store: Store, postgres_server: PostgresServer
) -> None:
    token = claim(store, "r", MINE)
    assert store.cancelled() == []
    postgres_server.cut_connections()

    assert store.cancel("r", "why", MINE) == token

    postgres_server.cut_connections()
    assert store.cancelled() == [("r", token, "why", "cancelled")]
    store.release("r", token)
    assert store.cancelled() == []
    assert store.cancel("r", "why", MINE) is None


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_store_survives_a_restart_between_two_transactions(
    store: Store, postgres_server: PostgresServer, mode: str
) -> None:
    token = claim(store, "r", MINE)
    store.write(lambda: [batch("r", token, 1)])

    postgres_server.restart(mode)
    store.write(lambda: [batch("r", token, 2)])
    postgres_server.restart(mode)
    lost = store.renew([("r", token)], 30.0)
    postgres_server.restart(mode)

    assert positions(store, "r") == [1, 2]
    assert not lost


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_store_survives_a_restart_during_a_transaction(
    store: Store, postgres_server: PostgresServer, mode: str
) -> None:
    token = claim(store, "r", MINE)
    taken = []

    def take() -> Sequence[CommitBatch]:
        taken.append("once")
        postgres_server.restart(mode)
        return [batch("r", token, 1, 2)]

    lost = store.write(take)

    assert taken == ["once"]
    assert not lost
    assert positions(store, "r") == [1, 2]


def test_a_store_survives_a_short_outage(
    store: Store, postgres_server: PostgresServer, executor: ThreadPoolExecutor
) -> None:
    token = claim(store, "r", MINE)
    postgres_server.stop()
    tried = executor.submit(store.write, lambda: [batch("r", token, 1)])
    until(lambda: store.database.answered_at and store.database._connection is None)
    postgres_server.start()

    assert tried.result() == {}
    assert positions(store, "r") == [1]


def test_a_new_connection_waits_for_a_server_that_another_one_has_reached(
    store: Store, dsn: str, postgres_server: PostgresServer, executor: ThreadPoolExecutor
) -> None:
    second = Store(Postgres(dsn, 10.0, store.database.server))
    claim(store, "r", MINE)
    postgres_server.stop()
    read = executor.submit(RunLists(second).rows, RunFilter())
    until(lambda: second.database.answered_at)
    postgres_server.start()

    assert read.result() == []
    second.database.close()


def test_the_history_of_a_run_waits_for_a_server_that_another_connection_has_reached(
    store: Store, dsn: str, postgres_server: PostgresServer, executor: ThreadPoolExecutor
) -> None:
    second = Store(Postgres(dsn, 10.0, store.database.server))
    reader = RunReader(second, RunLists(second), Codec("json", 1_000))
    claim(store, "r", MINE)
    postgres_server.stop()
    read = executor.submit(reader.history, "r", 0)
    until(lambda: second.database.answered_at)
    postgres_server.start()

    assert read.result().segments == []
    second.database.close()


# --- unacknowledged commits -----------------------------------------------------------------------


def test_an_unacknowledged_commit_is_not_repeated(
    store: Store, postgres_server: PostgresServer, executor: ThreadPoolExecutor
) -> None:
    token = claim(store, "r", MINE)

    with postgres_server.unacknowledged_commits() as cut:
        writing = executor.submit(store.write, lambda: [batch("r", token, 1, 2)])
        cut()

    assert writing.result() == {}
    assert positions(store, "r") == [1, 2]
    assert store.write(lambda: [batch("r", token, 3)]) == {}


def test_an_unacknowledged_commit_with_a_release_is_not_a_lost_lease(
    store: Store, postgres_server: PostgresServer, executor: ThreadPoolExecutor
) -> None:
    token, only = claim(store, "r", MINE), claim(store, "only released", MINE)
    batches = [batch("r", token, 1, release=True), batch("only released", only, release=True)]

    with postgres_server.unacknowledged_commits() as cut:
        writing = executor.submit(store.write, lambda: batches)
        cut()

    assert writing.result() == {}
    assert claim(store, "r", MINE) == token + 1


def test_an_unacknowledged_release_alone_is_not_a_lost_lease(
    store: Store, postgres_server: PostgresServer, executor: ThreadPoolExecutor
) -> None:
    token = claim(store, "r", MINE)

    with postgres_server.unacknowledged_commits() as cut:
        writing = executor.submit(store.write, lambda: [batch("r", token, release=True)])
        cut()

    assert writing.result() == {}
    assert claim(store, "r", MINE) == token + 1


def test_an_interrupted_release_is_repeated(store: Store, postgres_server: PostgresServer) -> None:
    token = claim(store, "r", MINE)

    def take() -> Sequence[CommitBatch]:
        postgres_server.cut_connections()
        return [batch("r", token, release=True)]

    lost = store.write(take)

    assert lost == {}
    assert claim(store, "r", MINE) == token + 1


def test_an_unacknowledged_claim_is_recognized_as_its_own(
    store: Store, postgres_server: PostgresServer, executor: ThreadPoolExecutor
) -> None:
    first = claim(store, "r", MINE)
    store.release("r", first)

    with postgres_server.unacknowledged_commits() as cut:
        claiming = executor.submit(claim, store, "r", MINE)
        cut()

    assert claiming.result() == first + 1
    assert store.write(lambda: [batch("r", first + 1, 1)]) == {}


def test_another_owners_claim_is_not_mistaken_for_an_unacknowledged_one(
    store: Store, make_store: MakeStore, postgres_server: PostgresServer
) -> None:
    other = make_store()
    claim(other, "r", MINE)
    pid = process_of(store)

    def is_dead(process: str) -> bool:
        has_cut = postgres_server.cut_connections(f"pid = {pid}")
        if has_cut:
            claim(other, "r", TAKEOVER)
        return bool(has_cut)

    with pytest.raises(RunAlreadyActiveError) as caught:
        claim(store, "r", THEIRS._replace(is_void=is_dead))

    assert caught.value.owner == "another owner"


def test_a_lease_lost_while_the_connection_was_cut_prevents_writes(
    store: Store, make_store: MakeStore, postgres_server: PostgresServer
) -> None:
    other = make_store()
    token = claim(store, "r", MINE)
    pid = process_of(store)

    def take() -> Sequence[CommitBatch]:
        postgres_server.cut_connections(f"pid = {pid}")
        theirs = claim(other, "r", TAKEOVER)
        other.write(lambda: [batch("r", theirs, 1, attempt=7)])
        return [batch("r", token, 1, 2)]

    lost = store.write(take)

    assert lost == {("r", token): None}
    assert [*store.events("r")] == [AttemptStarted("a", 7, 1 / 3)]


def test_a_transaction_commits_the_valid_runs_and_reports_the_lost_leases(
    store: Store,
    make_store: MakeStore,
    postgres_server: PostgresServer,
    executor: ThreadPoolExecutor,
) -> None:
    a, b = claim(store, "a", MINE), claim(store, "b", MINE)
    claim(make_store(), "b", TAKEOVER)

    with postgres_server.unacknowledged_commits() as cut:
        writing = executor.submit(store.write, lambda: [batch("a", a, 1), batch("b", b, 1)])
        cut()

    assert writing.result() == {("b", b): None}
    assert positions(store, "a") == [1]
    assert positions(store, "b") == []


# --- the clock of the server ----------------------------------------------------------------------


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Return what lets the clock of the server jump, as stores see it."""
    clock = postgres_connection._NOW

    def jump(seconds: int) -> None:
        monkeypatch.setattr(postgres_connection, "_NOW", f"({clock} + {seconds})")
        postgres_connection._translated.cache_clear()

    yield jump
    postgres_connection._translated.cache_clear()


def test_a_jump_of_the_servers_clock_forwards_frees_the_run_of_a_live_process_which_is_fenced(
    store: Store, make_store: MakeStore, jump: Callable[[int], None]
) -> None:
    other, token = make_store(), claim(store, "r", MINE)
    jump(3_600)

    theirs = claim(other, "r", TAKEOVER)

    assert store.write(lambda: [batch("r", token, 1)]) == {("r", token): None}
    assert other.write(lambda: [batch("r", theirs, 1)]) == {}


def test_a_jump_of_the_servers_clock_backwards_prolongs_a_lease_until_it_is_renewed(
    store: Store, make_store: MakeStore, jump: Callable[[int], None]
) -> None:
    other, token = make_store(), claim(store, "r", MINE)
    jump(-3_600)
    with pytest.raises(RunAlreadyActiveError):
        claim(other, "r", THEIRS)
    assert store.renew([("r", token)], 30.0) == set()

    jump(-3_600 + 31)

    assert claim(other, "r", THEIRS) == token + 1


# --- processes and servers that hang --------------------------------------------------------------


def test_a_client_that_hangs_in_a_transaction_does_not_block_others(
    store: Store, make_store: MakeStore
) -> None:
    slow = make_store(lease_s=0.6)
    token = claim(slow, "r", MINE._replace(lease_s=0.01))

    def hang() -> None:
        with slow.database.transaction() as cursor:
            cursor.execute("SELECT 1 FROM asyncflow.leases FOR UPDATE")
            assert claim(store, "r", TAKEOVER) == token + 1  # waits for the row

    with pytest.raises(JournalError, match="idle-in-transaction timeout"):
        hang()

    assert slow.write(lambda: [batch("r", token, 1)]) == {("r", token): None}


def test_a_store_survives_a_short_hang_of_the_server(
    store: Store, postgres_server: PostgresServer, executor: ThreadPoolExecutor
) -> None:
    token = claim(store, "r", MINE)

    with postgres_server.frozen():
        writing = executor.submit(store.write, lambda: [batch("r", token, 1)])
        connection = store.database._connection
        assert connection is not None
        until(lambda: connection.info.transaction_status == TransactionStatus.ACTIVE)

    assert writing.result() == {}
    assert positions(store, "r") == [1]


def test_a_store_gives_up_on_a_server_that_hangs_for_longer_than_a_lease(
    make_store: MakeStore, postgres_server: PostgresServer
) -> None:
    store = make_store(lease_s=0.5)
    token = claim(store, "r", MINE)

    with postgres_server.frozen(), pytest.raises(JournalError) as caught:
        store.write(lambda: [batch("r", token, 1)])

    assert "not replaced in time (the server has not answered for 0.5 s)" in str(caught.value)
    assert "committed before is safe" in str(caught.value)
    assert positions(store, "r") in ([], [1])


def test_a_store_gives_up_on_a_server_that_is_down_for_longer_than_a_lease(
    make_store: MakeStore, postgres_server: PostgresServer
) -> None:
    store = make_store(lease_s=1)
    token = claim(store, "r", MINE)
    database, attempts = store.database, list[None]()
    connect, connection = database._connect, database._connection
    database._connect = lambda: attempts.append(None) or connect()
    postgres_server.stop()
    connection.answered_at = time.monotonic()  # however long that took

    with pytest.raises(JournalError, match=r"the connection was lost.*refused") as caught:
        store.write(lambda: [batch("r", token, 1)])
    waiting = len(attempts)
    # The store does not wait again before the server has answered once.
    with pytest.raises(JournalError, match=r"the connection was lost.*refused"):
        store.write(lambda: [batch("r", token, 1)])
    postgres_server.start()

    assert len(attempts) - 1 == waiting > 1
    assert type(caught.value) is JournalError
    assert store.write(lambda: [batch("r", token, 1)]) == {}
    postgres_server.restart()
    assert positions(store, "r") == [1]


def test_a_client_with_a_wrong_clock_takes_no_lease_from_others(
    store: Store, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_store()
    token = claim(store, "r", MINE)
    monkeypatch.setattr("time.time", lambda: 1e12)

    with pytest.raises(RunAlreadyActiveError):
        claim(other, "r", THEIRS)
    claim(other, "other", THEIRS)
    with pytest.raises(RunAlreadyActiveError):
        claim(store, "other", MINE)

    assert store.write(lambda: [batch("r", token, 1)]) == {}


# --- other transactions ---------------------------------------------------------------------------


def test_a_run_pruned_during_a_claim_is_claimed_as_a_new_one(
    dsn: str, store: Store, executor: ThreadPoolExecutor, postgres_server: PostgresServer
) -> None:
    store.release("r", claim(store, "r", MINE))

    with psycopg.connect(dsn) as pruning:
        pruning.execute("SELECT 1 FROM asyncflow.leases FOR UPDATE")
        claiming = executor.submit(claim, store, "r", MINE)
        until(lambda: postgres_server.execute(WAITING_FOR_A_LOCK))
        pruning.execute("DELETE FROM asyncflow.leases")

    token = claiming.result()
    assert store.write(lambda: [batch("r", token, 1)]) == {}


WAITING_FOR_A_LOCK = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


@pytest.fixture
def fail_once(dsn: str, store: Store) -> Callable[[str], None]:
    """Return a function that makes the first event write fail with an SQLSTATE."""

    def prepare(state: str) -> None:
        RunLists(store).rows(RunFilter())
        with psycopg.connect(dsn) as connection:
            # A rollback does not reset a sequence.
            connection.execute("CREATE SEQUENCE failures")
            connection.execute(
                "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "IF nextval('public.failures') = 1 THEN "
                f"RAISE EXCEPTION E'it is said\nto fail' USING ERRCODE = '{state}'; END IF; "
                "RETURN NEW; END $$".encode()
            )
            connection.execute(
                "CREATE TRIGGER fails BEFORE INSERT ON asyncflow.events "
                "FOR EACH ROW EXECUTE FUNCTION fail()"
            )

    return prepare


@pytest.mark.parametrize(
    "state",
    ["serialization_failure", "deadlock_detected", "lock_not_available", "query_canceled"],
)
def test_a_transaction_that_conflicts_with_another_is_retried(
    store: Store, fail_once: Callable[[str], None], state: str
) -> None:
    fail_once(state)
    token = claim(store, "r", MINE)

    lost = store.write(lambda: [batch("r", token, 1)])

    assert lost == {}
    assert positions(store, "r") == [1]


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ("disk_full", "the disk of the server is full (it is said to fail); what was committed"),
        ("internal_error", "the database failed (it is said to fail); what was committed before"),
    ],
)
def test_a_permanent_failure_says_what_is_safe(
    store: Store, fail_once: Callable[[str], None], state: str, problem: str
) -> None:
    fail_once(state)
    token = claim(store, "r", MINE)

    with pytest.raises(JournalError) as caught:
        store.write(lambda: [batch("r", token, 1)])

    assert problem in str(caught.value)
    assert isinstance(caught.value.__cause__, psycopg.Error)
    assert positions(store, "r") == []
    assert store.write(lambda: [batch("r", token, 1)]) == {}


def test_pruning_leaves_no_trace_of_a_run(store: Store, dsn: str) -> None:
    for name in ("old", "active"):
        token = claim(store, name, MINE)
        ended = Change("passed", 1, "", 0.0)
        release = name == "old"
        rows = batch(name, token, 1, 2).rows
        store.write(lambda: [CommitBatch(name, token, rows, ended, release)])  # noqa: B023

    found = store.ended(0.0, "passed", None)
    pruned = store.prune(["old", "active"], 0.0, None, None)

    assert found == [("old", 2)]
    assert pruned == 1
    assert [run.run_id for run in RunLists(store).rows(RunFilter("PASSED", "", 0.0))] == ["active"]
    with psycopg.connect(dsn) as connection:
        for table in ("runs", "leases", "events"):
            names = connection.execute(f"SELECT DISTINCT run_id FROM asyncflow.{table}".encode())
            assert names.fetchall() == [("active",)]


def test_a_run_resumed_during_pruning_is_not_pruned(
    dsn: str, store: Store, executor: ThreadPoolExecutor, postgres_server: PostgresServer
) -> None:
    token = claim(store, "r", MINE)
    rows = batch("r", token, 1).rows
    store.write(lambda: [CommitBatch("r", token, rows, Change("passed", 1, "", 0.0), True)])

    with psycopg.connect(dsn) as resuming:
        resuming.execute("SELECT 1 FROM asyncflow.leases FOR UPDATE")
        pruning = executor.submit(store.prune, ["r"], 0.0, None, None)
        until(lambda: postgres_server.execute(WAITING_FOR_A_LOCK))
        resuming.execute("UPDATE asyncflow.leases SET token = token + 1")
        resuming.execute("UPDATE asyncflow.runs SET status = 'running'")

    assert pruning.result() == 0
    assert positions(store, "r") == [1]
