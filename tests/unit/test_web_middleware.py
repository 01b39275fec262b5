# SPDX-License-Identifier: GPL-2.0-or-later
"""The WSGI and ASGI middleware: the response of a request decides about its messages."""

import asyncio
import contextlib
import contextvars
import io
import sys
import threading
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
from fedora_messaging import message as upstream

from consumer_framework.publishing.integrations import asgi, wsgi
from consumer_framework.publishing.message import OutboxError, PublishError
from consumer_framework.publishing.outbox import Outbox, set_default
from consumer_framework.settings import OnFailure, OutboxSettings

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
FAILURES = [400, 404, 409, 500, 503]


def a_message(topic="done"):
    return upstream.Message(topic=topic, body={})


@pytest.fixture
def outbox(tmp_path):
    outbox = Outbox(f"sqlite:///{tmp_path}/outbox.sqlite3")
    outbox.store.migrate()
    yield outbox
    outbox.close()


@pytest.fixture
def topics(outbox):
    return lambda: [row.message.topic for row in outbox.store.rows()]


@pytest.fixture
def lost_tables(outbox):
    """Let each commit fail."""
    with outbox.store.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE fm_outbox RENAME TO away")


class Server:
    """A strict WSGI server with one request: it checks the rules of PEP 3333."""

    def __init__(self, app, method="GET", *, strict=True, **environ):
        self.environ = {"REQUEST_METHOD": method, "QUERY_STRING": "", **environ}
        setup_testing_defaults(self.environ)
        self._app = validator(app) if strict else app
        self.status = None
        self.begun = []
        self.body = []
        self.topics_at_begin = None

    def start_response(self, status, headers, exc_info=None):
        if exc_info and self.body:
            raise exc_info[1]
        self.status = status
        return self.body.append

    def run(self, chunks=None):
        body = self._app(self.environ, self.start_response)
        try:
            iterator = iter(body)
            while chunks is None or chunks > len(self.body):
                chunk = next(iterator, None)
                if chunk is None:
                    break
                assert self.status is not None
                self.body.append(chunk)
        finally:
            if hasattr(body, "close"):
                body.close()
        return self


HEADERS = [("Content-Type", "text/plain")]


def answering(outbox, status=200, body=None):
    def app(environ, start_response):
        outbox.publish(a_message())
        start_response(f"{status} Words", HEADERS)
        return [b"body"] if body is None else body

    return app


class Closable:
    """A body whose chunks, and whose end, are code of the application."""

    def __init__(self, chunks=(b"a", b"b"), at_close=lambda: None):
        self._chunks = iter(chunks)
        self._at_close = at_close
        self.is_closed = False

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._chunks)

    def close(self):
        self.is_closed = True
        self._at_close()


