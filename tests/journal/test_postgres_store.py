"""A store in PostgreSQL through what happens to servers, connections and processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from postgres_server import PostgresServer, until
from psycopg.pq import TransactionStatus

from asyncflow._core.errors import JournalError, RunAlreadyActiveError
from asyncflow._core.results import Payload
from asyncflow.events import AttemptStarted, StepSucceeded
from asyncflow.journal._event_codec import row_of
from asyncflow.journal._postgres import PostgresStore
from asyncflow.journal._postgres_connection import Postgres
from asyncflow.journal._queries import RunFilter
from asyncflow.journal._store import Change, Claim, CommitBatch

MINE = Claim("me", "{}", 30.0, lambda process: False)
TAKING_OVER = Claim("somebody else", "{}", 30.0, lambda process: True)

MakeStore = Callable[..., PostgresStore]


@pytest.fixture
def make_store(dsn: str) -> Iterator[MakeStore]:
    stores = []

    def make(dsn: str = dsn, lease_s: float = 10.0) -> PostgresStore:
        store = PostgresStore(Postgres(dsn, lease_s))
        stores.append(store)
        return store

    yield make

    for store in stores:
        store.database.close()


@pytest.fixture
def store(make_store: MakeStore) -> PostgresStore:
    return make_store()


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


def batch(
    run_id: str, token: int, *positions: int, attempt: int = 1, release: bool = False
) -> CommitBatch:
    rows = [row_of(run_id, each, AttemptStarted("a", attempt, each / 3)) for each in positions]
    change = Change("running", "", 0.0) if 1 in positions else None
    return CommitBatch(run_id, token, rows, change, release)


def positions(store: PostgresStore, run_id: str) -> list[int]:
    return [row[0] for row in store.events(run_id)]


def process_of(store: PostgresStore) -> int:
    with store.database.reading() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    return pid


def test_what_is_written_comes_back_as_it_was(store: PostgresStore) -> None:
    token = store.claim("r", MINE)
    events = [
        AttemptStarted("%s ? ü", 1, 1 / 3),
        StepSucceeded("a", 1, 1e-9, Payload("cloudpickle", bytes(range(256)) * 10), item=2**40),
        StepSucceeded("a", 1, 1e9, Payload("json", '"%s ? ü"'.encode())),
    ]
    rows = [row_of("r", position, event) for position, event in enumerate(events, 1)]

    assert store.write(lambda: [CommitBatch("r", token, rows, None, False)]) == set()

    assert store.events("r") == list(enumerate(events, 1))


# --- connections that are cut, and servers that restart -------------------------------------------


def test_an_idle_connection_that_was_cut_is_made_anew(
    store: PostgresStore, postgres_server: PostgresServer
) -> None:
    token = store.claim("r", MINE)
    postgres_server.cut_connections()

    store.write(lambda: [batch("r", token, 1)])

    assert positions(store, "r") == [1]


def test_a_request_lives_through_a_cut_connection(
    store: PostgresStore, postgres_server: PostgresServer
) -> None:
    token = store.claim("r", MINE)
    assert store.cancelled() == []
    postgres_server.cut_connections()

    assert store.cancel("r", MINE) == token

    postgres_server.cut_connections()
    assert store.cancelled() == [("r", token)]
    store.release("r", token)
    assert store.cancelled() == []
    assert store.cancel("r", MINE) is None


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_may_restart_between_two_transactions(
    store: PostgresStore, postgres_server: PostgresServer, mode: str
) -> None:
    token = store.claim("r", MINE)
    store.write(lambda: [batch("r", token, 1)])

    postgres_server.restart(mode)
    store.write(lambda: [batch("r", token, 2)])
    postgres_server.restart(mode)
    lost = store.renew([("r", token)], 30.0)
    postgres_server.restart(mode)

    assert positions(store, "r") == [1, 2]
    assert not lost


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_may_restart_in_the_middle_of_a_transaction(
    store: PostgresStore, postgres_server: PostgresServer, mode: str
) -> None:
    token = store.claim("r", MINE)
    asked = []

    def take() -> Sequence[CommitBatch]:
        asked.append("once")
        postgres_server.restart(mode)
        return [batch("r", token, 1, 2)]

    lost = store.write(take)

    assert asked == ["once"]
    assert not lost
    assert positions(store, "r") == [1, 2]


def test_a_server_may_be_away_for_a_while(
    store: PostgresStore, postgres_server: PostgresServer, elsewhere: ThreadPoolExecutor
) -> None:
    token = store.claim("r", MINE)
    postgres_server.stop()
    tried = elsewhere.submit(store.write, lambda: [batch("r", token, 1)])
    until(lambda: store.database.answered_at and store.database._connection is None)
    postgres_server.start()

    assert tried.result() == set()
    assert positions(store, "r") == [1]


# --- commits that nobody was told of --------------------------------------------------------------


def test_an_untold_commit_is_not_done_twice(
    store: PostgresStore, postgres_server: PostgresServer, elsewhere: ThreadPoolExecutor
) -> None:
    token = store.claim("r", MINE)

    with postgres_server.untold_commits() as cut:
        writing = elsewhere.submit(store.write, lambda: [batch("r", token, 1, 2)])
        cut()

    assert writing.result() == set()
    assert positions(store, "r") == [1, 2]
    assert store.write(lambda: [batch("r", token, 3)]) == set()


def test_an_untold_commit_that_gave_up_the_claim_is_no_lost_lease(
    store: PostgresStore, postgres_server: PostgresServer, elsewhere: ThreadPoolExecutor
) -> None:
    token, only = store.claim("r", MINE), store.claim("only released", MINE)
    batches = [batch("r", token, 1, release=True), batch("only released", only, release=True)]

    with postgres_server.untold_commits() as cut:
        writing = elsewhere.submit(store.write, lambda: batches)
        cut()

    assert writing.result() == set()
    assert store.claim("r", MINE) == token + 1


def test_an_untold_release_alone_is_no_lost_lease(
    store: PostgresStore, postgres_server: PostgresServer, elsewhere: ThreadPoolExecutor
) -> None:
    token = store.claim("r", MINE)

    with postgres_server.untold_commits() as cut:
        writing = elsewhere.submit(store.write, lambda: [batch("r", token, release=True)])
        cut()

    assert writing.result() == set()
    assert store.claim("r", MINE) == token + 1


def test_a_claim_whose_release_was_cut_off_is_given_up_all_the_same(
    store: PostgresStore, postgres_server: PostgresServer
) -> None:
    token = store.claim("r", MINE)

    def take() -> Sequence[CommitBatch]:
        postgres_server.cut_connections()
        return [batch("r", token, release=True)]

    lost = store.write(take)

    assert lost == set()
    assert store.claim("r", MINE) == token + 1


def test_an_untold_claim_is_not_taken_for_that_of_another(
    store: PostgresStore, postgres_server: PostgresServer, elsewhere: ThreadPoolExecutor
) -> None:
    first = store.claim("r", MINE)
    store.release("r", first)

    with postgres_server.untold_commits() as cut:
        claiming = elsewhere.submit(store.claim, "r", MINE)
        cut()

    assert claiming.result() == first + 1
    assert store.write(lambda: [batch("r", first + 1, 1)]) == set()


def test_a_claim_of_another_is_not_taken_for_an_untold_one(
    store: PostgresStore, make_store: MakeStore, postgres_server: PostgresServer
) -> None:
    other = make_store()
    other.claim("r", MINE)
    pid = process_of(store)

    def is_dead(process: str) -> bool:
        has_cut = postgres_server.cut_connections(f"pid = {pid}")
        if has_cut:
            other.claim("r", TAKING_OVER)
        return bool(has_cut)

    with pytest.raises(RunAlreadyActiveError) as caught:
        store.claim("r", MINE._replace(is_dead=is_dead))

    assert caught.value.owner == "somebody else"


def test_who_has_lost_a_run_while_the_connection_was_cut_writes_nothing(
    store: PostgresStore, make_store: MakeStore, postgres_server: PostgresServer
) -> None:
    other = make_store()
    token = store.claim("r", MINE)
    pid = process_of(store)

    def take() -> Sequence[CommitBatch]:
        postgres_server.cut_connections(f"pid = {pid}")
        theirs = other.claim("r", TAKING_OVER)
        other.write(lambda: [batch("r", theirs, 1, attempt=7)])
        return [batch("r", token, 1, 2)]

    lost = store.write(take)

    assert lost == {("r", token)}
    assert store.events("r") == [(1, AttemptStarted("a", 7, 1 / 3))]


def test_a_transaction_may_be_written_for_one_run_and_be_lost_for_another(
    store: PostgresStore,
    make_store: MakeStore,
    postgres_server: PostgresServer,
    elsewhere: ThreadPoolExecutor,
) -> None:
    a, b = store.claim("a", MINE), store.claim("b", MINE)
    make_store().claim("b", TAKING_OVER)

    with postgres_server.untold_commits() as cut:
        writing = elsewhere.submit(store.write, lambda: [batch("a", a, 1), batch("b", b, 1)])
        cut()

    assert writing.result() == {("b", b)}
    assert positions(store, "a") == [1]
    assert positions(store, "b") == []


# --- processes that stand still, and servers that do ----------------------------------------------


def test_who_stands_still_in_a_transaction_does_not_keep_others_out(
    store: PostgresStore, make_store: MakeStore
) -> None:
    slow = make_store(lease_s=0.6)
    token = slow.claim("r", MINE._replace(lease_s=0.01))

    def stand_still() -> None:
        with slow.database.transaction() as cursor:
            cursor.execute("SELECT 1 FROM asyncflow.leases FOR UPDATE")
            assert store.claim("r", TAKING_OVER) == token + 1  # waits for the row

    with pytest.raises(JournalError, match="idle-in-transaction timeout"):
        stand_still()

    assert slow.write(lambda: [batch("r", token, 1)]) == {("r", token)}


def test_a_server_may_stand_still_for_a_while(
    store: PostgresStore, postgres_server: PostgresServer, elsewhere: ThreadPoolExecutor
) -> None:
    token = store.claim("r", MINE)

    with postgres_server.frozen():
        writing = elsewhere.submit(store.write, lambda: [batch("r", token, 1)])
        connection = store.database._connection
        assert connection is not None
        until(lambda: connection.info.transaction_status == TransactionStatus.ACTIVE)

    assert writing.result() == set()
    assert positions(store, "r") == [1]


def test_a_server_that_stands_still_for_longer_than_a_lease_is_given_up(
    make_store: MakeStore, postgres_server: PostgresServer
) -> None:
    store = make_store(lease_s=0.5)
    token = store.claim("r", MINE)

    with postgres_server.frozen(), pytest.raises(JournalError) as caught:
        store.write(lambda: [batch("r", token, 1)])

    assert "not replaced in time (the server has not answered for 0.5 s)" in str(caught.value)
    assert "committed before is safe" in str(caught.value)
    assert positions(store, "r") in ([], [1])


def test_a_server_that_is_away_for_longer_than_a_lease_is_given_up(
    make_store: MakeStore, postgres_server: PostgresServer
) -> None:
    store = make_store(lease_s=0.5)
    token = store.claim("r", MINE)
    postgres_server.stop()

    started = time.monotonic()
    with pytest.raises(JournalError, match=r"the connection was lost.*refused") as caught:
        store.write(lambda: [batch("r", token, 1)])
    waited = time.monotonic() - started
    # Nobody waits for it again until it has been there.
    with pytest.raises(JournalError, match=r"the connection was lost.*refused"):
        store.write(lambda: [batch("r", token, 1)])
    not_waited = time.monotonic() - started - waited
    postgres_server.start()

    assert not_waited < 0.5 <= waited + 0.4
    assert type(caught.value) is JournalError
    assert store.write(lambda: [batch("r", token, 1)]) == set()
    postgres_server.restart()
    assert positions(store, "r") == [1]


def test_a_client_whose_clock_is_wrong_takes_nothing_from_others(
    store: PostgresStore, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_store()
    token = store.claim("r", MINE)
    monkeypatch.setattr("time.time", lambda: 1e12)

    with pytest.raises(RunAlreadyActiveError):
        other.claim("r", MINE)
    other.claim("other", MINE)
    with pytest.raises(RunAlreadyActiveError):
        store.claim("other", MINE)

    assert store.write(lambda: [batch("r", token, 1)]) == set()


# --- other transactions ---------------------------------------------------------------------------


def test_a_run_that_is_pruned_while_it_is_claimed_is_claimed_as_a_new_one(
    dsn: str, store: PostgresStore, elsewhere: ThreadPoolExecutor, postgres_server: PostgresServer
) -> None:
    store.release("r", store.claim("r", MINE))

    with psycopg.connect(dsn) as pruning:
        pruning.execute("SELECT 1 FROM asyncflow.leases FOR UPDATE")
        claiming = elsewhere.submit(store.claim, "r", MINE)
        until(lambda: postgres_server.execute(WAITING_FOR_A_LOCK))
        pruning.execute("DELETE FROM asyncflow.leases")

    token = claiming.result()
    assert store.write(lambda: [batch("r", token, 1)]) == set()


WAITING_FOR_A_LOCK = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


@pytest.fixture
def fail_once(dsn: str, store: PostgresStore) -> Callable[[str], None]:
    """Let the first event that is written fail with a state of SQL."""

    def prepare(state: str) -> None:
        store.runs(RunFilter())
        with psycopg.connect(dsn) as connection:
            # A sequence counts on, whatever becomes of the transaction.
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
def test_what_fails_for_the_sake_of_another_transaction_is_done_again(
    store: PostgresStore, fail_once: Callable[[str], None], state: str
) -> None:
    fail_once(state)
    token = store.claim("r", MINE)

    lost = store.write(lambda: [batch("r", token, 1)])

    assert lost == set()
    assert positions(store, "r") == [1]


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ("disk_full", "the disk of the server is full (it is said to fail); what was committed"),
        ("internal_error", "the database failed (it is said to fail); what was committed before"),
    ],
)
def test_what_fails_for_good_is_told_with_what_is_safe(
    store: PostgresStore, fail_once: Callable[[str], None], state: str, problem: str
) -> None:
    fail_once(state)
    token = store.claim("r", MINE)

    with pytest.raises(JournalError) as caught:
        store.write(lambda: [batch("r", token, 1)])

    assert problem in str(caught.value)
    assert isinstance(caught.value.__cause__, psycopg.Error)
    assert positions(store, "r") == []
    assert store.write(lambda: [batch("r", token, 1)]) == set()


def test_many_runs_are_pruned_without_a_trace(store: PostgresStore, dsn: str) -> None:
    for name in ("old", "active"):
        token = store.claim(name, MINE)
        ended = Change("passed", "", 0.0)
        release = name == "old"
        rows = batch(name, token, 1, 2).rows
        store.write(lambda: [CommitBatch(name, token, rows, ended, release)])  # noqa: B023

    found = store.ended(0.0, "passed")
    pruned = store.prune(["old", "active"], 0.0)

    assert found == [("old", 2)]
    assert pruned == 1
    assert [run.run_id for run in store.runs(RunFilter("passed", "", 0.0))] == ["active"]
    with psycopg.connect(dsn) as connection:
        for table in ("runs", "leases", "events"):
            names = connection.execute(f"SELECT DISTINCT run_id FROM asyncflow.{table}".encode())
            assert names.fetchall() == [("active",)]


def test_a_run_that_goes_on_while_it_is_to_be_pruned_is_left(
    dsn: str, store: PostgresStore, elsewhere: ThreadPoolExecutor, postgres_server: PostgresServer
) -> None:
    token = store.claim("r", MINE)
    rows = batch("r", token, 1).rows
    store.write(lambda: [CommitBatch("r", token, rows, Change("passed", "", 0.0), True)])

    with psycopg.connect(dsn) as resuming:
        resuming.execute("SELECT 1 FROM asyncflow.leases FOR UPDATE")
        pruning = elsewhere.submit(store.prune, ["r"], 0.0)
        until(lambda: postgres_server.execute(WAITING_FOR_A_LOCK))
        resuming.execute("UPDATE asyncflow.leases SET token = token + 1")
        resuming.execute("UPDATE asyncflow.runs SET status = 'running'")

    assert pruning.result() == 0
    assert positions(store, "r") == [1]
