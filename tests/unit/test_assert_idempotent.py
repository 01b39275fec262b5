# SPDX-License-Identifier: GPL-2.0-or-later
"""assert_idempotent finds the effects that a kill makes happen twice, and no others."""

import asyncio
import contextlib
import http.client
import smtplib
import socketserver
import sqlite3
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
import requests
import sqlalchemy as sa
import urllib3
from fedora_messaging import api
from fedora_messaging.message import Message
from sqlalchemy.ext.asyncio import create_async_engine
from treq.testing import StubTreq
from twisted.web.resource import Resource

from consumer_framework import BatchConsumer, Consumer, Retry, on_topic
from consumer_framework.testing import assert_idempotent

HERE = Path(__file__)


def message(number=1):
    return Message(topic="org.example.test", body={"n": number})


def failure_of(consumer, *messages, **options):
    with pytest.raises(AssertionError) as raised:
        assert_idempotent(consumer, messages or [message()], **options)
    return str(raised.value)


EFFECTS: list[str] = []


def record(name):
    EFFECTS.append(name)


@pytest.fixture(autouse=True)
def effects():
    EFFECTS.clear()
    return EFFECTS


WATCH = [f"{__name__}:record"]


# A function that the test names.


class Once(Consumer):
    def handle(self, given):
        with self.once("first") as step:
            step.run(record, f"first {given.body['n']}")
        with self.once("second") as step:
            step.run(record, f"second {given.body['n']}")


class OnceInCoroutine(Consumer):
    async def handle(self, given):
        async with self.once("first") as step:
            await step.run(record, f"first {given.body['n']}")
        async with self.once("second") as step:
            await step.run(record, f"second {given.body['n']}")


@pytest.mark.parametrize("consumer", [Once, OnceInCoroutine])
def test_a_handler_whose_effects_are_in_steps_passes(consumer):
    seen = assert_idempotent(consumer, [message(1), message(2)], watch=WATCH)
    assert [(effect.what, effect.message, effect.in_step) for effect in seen] == [
        ("record()", number, True) for number in (0, 0, 1, 1)
    ]


class Twice(Consumer):
    def handle(self, given):
        with self.once("first") as step:
            step.run(record, "first")
        record("second")
        if given.body["n"] == 2:
            self.third()

    def third(self):
        record("third")


def test_the_report_has_the_effect_the_message_the_line_the_kill_and_the_cure():
    given = [message(1), message(2)]
    line = Twice.handle.__code__.co_firstlineno + 3
    assert failure_of(Twice, *given, watch=WATCH) == (
        "this effect happens twice when the process dies right after record():\n"
        "\n"
        "    record()\n"
        f"    for the message org.example.test (id {given[0].id})\n"
        "\n"
        f'    {HERE.relative_to(Path.cwd())}:{line}, in handle: record("second")\n'
        "\n"
        "Do it in a step, which a second run skips:\n"
        "\n"
        '    with self.once("record") as step:\n'
        "        step.run(...)"
    )


def test_the_report_has_all_lines_of_the_author_that_lead_to_the_effect():
    class Nested(Twice):
        def handle(self, _given):
            self.third()

    report = failure_of(Nested, watch=WATCH)
    assert ", in handle: self.third()\n" in report
    assert ', in third: record("third")\n' in report


def test_a_coroutine_is_advised_to_write_async_with():
    class Later(Consumer):
        async def handle(self, _given):
            await asyncio.sleep(5)
            record("late")

    report = failure_of(Later, watch=WATCH)
    assert '    async with self.once("record") as step:\n        await step.run(...)' in report


def test_a_function_and_a_coroutine_function_are_checked_like_a_consumer():
    async def handler(_given):
        record("unsafe")

    report = failure_of(lambda _given: record("unsafe"), watch=WATCH)
    assert "Make a Consumer of it. Do it in a step, which a second run skips:" in report
    assert "happens twice" in failure_of(handler, watch=WATCH)


def test_the_second_message_is_checked_too():
    class Second(Consumer):
        def handle(self, given):
            if given.body["n"] == 2:
                record("second")

    given = [message(1), message(2)]
    assert given[1].id in failure_of(Second, *given, watch=WATCH)