class TestWsgi:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("kind", [list, Closable])
    def test_a_request_that_succeeds_stores_its_messages(self, outbox, topics, method, kind):
        body = kind([b"body"] if method != "HEAD" else [])
        app = wsgi.OutboxMiddleware(answering(outbox, 201, body), outbox)
        assert Server(app, method, strict=method != "HEAD").run().status == "201 Words"
        assert topics() == ["done"]

    @pytest.mark.parametrize("status", FAILURES)
    @pytest.mark.parametrize("kind", [list, Closable])
    def test_a_request_that_fails_stores_nothing(self, outbox, topics, status, kind):
        app = wsgi.OutboxMiddleware(answering(outbox, status, kind([b"no"])), outbox)
        server = Server(app).run()
        assert (server.status, server.body) == (f"{status} Words", [b"no"])
        assert topics() == []

    def test_the_messages_are_stored_before_the_response_begins(self, outbox, topics):
        seen = []

        class Watching(Server):
            def start_response(self, *arguments):
                seen.append(topics())
                return super().start_response(*arguments)

        for body in ([b"a"], Closable()):
            Watching(wsgi.OutboxMiddleware(answering(outbox, body=body), outbox)).run()
        assert seen == [["done"], ["done", "done"]]

    @pytest.mark.usefixtures("lost_tables")
    @pytest.mark.parametrize("kind", [list, Closable])
    def test_if_the_commit_fails_the_response_does_not_begin(self, outbox, kind):
        body = kind([b"a"])
        server = Server(wsgi.OutboxMiddleware(answering(outbox, body=body), outbox))
        with pytest.raises(OutboxError, match="no such table"):
            server.run()
        assert (server.status, server.body) == (None, [])
        assert kind is list or body.is_closed

    @pytest.mark.usefixtures("lost_tables")
    def test_if_the_commit_fails_a_file_is_closed(self, outbox):
        file = io.BytesIO(b"text")
        app = answering(outbox, body=FileWrapper(file))
        server = Server(
            wsgi.OutboxMiddleware(app, outbox), strict=False, **{"wsgi.file_wrapper": FileWrapper}
        )
        with pytest.raises(OutboxError):
            server.run()
        assert file.closed

    def test_a_file_goes_to_the_server_as_it_is(self, outbox, topics):
        file = FileWrapper(io.BytesIO(b"text"))
        app = wsgi.OutboxMiddleware(answering(outbox, body=file), outbox)
        server = Server(app, strict=False, **{"wsgi.file_wrapper": FileWrapper})
        assert app(server.environ, server.start_response) is file
        assert topics() == ["done"]

    def test_an_exception_of_the_application_stores_nothing(self, outbox, topics):
        def app(environ, start_response):
            outbox.publish(a_message())
            start_response("200 OK", HEADERS)
            raise ZeroDivisionError

        server = Server(wsgi.OutboxMiddleware(app, outbox))
        with pytest.raises(ZeroDivisionError):
            server.run()
        assert (server.status, topics()) == (None, [])

    def test_an_exception_before_the_first_byte_of_a_stream_stores_nothing(self, outbox, topics):
        def chunks():
            outbox.publish(a_message())
            yield b""
            raise ZeroDivisionError

        body = Closable(chunks())
        server = Server(wsgi.OutboxMiddleware(answering(outbox, body=body), outbox))
        with pytest.raises(ZeroDivisionError):
            server.run()
        assert (server.status, topics(), body.is_closed) == (None, [], True)

    def test_an_application_that_is_a_generator_decides_with_its_first_byte(self, outbox, topics):
        def app(environ, start_response):
            outbox.publish(a_message("first"))
            start_response("200 OK", HEADERS)
            yield b""
            outbox.publish(a_message("second"))
            yield b"a"
            outbox.publish(a_message("third"))
            assert topics() == ["first", "second", "third"]
            yield b"b"

        assert Server(wsgi.OutboxMiddleware(app, outbox)).run().body == [b"a", b"b"]
        assert topics() == ["first", "second", "third"]

    def test_a_stream_that_breaks_keeps_what_was_published_before(self, outbox, topics):
        def chunks():
            yield b"a"
            outbox.publish(a_message("late"))
            raise ZeroDivisionError

        server = Server(wsgi.OutboxMiddleware(answering(outbox, body=Closable(chunks())), outbox))
        with pytest.raises(ZeroDivisionError):
            server.run()
        assert topics() == ["done", "late"]

    def test_an_error_page_with_the_exception_stores_nothing_whatever_its_status(
        self, outbox, topics
    ):
        def app(environ, start_response):
            start_response("200 OK", HEADERS)
            outbox.publish(a_message())
            try:
                _ = 1 / 0
            except ZeroDivisionError:
                start_response("200 Sorry", HEADERS, sys.exc_info())
            return [b"sorry"]

        assert Server(wsgi.OutboxMiddleware(app, outbox)).run().status == "200 Sorry"
        assert topics() == []

    def test_an_exception_after_the_beginning_goes_to_the_server(self, outbox):
        def app(environ, start_response):
            write = start_response("200 OK", HEADERS)
            write(b"a")
            try:
                _ = 1 / 0
            except ZeroDivisionError:
                start_response("500 Oh", HEADERS, sys.exc_info())
            return []

        server = Server(wsgi.OutboxMiddleware(app, outbox))
        with pytest.raises(ZeroDivisionError):
            server.run()
        assert server.status == "200 OK"

    def test_start_response_may_not_be_called_twice(self, outbox):
        def app(environ, start_response):
            start_response("200 OK", HEADERS)
            start_response("200 OK", HEADERS)
            return []

        with pytest.raises(RuntimeError, match="twice"):
            Server(wsgi.OutboxMiddleware(app, outbox)).run()

    def test_the_old_write_function_begins_the_response(self, outbox, topics):
        def app(environ, start_response):
            outbox.publish(a_message())
            write = start_response("200 OK", HEADERS)
            write(b"a")
            assert topics() == ["done"]
            outbox.publish(a_message("late"))
            return [b"b"]

        assert Server(wsgi.OutboxMiddleware(app, outbox)).run().body == [b"a", b"b"]
        assert topics() == ["done", "late"]

    def test_the_body_is_closed_and_may_publish_then(self, outbox, topics):
        body = Closable(at_close=lambda: outbox.publish(a_message("closed")))
        Server(wsgi.OutboxMiddleware(answering(outbox, body=body), outbox)).run()
        assert (topics(), body.is_closed) == (["done", "closed"], True)
        body = Closable(at_close=lambda: outbox.publish(a_message("closed")))
        Server(wsgi.OutboxMiddleware(answering(outbox, 500, body), outbox)).run()
        assert (topics(), body.is_closed) == (["done", "closed"], True)

    def test_a_body_that_the_server_does_not_read_stores_the_messages(self, outbox, topics):
        app = wsgi.OutboxMiddleware(answering(outbox, body=Closable()), outbox)
        server = Server(app, "HEAD", strict=False).run(chunks=0)
        assert (topics(), server.body) == (["done"], [])

    def test_an_application_without_a_response_leaves_it_to_the_server(self, outbox, topics):
        def app(environ, start_response):
            outbox.publish(a_message())
            return Closable([b"a"])

        with pytest.raises(AssertionError):
            Server(wsgi.OutboxMiddleware(app, outbox), strict=False).run()
        assert topics() == []

    def test_a_thread_that_outlives_the_request_stores_at_once(self, outbox, topics):
        go, threads = threading.Event(), []

        def work(context):
            go.wait(10)
            context.run(outbox.publish, a_message("thread"))

        for status in (200, 500):

            def app(environ, start_response, status=status):
                threads.append(threading.Thread(target=work, args=(contextvars.copy_context(),)))
                threads[-1].start()
                return answering(outbox, status)(environ, start_response)

            Server(wsgi.OutboxMiddleware(app, outbox)).run()
        assert topics() == ["done"]
        go.set()
        for thread in threads:
            thread.join()
        assert topics() == ["done", "thread", "thread"]

    def test_requests_at_once_do_not_mix(self, outbox, topics):
        barrier = threading.Barrier(8)

        def serve(number):
            def app(environ, start_response):
                outbox.publish(a_message(f"request.{number}"))
                barrier.wait(10)
                return answering(outbox, 500 if number % 2 else 200)(environ, start_response)

            Server(wsgi.OutboxMiddleware(app, outbox)).run()

        threads = [threading.Thread(target=serve, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(topics()) == ["done"] * 4 + [f"request.{number}" for number in range(0, 8, 2)]

    def test_nested_middleware_decides_as_the_outer_response_does(self, outbox, topics):
        def failing(environ, start_response):
            def start(status, headers, exc_info=None):
                return start_response("500 Turned", headers)

            return inner(environ, start)

        inner = wsgi.OutboxMiddleware(answering(outbox), outbox)
        Server(wsgi.OutboxMiddleware(failing, outbox)).run()
        assert topics() == []
        Server(wsgi.OutboxMiddleware(inner, outbox)).run()
        assert topics() == ["done"]

    def test_enrich_adds_headers(self, outbox):
        def enrich(environ, message):
            return {"author": environ["REMOTE_USER"], "of": message.topic}

        app = wsgi.OutboxMiddleware(answering(outbox), outbox, enrich=enrich)
        Server(app, REMOTE_USER="ada").run()
        [row] = outbox.store.rows()
        assert (row.message.headers["author"], row.message.headers["of"]) == ("ada", "done")

    def test_enrich_adds_headers_to_messages_in_a_transaction_of_the_application(
        self, outbox, topics
    ):
        def app(environ, start_response):
            with outbox.store.transaction() as connection:
                accepted = outbox.publish(a_message(), connection=connection)
            assert accepted.headers["author"] == "ada"
            start_response("500 Late", HEADERS)
            return []

        Server(wsgi.OutboxMiddleware(app, outbox, enrich=lambda *_: {"author": "ada"})).run()
        # The transaction was committed before there was a response.
        [row] = outbox.store.rows()
        assert row.message.headers["author"] == "ada"

    @pytest.mark.parametrize(
        ("headers", "problem"),
        [
            ({"fedora_messaging_severity": 50}, "a header 'fedora_messaging_severity' of its own"),
            ({"author": b"ada"}, "are no JSON"),
        ],
    )
    def test_a_header_that_cannot_be_added_fails_the_request(
        self, outbox, topics, headers, problem
    ):
        app = wsgi.OutboxMiddleware(answering(outbox), outbox, enrich=lambda *_: headers)
        with pytest.raises(PublishError, match=problem):
            Server(app).run()
        assert topics() == []

    def test_the_default_outbox_is_that_of_the_configuration(self, outbox, topics):
        before = set_default(outbox)
        try:
            Server(wsgi.OutboxMiddleware(answering(outbox))).run()
        finally:
            set_default(before)
        assert topics() == ["done"]

    def test_a_message_to_wait_for_that_is_not_sent_does_not_fail_the_request(
        self, tmp_path, caplog
    ):
        settings = OutboxSettings(on_failure=OnFailure.WAIT)
        waiting = Outbox(f"sqlite:///{tmp_path}/waiting.sqlite3", settings)
        app = wsgi.OutboxMiddleware(answering(waiting), waiting, timeout=0.01)
        assert Server(app).run().body == [b"body"]
        assert len(waiting.store.rows()) == 1
        assert "the response does not wait any longer" in caplog.text
        waiting.close()


def start(status=200):
    return {"type": "http.response.start", "status": status, "headers": []}


def body(data=b"body", *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _receive():
    return {"type": "http.request"}


async def call(app, kind="http", send=None, **scope):
    """Make one request and return the messages that the server got."""
    got = []

    async def record(message):
        got.append(message)

    await app({"type": kind, "method": "GET", **scope}, _receive, send or record)
    return got


def serve(app, **options):
    return asyncio.run(call(app, **options))


def simple(outbox, status=200):
    async def app(scope, receive, send):
        await outbox.publish_async(a_message())
        await send(start(status))
        await send(body())

    return app


class TestAsgi:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_request_that_succeeds_stores_its_messages(self, outbox, topics, method):
        got = serve(asgi.OutboxMiddleware(simple(outbox, 302), outbox), method=method)
        assert got == [start(302), body()]
        assert topics() == ["done"]

    @pytest.mark.parametrize("status", FAILURES)
    def test_a_request_that_fails_stores_nothing(self, outbox, topics, status):
        got = serve(asgi.OutboxMiddleware(simple(outbox, status), outbox))
        assert got == [start(status), body()]
        assert topics() == []

    def test_the_messages_are_stored_before_the_response_begins(self, outbox, topics):
        seen = []

        async def send(message):
            seen.append((message["type"], topics()))

        serve(asgi.OutboxMiddleware(simple(outbox), outbox), send=send)
        assert seen[0] == ("http.response.start", ["done"])

    @pytest.mark.usefixtures("lost_tables")
    def test_if_the_commit_fails_the_response_does_not_begin(self, outbox):
        got = []

        async def send(message):
            got.append(message)

        with pytest.raises(OutboxError, match="no such table"):
            serve(asgi.OutboxMiddleware(simple(outbox), outbox), send=send)
        assert got == []

    @pytest.mark.usefixtures("lost_tables")
    def test_an_application_cannot_hide_that_the_commit_failed(self, outbox):
        got = []

        async def hiding(scope, receive, send):
            await outbox.publish_async(a_message())
            await send(start())
            for _ in range(2):
                with contextlib.suppress(OutboxError):
                    await send(body())

        async def record(message):
            got.append(message)

        with pytest.raises(OutboxError, match="no such table"):
            serve(asgi.OutboxMiddleware(hiding, outbox), send=record)
        assert got == []

    @pytest.mark.parametrize("begins", [True, False])
    def test_an_exception_of_the_application_stores_nothing(self, outbox, topics, begins):
        got = []

        async def app(scope, receive, send):
            outbox.publish(a_message())
            if begins:
                await send(start())
            raise ZeroDivisionError

        async def record(message):
            got.append(message)

        with pytest.raises(ZeroDivisionError):
            serve(asgi.OutboxMiddleware(app, outbox), send=record)
        assert (got, topics()) == ([], [])

    def test_a_request_that_is_cancelled_stores_nothing(self, outbox, topics):
        async def app(scope, receive, send):
            outbox.publish(a_message())
            await send(start())
            await asyncio.sleep(60)

        async def main():
            task = asyncio.create_task(call(asgi.OutboxMiddleware(app, outbox)))
            await asyncio.sleep(0)
            task.cancel()
            await task

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(main())
        assert topics() == []

    def test_a_response_without_a_body_is_let_out_at_the_end(self, outbox, topics):
        async def app(scope, receive, send):
            await outbox.publish_async(a_message())
            await send(start(204))

        assert serve(asgi.OutboxMiddleware(app, outbox)) == [start(204)]
        assert topics() == ["done"]

    def test_an_application_without_a_response_stores_nothing(self, outbox, topics):
        async def app(scope, receive, send):
            await outbox.publish_async(a_message())

        assert serve(asgi.OutboxMiddleware(app, outbox)) == []
        assert topics() == []

    def test_messages_of_a_stream_and_of_a_background_task_are_stored_at_once(self, outbox, topics):
        async def app(scope, receive, send):
            await send(start())
            await outbox.publish_async(a_message("early"))
            await send(body(b"a", more=True))
            await outbox.publish_async(a_message("stream"))
            assert topics() == ["early", "stream"]
            await send(body(b"b"))
            await asyncio.to_thread(outbox.publish, a_message("background"))
            assert topics() == ["early", "stream", "background"]
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            serve(asgi.OutboxMiddleware(app, outbox))
        assert topics() == ["early", "stream", "background"]

    def test_messages_after_a_response_of_failure_are_discarded(self, outbox, topics):
        async def app(scope, receive, send):
            await simple(outbox, 500)(scope, receive, send)
            await outbox.publish_async(a_message("late"))

        serve(asgi.OutboxMiddleware(app, outbox))
        assert topics() == []

    def test_a_task_that_outlives_the_request_stores_at_once(self, outbox, topics):
        async def main():
            go, tasks = asyncio.Event(), []

            async def later():
                await go.wait()
                await outbox.publish_async(a_message("task"))

            for status in (200, 500):

                async def app(scope, receive, send, status=status):
                    tasks.append(asyncio.create_task(later()))
                    await simple(outbox, status)(scope, receive, send)

                await call(asgi.OutboxMiddleware(app, outbox))
            go.set()
            await asyncio.gather(*tasks)

        asyncio.run(main())
        assert topics() == ["done", "task", "task"]

    def test_what_comes_before_the_status_does_not_wait_for_it(self, outbox):
        early = {"type": "http.response.early_hint", "links": []}

        async def app(scope, receive, send):
            await send(early)
            await send(start())
            await send(early)
            await send({"type": "http.response.pathsend", "path": "/"})

        got = serve(asgi.OutboxMiddleware(app, outbox))
        assert [message["type"].rpartition(".")[2] for message in got] == [
            *("early_hint", "early_hint", "start", "pathsend")
        ]

    def test_a_second_start_goes_to_the_server(self, outbox):
        async def app(scope, receive, send):
            await send(start())
            await send(start())

        assert serve(asgi.OutboxMiddleware(app, outbox)) == [start(), start()]

    @pytest.mark.parametrize("kind", ["websocket", "lifespan"])
    def test_without_a_response_messages_are_stored_at_once(self, outbox, topics, kind):
        async def app(scope, receive, send):
            await outbox.publish_async(a_message(kind))
            assert topics() == [kind]
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            serve(asgi.OutboxMiddleware(app, outbox), kind=kind)
        assert topics() == [kind]

    def test_requests_at_once_do_not_mix(self, outbox, topics):
        async def main():
            everybody = asyncio.Barrier(8)

            async def app(scope, receive, send):
                await outbox.publish_async(a_message(f"request.{scope['number']}"))
                await everybody.wait()
                await simple(outbox, 500 if scope["number"] % 2 else 200)(scope, receive, send)

            app = asgi.OutboxMiddleware(app, outbox)
            await asyncio.gather(*(call(app, number=number) for number in range(8)))

        asyncio.run(main())
        assert sorted(topics()) == ["done"] * 4 + [f"request.{number}" for number in range(0, 8, 2)]

    def test_enrich_adds_headers(self, outbox):
        app = asgi.OutboxMiddleware(
            simple(outbox), outbox, enrich=lambda scope, _: {"author": scope["user"]}
        )
        serve(app, user="ada")
        [row] = outbox.store.rows()
        assert row.message.headers["author"] == "ada"

    def test_a_commit_does_not_block_the_loop(self, outbox, topics):
        turns = []

        async def main():
            with outbox.store.transaction():
                task = asyncio.create_task(call(asgi.OutboxMiddleware(simple(outbox), outbox)))
                for _ in range(100):
                    await asyncio.sleep(0.001)
                turns.append(task.done())
            await task

        asyncio.run(main())
        assert (turns, topics()) == ([False], ["done"])
