# SPDX-License-Identifier: GPL-2.0-or-later
"""The promises of the outbox's table, kept by every database that it can be in."""

import itertools
import threading

import pytest
import sqlalchemy as sa

from consumer_framework.publishing.message import Outgoing
from consumer_framework.publishing.migrations import HEAD
from consumer_framework.publishing.sources import store_runs
from consumer_framework.publishing.store import OutboxError, OutboxStore, create_engine, insert
from consumer_framework.publishing.tables import version_table
from tests.unit.outboxes import LEASE, NOW, message, spooled

from .outbox import MARIADB, POSTGRESQL, SQLITE, on_every_database

pytestmark = on_every_database


@pytest.fixture
def store(outbox_url):
    store = OutboxStore.connect(outbox_url)
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def put(store):
    def put(*messages: Outgoing, on_failure: str = "spool") -> list[int]:
        before = store.last_row()
        store.put(spooled(*messages, on_failure=on_failure))
        return [row.row for row in store.rows(after_row=before, limit=1000)]

    return put


def claimed(store, token="a", limit=100, now=NOW):  # noqa: S107 -- of a claim
    return [one.row for one in store.claim(token, limit, LEASE, now)]


def test_migrating_twice_changes_nothing(store, put):
    [row] = put(message())
    store.migrate()
    assert store.fault_of_tables("") is None
    assert store.show(row)


def test_a_database_without_the_tables_says_how_to_make_them(outbox_url):
    store = OutboxStore.connect(outbox_url)
    assert store.fault_of_tables("") is not None
    with pytest.raises(OutboxError, match="create its tables: fm-consumer outbox migrate"):
        store.put(spooled(message()))
    store.close()