def test_effects_of_setup_do_not_count():
    class SetsUp(Consumer):
        def setup(self):
            record("setup")

        def handle(self, _given):
            pass

    assert assert_idempotent(SetsUp, [message()], watch=WATCH) == ()


def test_a_thread_of_the_handler_is_seen():
    class Threads(Consumer):
        def handle(self, _given):
            thread = threading.Thread(target=record, args=("in a thread",))
            thread.start()
            thread.join()

    assert "record()" in failure_of(Threads, watch=WATCH)


def test_a_handler_that_catches_everything_does_not_survive_the_kill(effects):
    class Catches(Consumer):
        def handle(self, _given):
            with contextlib.suppress(BaseException):
                record("first")
            with contextlib.suppress(BaseException):
                record("second")

    assert "happens twice" in failure_of(Catches, watch=WATCH)
    # Twice undisturbed; killed before the first, and run again; killed after the first.
    assert effects == ["first", "second"] * 3 + ["first"] * 2 + ["second"]


def test_an_effect_that_is_remembered_before_it_is_done_is_found():
    class Early(Consumer):
        def handle(self, _given):
            with self.once("mark") as step:
                is_new = not step.done
            if is_new:
                record("lost")

    report = failure_of(Early, watch=WATCH)
    assert report.startswith(
        "this effect never happens when the process dies right after the step 'mark':"
    )
    assert "The handler remembers it as done before it is done." in report


def test_a_batch_is_checked():
    class Batched(BatchConsumer):
        def handle_batch(self, messages):
            for each in messages:
                with self.once("a", each) as step:
                    step.run(record, each.body["n"])

    class Wrong(BatchConsumer):
        def handle_batch(self, messages):
            for each in messages:
                record(each.body["n"])

    settings = {"batch": {"size": 2, "seconds": 1}}
    given = [message(1), message(2)]
    assert len(assert_idempotent(Batched, given, settings=settings, watch=WATCH)) == 2
    assert "happens twice" in failure_of(Wrong, *given, settings=settings, watch=WATCH)


class Routed(Consumer):
    @on_topic("org.example.#")
    def safe(self, _given):
        with self.once("a") as step:
            step.run(record, "safe")

    @on_topic("org.#")
    async def other(self, _given):
        async with self.once("a") as step:
            await step.run(record, "other")


class WronglyRouted(Routed):
    @on_topic("#.test")
    def unsafe(self, _given):
        record("unsafe")


def test_the_routes_of_a_consumer_are_checked(effects):
    assert len(assert_idempotent(Routed, [message()], watch=WATCH)) == 2
    assert set(effects) == {"safe", "other"}
    assert ', in unsafe: record("unsafe")' in failure_of(WronglyRouted, watch=WATCH)


def test_an_effect_that_may_happen_twice_is_allowed():
    def handler(_given):
        record("harmless")

    seen = assert_idempotent(
        handler, [message()], watch=WATCH, allow=lambda effect: effect.what == "record()"
    )
    assert len(seen) == 1


def test_a_retry_of_the_handler_s_own_is_no_fault():
    tries = []

    class Retries(Consumer):
        def handle(self, _given):
            with self.once("a") as step:
                step.run(record, "a")
            tries.append(1)
            if len(tries) % 2:
                raise Retry(after="10m")

    assert assert_idempotent(Retries, [message()], watch=WATCH)


def test_a_handler_that_fails_without_any_kill_is_told_so():
    def handler(_given):
        raise LookupError("no such build")

    report = failure_of(handler)
    assert report.startswith("the handler fails without any kill; the message org.example.test")
    assert "LookupError: no such build" in report


def test_a_handler_that_fails_when_a_message_comes_again_is_found(effects):
    def handler(_given):
        if effects:
            raise LookupError("there is one already")
        record("first")

    @contextlib.contextmanager
    def fresh():
        effects.clear()
        yield

    report = failure_of(handler, watch=WATCH, fresh=fresh)
    assert report.startswith(
        "the handler fails when the message comes again, after the process died right after record"
    )
    assert "LookupError: there is one already" in report


def test_a_world_that_remembers_the_first_run_has_to_be_put_back(effects):
    def handler(_given):
        if not effects:
            record("once for ever")

    report = failure_of(handler, watch=WATCH)
    assert "other effects when the same messages come for the second time" in report
    assert "first:  record()\nsecond: none" in report
    assert "fresh=a_context_manager" in report

    @contextlib.contextmanager
    def fresh():
        effects.clear()
        yield

    assert assert_idempotent(handler, [message()], watch=WATCH, fresh=fresh)


@pytest.mark.parametrize("name", ["no.such:thing", "json:no_such", "json", "json:__name__", ":"])
def test_a_name_of_no_function_is_refused(name):
    with pytest.raises(ValueError, match="watch: "):
        assert_idempotent(Once, [message()], watch=[name])


def test_no_messages_are_refused():
    with pytest.raises(ValueError, match="needs a message"):
        assert_idempotent(Once, [])


def test_watched_functions_are_themselves_again_afterwards():
    before = [record, requests.Session.send, sqlite3.connect, smtplib.SMTP.sendmail]
    failure_of(lambda _given: record("x"), watch=WATCH)
    assert [record, requests.Session.send, sqlite3.connect, smtplib.SMTP.sendmail] == before


class Tool:
    @staticmethod
    def alone():
        record("static")

    @classmethod
    def shared(cls):
        record(cls.__name__)

    async def later(self):
        await asyncio.sleep(0)
        record("coroutine")


class InheritedTool(Tool):
    pass


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("Tool.alone", lambda tool: tool.alone()),
        ("Tool.shared", lambda tool: tool.shared()),
        ("InheritedTool.alone", lambda tool: tool.alone()),
    ],
)
def test_a_method_of_any_kind_can_be_watched(name, use):
    report = failure_of(lambda _given: use(InheritedTool()), watch=[f"{__name__}:{name}"])
    assert f"{name}()" in report
    assert "alone" not in vars(InheritedTool)


def test_a_coroutine_method_can_be_watched():
    async def handler(_given):
        await Tool().later()

    assert "Tool.later()" in failure_of(handler, watch=[f"{__name__}:Tool.later"])


def test_a_function_may_be_named_with_a_dot_alone():
    assert "record()" in failure_of(lambda _given: record("x"), watch=[f"{__name__}.record"])


# Publishing.


def publishes(_given):
    api.publish(Message(topic="org.example.published"))


def test_messages_that_are_published_through_the_outbox_pass():
    assert assert_idempotent(publishes, [message()]) == ()


def test_messages_that_are_published_at_once_are_found():
    report = failure_of(publishes, settings={"publishing": "direct"})
    assert "    publish org.example.published\n" in report
    assert 'through the outbox (publishing = "outbox")' in report


def test_a_message_that_a_step_publishes_is_not_lost_with_a_run_that_fails():
    fails = []

    class Publishes(Consumer):
        def handle(self, given):
            with self.once("publish") as step:
                step.run(publishes, given)
            fails.append(1)
            if len(fails) % 2:
                raise ValueError("later")

    seen = assert_idempotent(Publishes, [message()])
    assert [effect.what for effect in seen] == ["publish org.example.published"]


# HTTP.


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_PUT = do_POST  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/bug"
    server.shutdown()
    thread.join()
    server.server_close()


def by_http_client(url):
    host, _, path = url.removeprefix("http://").partition("/")
    with contextlib.closing(http.client.HTTPConnection(host)) as connection:
        connection.request("POST", f"/{path}", b"{}")
        connection.getresponse().read()


def by_urllib(url):
    with urllib.request.urlopen(url, b"{}") as answer:  # noqa: S310 -- of this test
        answer.read()


def by_urllib_request(url):
    request = urllib.request.Request(url, method="POST")  # noqa: S310 -- of this test
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        answer.read()


def by_httpx(url):
    httpx.post(url, json={})


def by_urllib3(url):
    with urllib3.PoolManager() as pool:
        pool.request("POST", url)