def test_many_processes_may_migrate_at_once(outbox_url):
    stores = [OutboxStore.connect(outbox_url) for _ in range(4)]
    threads = [threading.Thread(target=store.migrate) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(store.fault_of_tables("") is None for store in stores)
    for store in stores:
        store.close()


def set_version(store, version):
    with store.transaction() as connection:
        connection.execute(sa.update(version_table).values(version_num=version))


@pytest.mark.parametrize("version", ["9999", "9999_for_9998"])
def test_tables_of_a_newer_version_are_refused(store, version):
    set_version(store, version)
    with pytest.raises(OutboxError, match=f"version {version}, .* update consumer-framework"):
        store.migrate()
    what, cure = store.fault_of_tables("migrate")
    assert version in what
    assert cure == "update consumer-framework on this host"


@pytest.mark.parametrize("oldest", ["0001", HEAD])
def test_tables_of_a_newer_version_that_this_one_can_use_are_left_alone(store, put, oldest):
    set_version(store, f"9999_for_{oldest}")
    store.migrate()
    assert store.fault_of_tables("migrate") is None
    rows = put(message())
    assert claimed(store) == rows


def test_tables_of_an_older_version_name_the_command_that_changes_them(store):
    with store.transaction() as connection:
        connection.exec_driver_sql("DROP TABLE fm_outbox_sources")
    set_version(store, "0001")
    assert store.fault_of_tables("migrate") == (
        "has tables of an older version, 0001",
        "run: migrate",
    )
    store.migrate()
    assert store.fault_of_tables("migrate") is None
    assert store_runs(store, [], NOW) == 0


def test_a_message_comes_back_as_it_was_put(store):
    sent = message(
        "clé",
        topic="org.fedoraproject.prod.ünï",
        body=bytes(range(256)),
        headers={"text": "é\0", "number": 2**40, "truth": True},
        priority=0,
        created=NOW + 0.123456,
    )
    store.put(spooled(sent, message(priority=None), on_failure="skip"))
    first, second = store.claim("a", 10, LEASE, NOW)
    assert (first.message, first.attempts, first.on_failure) == (sent, 0, "skip")
    assert second.message.priority is None


def test_a_large_message_is_stored_whole(store):
    body, headers = b"x" * 300_000, {f"name_{n}": True for n in range(10_000)}
    store.put(spooled(message(body=body, headers=headers)))
    [one] = store.claim("a", 1, LEASE, NOW)
    assert one.message.body == body
    assert one.message.headers == headers


def test_a_claim_ends_at_so_many_bytes_but_has_one_message(store, put, monkeypatch):
    monkeypatch.setattr("consumer_framework.publishing.claims.CLAIM_BYTES", 250)
    rows = put(*(message(body=b"x" * 100) for _ in range(3)), message(body=b"x" * 1000))
    assert claimed(store) == rows[:2]
    assert claimed(store, "b") == rows[2:3]
    assert claimed(store, "c") == rows[3:]


def test_a_transaction_that_is_rolled_back_leaves_nothing(store, outbox_url):
    def fail() -> None:
        with store.transaction() as connection:
            store.insert(connection, spooled(message()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.rows() == []


def test_rows_of_an_open_transaction_are_not_claimed_and_keep_nobody_waiting(store, outbox_url):
    if outbox_url.startswith(SQLITE):
        pytest.skip("SQLite has one writer at a time")
    engine = create_engine(outbox_url)
    with engine.begin() as connection:
        insert(connection, spooled(message("k")))
        store.put(spooled(message("k")))
        assert len(claimed(store)) == 1
    assert len(claimed(store, "b")) == 1
    engine.dispose()


def test_rows_are_claimed_in_the_order_of_their_insertion_and_once(store, put):
    rows = put(*(message() for _ in range(5)))
    assert claimed(store, "a", 2) == rows[:2]
    assert claimed(store, "b", 2) == rows[2:4]
    assert claimed(store, "c", 2) == rows[4:]
    assert claimed(store, "d", 2) == []


def test_the_clock_of_a_publisher_does_not_matter(store, put):
    rows = put(message(created=NOW + 3600), message(created=NOW - 3600))
    assert claimed(store) == rows


def test_rows_of_a_dead_relay_are_claimed_again_after_its_claim(store, put):
    rows = put(message(), message("k"))
    assert claimed(store) == rows
    assert claimed(store, "b", now=NOW + LEASE - 1) == []
    assert claimed(store, "b", now=NOW + LEASE) == rows


def test_sent_rows_are_gone(store, put):
    rows = put(message(), message())
    claimed(store)
    assert store.settle("a", sent=rows[:1]) == (1, 0)
    assert [row.row for row in store.rows()] == rows[1:]


def test_a_relay_that_lost_its_claim_settles_nothing(store, put):
    rows = put(*(message() for _ in range(5)))
    claimed(store)
    assert claimed(store, "b", now=NOW + LEASE) == rows
    lost = store.settle(
        "a",
        sent=rows[:1],
        discarded=rows[1:2],
        retries=[(rows[2], 0.0, "away")],
        dead=[(rows[3], "no")],
        released=rows[4:],
    )
    assert lost == (0, 5)
    assert store.settle("b", sent=rows) == (5, 0)


def test_a_row_that_failed_comes_back_when_it_is_due(store, put):
    [row] = put(message())
    claimed(store)
    store.settle("a", retries=[(row, NOW + 10, "refused: é" + "x" * 5000)])
    shown = store.show(row)
    assert (shown.attempts, shown.due, shown.claimed_until) == (1, NOW + 10, None)
    assert shown.reason.startswith("refused: é")
    assert claimed(store, "b", now=NOW + 9) == []
    [again] = store.claim("c", 10, LEASE, NOW + 10)
    assert again.attempts == 1


def test_a_parked_row_waits_without_an_attempt(store, put):
    [row] = put(message())
    claimed(store)
    assert store.settle("a", parked=[(row, NOW + 10, "paused")]) == (1, 0)
    shown = store.show(row)
    assert (shown.attempts, shown.due, shown.reason) == (0, NOW + 10, "paused")


def test_released_rows_are_as_they_were(store, put):
    [row] = put(message())
    before = store.show(row)
    claimed(store)
    assert store.settle("a", released=[row]) == (1, 0)
    assert store.show(row) == before


def test_new_rows_and_failed_ones_share_a_claim(store, put):
    failed = put(*(message() for _ in range(10)))
    claimed(store)
    store.settle("a", retries=[(row, NOW + 1, "away") for row in failed])
    new = put(*(message() for _ in range(10)))
    assert claimed(store, "b", 6, NOW + 2) == [*failed[:3], *new[:3]]
    assert claimed(store, "c", 100, NOW + 2) == [*failed[3:], *new[3:]]


def test_a_claim_of_one_row_is_not_stopped_by_a_row_behind_one_that_failed(store, put):
    first, _, other = put(message("k"), message("k"), message())
    assert claimed(store, "a", 1) == [first]
    store.settle("a", retries=[(first, NOW + 1, "away")])
    assert claimed(store, "b", 1, NOW + 2) == [other]
    assert claimed(store, "c", 1, NOW + 2) == [first]


def test_a_claim_of_one_row_takes_failed_rows_and_new_ones(store, put):
    failed, *new = put(message(), message(), message())
    assert claimed(store, "a", 1) == [failed]
    store.settle("a", retries=[(failed, NOW + 1, "away")])
    assert claimed(store, "b", 1, NOW + 2) == new[:1]
    assert claimed(store, "c", 1, NOW + 60) == [failed]


def test_rows_of_a_key_are_claimed_together_in_their_order(store, put):
    rows = put(message("k"), message(), message("k"), message("other"), message("k"))
    assert claimed(store) == rows


def test_a_row_is_not_claimed_before_an_earlier_one_of_its_key(store, put):
    first, other, second = put(message("k"), message("other"), message("k"))
    assert claimed(store, "a", 1) == [first]
    assert claimed(store, "b") == [other]
    store.settle("a", sent=[first])
    assert claimed(store, "c", now=NOW + 2) == [second]


def test_a_row_that_failed_blocks_its_key_and_no_other(store, put):
    first, second, other = put(message("k"), message("k"), message("l"))
    assert claimed(store, "a", 1) == [first]
    store.settle("a", retries=[(first, NOW + 10, "away")])
    assert claimed(store, "b") == [other]
    assert claimed(store, "c", now=NOW + 10) == [first, second]


def test_a_dead_row_does_not_block_its_key(store, put):
    first, second = put(message("k"), message("k"))
    claimed(store)
    store.settle("a", dead=[(first, "no")], released=[second])
    assert claimed(store, "b") == [second]


def test_a_dead_row_that_is_retried_is_before_the_others_of_its_key(store, put):
    first, second, third = put(message("k"), message("k"), message("k"))
    claimed(store)
    store.settle("a", dead=[(first, "no")], retries=[(second, NOW + 10, "no")], released=[third])
    assert store.retry([first]) == 1
    assert claimed(store, "b") == [first]
    store.settle("b", sent=[first])
    assert claimed(store, "c") == []
    assert claimed(store, "d", now=NOW + 10) == [second, third]


def test_keys_are_compared_byte_by_byte(store, put):
    rows = put(message("k"), message("K"), message("k "), message("ķ"))
    assert claimed(store, "a", 1) == rows[:1]
    assert claimed(store, "b") == rows[1:]


def test_a_key_with_many_rows_behind_one_that_waits_does_not_hide_the_others(store, put):
    [first] = put(message("k"))
    claimed(store)
    store.settle("a", retries=[(first, NOW + 10, "away")])
    behind = put(*(message("k") for _ in range(250)))
    [other] = put(message())
    assert claimed(store, "b", 10) == [other]
    assert claimed(store, "c", 1000, NOW + 10) == [first, *behind]


def test_keys_of_a_dead_relay_go_on_in_order(store, put):
    rows = put(message("k"), message("k"), message("k"))
    assert claimed(store, "a", 2) == rows[:2]
    assert claimed(store, "b") == []
    assert claimed(store, "b", now=NOW + LEASE) == rows


def test_two_relays_that_claim_at_once_never_get_the_same_row(store, put, outbox_url):
    keys = ["", "", "k", "l", "m"]
    rows = put(*(message(keys[n % 5]) for n in range(400)))
    other = OutboxStore.connect(outbox_url)
    taken: list[list[tuple[int, str]]] = [[], []]
    sequence: list[tuple[str, int]] = []
    lock, seconds = threading.Lock(), itertools.count()

    def relay(number: int, store: OutboxStore) -> None:
        for turn in range(10_000):
            token = f"relay-{number}.{turn}"
            # No claim ends before the test does.
            batch = store.claim(token, 7, 1e6, NOW + next(seconds))
            if not batch and not store.last_row():
                return
            with lock:
                sequence.extend((one.message.ordering_key, one.row) for one in batch)
            taken[number] += [(one.row, token) for one in batch]
            store.settle(token, sent=[one.row for one in batch])

    threads = [
        threading.Thread(target=relay, args=(n, one)) for n, one in enumerate((store, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert sorted(row for each in taken for row, _ in each) == rows
    for key in ("k", "l", "m"):
        of_key = [row for name, row in sequence if name == key]
        assert of_key == sorted(of_key)


def test_one_relay_has_the_lease(store, outbox_url):
    other = OutboxStore.connect(outbox_url)
    assert store.lease("one", 10, NOW)
    assert not other.lease("two", 10, NOW + 9)
    assert store.lease("one", 10, NOW + 9)
    assert not other.lease("two", 10, NOW + 18)
    assert other.lease("two", 10, NOW + 19)
    assert not store.lease("one", 10, NOW + 19)
    other.close()


def test_a_relay_that_stops_gives_back_its_lease_and_its_claims(store, put):
    rows = put(message(), message("k"))
    store.lease("one", 10, NOW)
    claimed(store, "one.1")
    store.release("one", "one.2", rows)
    assert claimed(store, "two.1") == []
    store.release("one", "one.1", rows)
    assert store.lease("two", 10, NOW)
    assert claimed(store, "two.1") == rows


def test_skippable_rows_are_discarded_and_counted(store, put):
    keep = put(message())
    skip = put(message(), message(), on_failure="skip")
    keep += put(message())
    assert store.discard_skippable(0, 2) == (skip[0], 1)
    assert store.discard_skippable(skip[0], 10) == (keep[-1], 1)
    assert store.discard_skippable(keep[-1], 10) == (keep[-1], 0)
    assert [row.row for row in store.rows()] == keep
    assert store.stats().counts == {"skipped": 2}


def test_a_skippable_row_that_a_relay_claims_meanwhile_is_not_discarded(
    store, put, outbox_url, monkeypatch
):
    [row] = put(message(), on_failure="skip")
    other, transaction = OutboxStore.connect(outbox_url), store.transaction

    def later():
        assert claimed(other) == [row]
        return transaction()

    monkeypatch.setattr(store, "transaction", later)
    assert store.discard_skippable(0, 10) == (row, 0)
    assert [one.row for one in other.rows()] == [row]
    other.close()


def test_rows_that_a_wrong_clock_made_late_are_due_again(store, put):
    near, far = put(message(), message())
    claimed(store)
    store.settle("a", retries=[(near, NOW + 60, ""), (far, NOW + 7200, "")])
    assert store.rebase(NOW, 600) == 1
    assert claimed(store, "b") == [far]


def test_statistics_count_each_kind_of_row(store, put):
    assert store.stats().oldest is None
    one, two, _, _ = put(*(message(created=NOW + n) for n in range(4)))
    claimed(store, "a", 2)
    store.settle("a", retries=[(one, NOW + 9, "")], dead=[(two, "")], counts={"sent": 3, "x": 0})
    store.settle("a", counts={"sent": 2})
    stats = store.stats()
    assert (stats.waiting, stats.retrying, stats.dead, stats.oldest) == (3, 1, 1, NOW)
    assert stats.counts == {"sent": 5}


def test_rows_are_listed_by_state_and_from_a_row_on(store, put):
    rows = put(*(message(topic=f"t{n % 2}") for n in range(6)))
    claimed(store, "a", 2)
    store.settle("a", dead=[(rows[0], "no"), (rows[1], "no")])
    assert [row.row for row in store.rows("dead")] == rows[:2]
    assert [row.row for row in store.rows("waiting", limit=2)] == rows[2:4]
    assert [row.row for row in store.rows(after_row=rows[3])] == rows[4:]
    found = store.rows(accept=lambda row: row.message.topic == "t1", limit=2)
    assert [row.row for row in found] == [rows[1], rows[3]]
    assert [row.row for row in store.rows(message_id=found[0].message.id)] == [rows[1]]
    assert [row.row for row in store.export()] == rows
    assert store.show(10**9) is None


def test_operators_change_no_row_that_a_relay_has(store, put, monkeypatch):
    monkeypatch.setattr("time.time", lambda: NOW)
    rows = put(message(), message())
    claimed(store, limit=1)
    assert store.discard(rows) == 1
    assert store.retry(rows) == 0
    assert [row.row for row in store.rows()] == rows[:1]


def test_retry_without_rows_means_every_dead_one(store, put, monkeypatch):
    monkeypatch.setattr("consumer_framework.publishing.store.PORTION", 2)
    rows = put(*(message() for _ in range(5)))
    claimed(store)
    store.settle("a", dead=[(row, "no") for row in rows])
    assert claimed(store, "b") == []
    assert store.retry() == 5
    assert claimed(store, "c") == rows


def test_purge_deletes_dead_rows_of_an_age(store, put):
    rows = put(message(created=NOW - 100), message(created=NOW), message(created=NOW - 100))
    claimed(store)
    store.settle("a", dead=[(rows[0], ""), (rows[1], "")], released=rows[2:])
    assert store.purge(before=NOW) == 1
    assert store.purge() == 1
    assert [row.row for row in store.rows()] == rows[2:]


def test_ids_are_not_used_again(store, put):
    [last] = put(message())
    store.discard([last])
    [next_] = put(message())
    assert next_ > last


def test_an_insert_wakes_the_relay(store, put, outbox_url):
    waker = store.waker()
    other = OutboxStore.connect(outbox_url)
    other.put(spooled(message()))
    assert waker.wait(5.0)
    if MARIADB not in outbox_url:
        while waker.wait(0.2):
            pass
        assert not waker.wait(0.01)
    waker.close()
    other.close()


def test_a_password_is_not_shown(outbox_url):
    url = sa.make_url(outbox_url)
    if POSTGRESQL not in outbox_url:
        pytest.skip("one database is enough")
    secret = "hunter2"  # noqa: S105 -- for the test
    store = OutboxStore.connect(url.set(password=secret, port=1))
    with pytest.raises(OutboxError) as failed:
        store.put(spooled(message()))
    assert secret not in str(failed.value)
    assert "\n" not in str(failed.value)


def test_no_claim_scans_a_table_with_many_rows(store, outbox_url):
    with store.transaction() as connection:
        values = {
            "message_id": "m",
            "topic": "t",
            "exchange": "e",
            "body": b"{}",
            "headers": "{}",
            "created": NOW,
        }
        table = sa.table(
            "fm_outbox", *(sa.column(name) for name in [*values, "ordering_key", "due"])
        )
        for start in range(0, 100_000, 20_000):
            connection.execute(
                sa.insert(table),
                [
                    # Some failed, many are behind one that failed, some have keys.
                    {**values, "ordering_key": f"k{n % 997}", "due": float(NOW * (n % 3 == 0))}
                    for n in range(start, start + 20_000)
                ],
            )
    engine = store.engine
    is_sqlite = engine.dialect.name == "sqlite"
    statements: list[tuple[str, object]] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, *_):
        if statement.startswith(("SELECT", "UPDATE", "DELETE")) and "EXPLAIN" not in statement:
            statements.append((statement, parameters))

    with engine.connect() as connection:
        analyze = {"mariadb": "ANALYZE TABLE fm_outbox"}.get(engine.dialect.name, "ANALYZE")
        connection.exec_driver_sql(analyze)
        connection.commit()
    statements.clear()
    batch = store.claim("a", 100, LEASE, NOW + 1)
    assert len(batch) == 100
    rows = [one.row for one in batch]
    store.extend("relay", LEASE, NOW, "a", rows)
    store.settle(
        "a",
        sent=rows[:50],
        retries=[(rows[50], NOW + 9, "")],
        dead=[(rows[51], "")],
        released=rows[52:],
    )
    store.discard_skippable(rows[-1], 2000)
    store.rebase(NOW + 1, 600)
    store.release("relay", "a", rows)
    store.state_of("none", store.last_row())
    store.retry(rows[52:])
    store.discard(rows[52:])
    sa.event.remove(engine, "before_cursor_execute", note)
    explained = [one for one in statements if "fm_outbox" in one[0] and "fm_outbox_" not in one[0]]
    assert len(explained) > 12
    for statement, parameters in explained:
        with engine.connect() as connection:
            word = "EXPLAIN QUERY PLAN" if is_sqlite else "EXPLAIN"
            plan = connection.exec_driver_sql(f"{word} {statement}", parameters).all()
            text = "\n".join(str(line) for line in plan)
        for scan in ("SCAN fm_outbox", "TEMP B-TREE", "Seq Scan", "Sort", "filesort", "'ALL'"):
            assert scan not in text, f"{statement}\n{text}"