# The end of a process closes the sockets that it has open.
unclosed = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@unclosed
@pytest.mark.parametrize(
    "post",
    [
        lambda url: requests.post(url, json={}, timeout=5),
        by_httpx,
        by_urllib,
        by_urllib_request,
        by_urllib3,
        by_http_client,
    ],
    ids=["requests", "httpx", "urllib", "urllib Request", "urllib3", "http.client"],
)
def test_a_post_that_is_sent_twice_is_found_and_one_in_a_step_passes(post, url):
    assert f"    HTTP POST {url}\n" in failure_of(lambda _given: post(url))

    class Posts(Consumer):
        def handle(self, _given):
            with self.once("post") as step:
                if not step.done:
                    post(url)

    assert [str(effect) for effect in assert_idempotent(Posts, [message()])] == [f"HTTP POST {url}"]


@unclosed
def test_requests_that_may_be_repeated_do_not_count(url):
    def handler(_given):
        requests.get(url, timeout=5)
        requests.put(url, timeout=5)
        urllib.request.urlopen(url).close()  # noqa: S310 -- of this test

    assert assert_idempotent(handler, [message()]) == ()


def test_a_function_that_a_test_has_replaced_can_be_watched(monkeypatch):
    monkeypatch.setattr(requests, "post", MagicMock())
    report = failure_of(
        lambda _given: requests.post("https://bugs.example.org", timeout=5),
        watch=["requests:post"],
    )
    assert "    post()\n" in report


@unclosed
def test_a_coroutine_s_client_is_watched(url):
    async def handler(_given):
        async with httpx.AsyncClient() as client:
            await client.post(url)

    assert f"HTTP POST {url}" in failure_of(handler)


class Root(Resource):
    isLeaf = True  # noqa: N815 -- Twisted's name

    def render_POST(self, _request):  # noqa: N802 -- likewise
        return b"{}"


def test_treq_is_watched():
    client: Any = StubTreq(Root())

    async def handler(_given):
        await client.post("http://forge.example/issue", data=b"{}")

    assert "HTTP POST http://forge.example/issue" in failure_of(handler)


@unclosed
def test_a_client_that_the_handler_imports_is_watched(url, monkeypatch):
    monkeypatch.delitem(sys.modules, "httpx")

    def handler(_given):
        import httpx as late  # noqa: PLC0415 -- the point of the test

        late.post(url)

    assert f"HTTP POST {url}" in failure_of(handler)


# Mail.


CODES = {b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}


class Mail(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 here\r\n")
        is_body = False
        for line in self.rfile:
            is_body = is_body and line != b".\r\n"
            if not is_body:
                word = line[:4].upper()
                is_body = word == b"DATA"
                self.wfile.write(CODES.get(word, b"250 well\r\n"))


def test_mail_is_watched():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def handler(_given):
            with smtplib.SMTP("127.0.0.1", server.server_address[1]) as client:
                client.sendmail("a@example.org", ["b@example.org"], "text")

        report = failure_of(handler)
        server.shutdown()
        thread.join()
    assert "    mail to b@example.org\n" in report


# Databases.


@pytest.fixture
def database(tmp_path):
    file = tmp_path / "builds.sqlite3"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE builds (n INTEGER, UNIQUE (n))")
        connection.execute("CREATE TABLE log (n INTEGER)")
    return file


def clear(file):
    @contextlib.contextmanager
    def fresh():
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("DELETE FROM builds")
            connection.execute("DELETE FROM log")
        yield

    return fresh


INSERT = "INSERT INTO log VALUES (1)"
SAFE = "INSERT INTO builds VALUES (1) ON CONFLICT DO NOTHING"


def with_block(connection, sql):
    with connection:
        connection.execute(sql)


def with_commit(connection, sql):
    cursor = connection.cursor()
    cursor.executemany(sql, [()])
    connection.commit()


def with_statement(connection, sql):
    connection.execute(sql)
    connection.execute("COMMIT")


def with_autocommit(connection, sql):
    connection.isolation_level = None
    connection.execute(sql)


def with_script(connection, sql):
    connection.executescript(f"{sql};")


FORMS = [with_block, with_commit, with_statement, with_autocommit, with_script]


def by_sqlite(file, form, sql):
    def handler(_given):
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("SELECT * FROM log").fetchall()
            form(connection, sql)

    return handler


@pytest.mark.parametrize("form", FORMS)
def test_a_commit_that_happens_twice_is_found(form, database):
    report = failure_of(by_sqlite(database, form, INSERT), fresh=clear(database))
    assert "happens twice when the process dies right after SQL INSERT INTO log" in report


@pytest.mark.parametrize("form", FORMS)
def test_a_statement_that_changes_nothing_the_second_time_passes(form, database):
    handler = by_sqlite(database, form, SAFE)
    (effect,) = assert_idempotent(handler, [message()], fresh=clear(database))
    assert effect.what.startswith("INSERT INTO builds")


def test_an_open_transaction_is_undone_by_the_kill(database):
    class Keeps(Consumer):
        def setup(self):
            self.database = sqlite3.connect(database)

        def handle(self, _given):
            if not self.database.execute("SELECT * FROM builds").fetchall():
                self.database.execute("INSERT INTO builds VALUES (1)")
                self.database.execute(INSERT)
                self.database.commit()

        def teardown(self):
            self.database.close()

    (effect,) = assert_idempotent(Keeps, [message()], fresh=clear(database))
    assert effect.what == "INSERT INTO builds VALUES (1) (and 1 more)"


def test_a_transaction_that_is_rolled_back_has_no_effect(database):
    def handler(_given):
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute(INSERT)
            connection.rollback()
            with contextlib.suppress(KeyError), connection:
                connection.execute(INSERT)
                raise KeyError

    assert assert_idempotent(handler, [message()]) == ()


def test_a_commit_of_sqlalchemy_is_seen_once_and_one_in_a_step_passes(database):
    engine = sa.create_engine(f"sqlite:///{database}")

    def insert(_given=None):
        with engine.begin() as connection:
            connection.execute(sa.text(INSERT))

    class Inserts(Consumer):
        def handle(self, _given):
            with self.once("log") as step:
                step.run(insert)

    report = failure_of(insert, fresh=clear(database))
    assert "    SQL INSERT INTO log VALUES (1)\n" in report
    assert [str(e) for e in assert_idempotent(Inserts, [message()], fresh=clear(database))] == [
        "SQL INSERT INTO log VALUES (1)"
    ]
    with engine.begin() as connection:
        connection.execute(sa.text(SAFE))
    engine.dispose()


def test_an_open_transaction_of_sqlalchemy_is_undone_by_the_kill(database):
    class Keeps(Consumer):
        def setup(self):
            self.engine = sa.create_engine(f"sqlite:///{database}")
            self.connection = self.engine.connect()

        def handle(self, _given):
            self.connection.execute(sa.text(INSERT))
            with self.once("between") as step:
                step.run(record, "between")
            self.connection.rollback()

        def teardown(self):
            self.connection.close()
            self.engine.dispose()

    settings = {"recovery": {"immediate": 0, "delays": []}}
    (effect,) = assert_idempotent(Keeps, [message()], watch=WATCH, settings=settings)
    assert effect.what == "record()"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT * FROM log").fetchall() == []


def test_a_transaction_of_sqlalchemy_that_changes_nothing_or_is_rolled_back_has_no_effect(database):
    engine = sa.create_engine(f"sqlite:///{database}")
    with engine.begin() as connection:
        connection.execute(sa.text(SAFE))

    def handler(_given):
        with engine.begin() as connection:
            connection.execute(sa.text(SAFE))
        with engine.connect() as connection:
            connection.execute(sa.text(INSERT))

    assert assert_idempotent(handler, [message()]) == ()
    engine.dispose()


def test_a_coroutine_s_sqlalchemy_is_seen(database):
    async def handler(_given):
        engine = create_async_engine(f"sqlite+aiosqlite:///{database}")
        async with engine.begin() as connection:
            await connection.execute(sa.text(INSERT))
        await engine.dispose()

    assert "    SQL INSERT INTO log VALUES (1)\n" in failure_of(handler, fresh=clear(database))
