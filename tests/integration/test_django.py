# SPDX-License-Identifier: GPL-2.0-or-later
"""An outbox in the databases of a Django project."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import subprocess
import sys
import threading
import unittest
from pathlib import Path

import pytest
import sqlalchemy as sa
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, connections, transaction
from django.db.migrations.loader import MigrationLoader
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, TestCase, override_settings
from django.urls import clear_url_caches, path
from fedora_messaging import config as upstream_config
from fedora_messaging import message as upstream
from fedora_messaging.exceptions import ValidationError
from fedora_messaging.testing import mock_sends

from consumer_framework.publishing.integrations.django import publish, publish_async
from consumer_framework.publishing.message import NotSentError, OutboxError, PublishError
from consumer_framework.publishing.migrations import BASE, HEAD
from consumer_framework.publishing.store import OutboxStore
from tests.unit.outboxes import Setup

from . import django_project
from .outbox import SQLITE, on_every_database

django_project.configure()

from consumer_framework.publishing.integrations.django import outbox as django_outbox  # noqa: E402
from consumer_framework.publishing.integrations.django.middleware import (  # noqa: E402
    OutboxMiddleware,
)
from consumer_framework.publishing.integrations.django.models import OutboxMessage  # noqa: E402
from consumer_framework.publishing.integrations.django.tables import ChangeTables  # noqa: E402

on_sqlite = pytest.mark.parametrize("outbox_url", [SQLITE], indirect=True)


ROOT = Path(__file__).resolve().parents[2]


def a_message(topic="app.done", **body):
    return upstream.Message(topic=topic, body=body)


@pytest.fixture
def project(outbox_url, tmp_path):
    """Return the store of the default database, as a relay has it."""
    other = django_project.database(f"sqlite:///{tmp_path / 'other.sqlite3'}")
    django_project.use(default=django_project.database(outbox_url), other=other)
    store = OutboxStore.connect(outbox_url)
    assert store.fault_of_tables("") is None
    yield store
    store.close()
    django_project.forget()
    django_outbox._outboxes.clear()


@pytest.fixture
def other(project, tmp_path):
    store = OutboxStore.connect(f"sqlite:///{tmp_path / 'other.sqlite3'}")
    yield store
    store.close()


def topics(store):
    return [row.message.topic for row in store.rows()]


@on_every_database
class TestTransactions:
    def test_the_relay_sends_the_messages_of_a_transaction_that_was_committed(self, project):
        with transaction.atomic():
            accepted = publish(a_message(n=1), "key")
            publish(a_message("second"))
            assert topics(project) == []
        assert accepted.topic == "org.example.app.done"
        [row, _] = project.rows()
        assert (row.message, row.on_failure, row.due) == (accepted, "spool", 0)
        setup = Setup(project)
        setup.steps()
        assert [one.topic for one in setup.messenger.sent] == [
            "org.example.app.done",
            "org.example.second",
        ]
        assert topics(project) == []

    def test_nothing_of_a_transaction_that_was_rolled_back_is_sent(self, project):
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            publish(a_message())
            raise ZeroDivisionError
        assert topics(project) == []

    def test_a_savepoint_that_is_rolled_back_takes_its_messages_with_it(self, project):
        with transaction.atomic():
            publish(a_message("kept"))
            with contextlib.suppress(ZeroDivisionError), transaction.atomic():
                publish(a_message("gone"))
                raise ZeroDivisionError
        assert topics(project) == ["org.example.kept"]

    def test_outside_a_transaction_the_message_is_stored_at_once(self, project):
        publish(a_message(text="ä€😀"))
        assert django_project.bodies(project.rows()) == [{"text": "ä€😀"}]

    def test_the_tables_are_those_that_the_relay_makes(self, project, request):
        assert project.fault_of_tables("") is None
        project.migrate()
        made_by_django = tables(project)
        call_command("migrate", "fm_outbox", "zero", verbosity=0)
        assert tables(project) == {}
        project.migrate()
        assert tables(project) == made_by_django
        # Those of the relay serve as well.
        call_command("migrate", verbosity=0)
        publish(a_message())
        assert topics(project) == ["org.example.app.done"]

    def test_a_commit_wakes_the_relay(self, project):
        waker = project.waker()
        with transaction.atomic():
            publish(a_message())
        assert waker.wait(30)
        waker.close()

    def test_the_model_reads_the_table(self, project):
        publish(a_message(n=1), "key")
        [row] = OutboxMessage.objects.all()
        assert (str(row), bytes(row.body)) == (f"{row.topic} ({row.message_id})", b'{"n": 1}')
        assert (row.state, row.ordering_key, row.attempts) == ("waiting", "key", 0)

    def test_a_missing_table_is_told_with_the_cure(self, project):
        call_command("migrate", "fm_outbox", "zero", verbosity=0)
        with pytest.raises(OutboxError, match=r"run manage\.py migrate --database=default"):
            publish(a_message())


def tables(store):
    """Return the columns, keys and indexes of the outbox's tables, as text."""
    inspector = sa.inspect(store.engine)
    names = [name for name in inspector.get_table_names() if name.startswith("fm_outbox")]
    if names == ["fm_outbox_version"]:
        return {}
    return {
        name: (
            str(inspector.get_columns(name)),
            str(inspector.get_indexes(name)),
            str(inspector.get_pk_constraint(name)),
            str(inspector.get_table_options(name)) if store.engine.dialect.name == "mysql" else "",
        )
        for name in names
    }


@on_sqlite
class TestProject:
    def test_each_database_has_an_outbox_of_its_own(self, project, other):
        with transaction.atomic(using="other"):
            publish(a_message("there"), using="other")
            publish(a_message("here"))
            assert topics(project) == ["org.example.here"]
        assert topics(other) == ["org.example.there"]

    def test_a_router_chooses_the_database(self, project, other):
        call_command("migrate", "fm_outbox", "zero", verbosity=0)
        with override_settings(DATABASE_ROUTERS=[ToOther()]):
            publish(a_message())
            call_command("migrate", verbosity=0)
        assert len(topics(other)) == 1
        assert project.fault_of_tables("") is not None

    def test_coroutines_publish_without_blocking_the_loop(self, project):
        async def main():
            await publish_async(a_message("a"))
            await publish_async(a_message("b"), exchange="mine")

        asyncio.run(main())
        assert [row.message.exchange for row in project.rows()] == ["amq.topic", "mine"]

    def test_a_coroutine_in_a_transaction_of_its_caller_shares_it(self, project):
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            async_to_sync(publish_async)(a_message("gone"))
            raise ZeroDivisionError
        with transaction.atomic():
            async_to_sync(publish_async)(a_message("kept"))
            assert topics(project) == []
        assert topics(project) == ["org.example.kept"]

    def test_mock_sends_of_fedora_messaging_records_and_stores_nothing(self, project):
        with mock_sends(a_message("a"), a_message("b")), transaction.atomic():
            publish(a_message("a"))
            async_to_sync(publish_async)(a_message("b"))
        assert topics(project) == []

    def test_a_message_that_can_never_be_sent_is_refused(self, project):
        with transaction.atomic():
            with pytest.raises(PublishError, match="no JSON"):
                publish(a_message(n=object()))
            with pytest.raises(ValidationError):
                publish(upstream.Message(topic="a", body="text"))  # type: ignore[arg-type]
            publish(a_message())
        assert len(topics(project)) == 1

    def test_without_autocommit_the_commit_decides(self, project):
        connection.set_autocommit(False)
        publish(a_message("gone"))
        connection.rollback()
        publish(a_message("kept"))
        connection.commit()
        connection.set_autocommit(True)
        assert topics(project) == ["org.example.kept"]

    def test_with_wait_publish_returns_when_the_message_is_sent(self, project):
        with override_settings(FM_OUTBOX={"on_failure": "wait"}):
            with pytest.raises(NotSentError):
                publish(a_message(), timeout=0.05)
            with transaction.atomic():
                publish(a_message())
            setup = Setup(project)
            stop = threading.Event()

            def relay():
                while not stop.wait(0.01):
                    setup.steps()

            thread = threading.Thread(target=relay)
            thread.start()
            publish(a_message("third"))
            stop.set()
            thread.join()
        assert [one.topic for one in setup.messenger.sent] == ["app.done", "app.done", "third"]

    def test_with_wait_a_message_that_can_never_be_sent_raises(self, project, monkeypatch):
        right = django_outbox.DjangoOutbox.insert

        def insert(outbox, messages):
            rows = right(outbox, messages)
            OutboxMessage.objects.update(state="dead", reason="too odd")
            return rows

        monkeypatch.setattr(django_outbox.DjangoOutbox, "insert", insert)
        with (
            override_settings(FM_OUTBOX={"on_failure": "wait"}),
            pytest.raises(PublishError, match="can never be sent: too odd"),
        ):
            publish(a_message())

    def test_without_the_setting_the_file_of_fedora_messaging_counts(self, project, monkeypatch):
        changes = {"publish_exchange": "mine", "topic_prefix": "org.file", "consumer_config": {}}
        conf = {**upstream_config.DEFAULTS, **changes}
        monkeypatch.setattr(upstream_config, "conf", conf)
        with override_settings(FM_OUTBOX=None):
            accepted = publish(a_message())
        assert (accepted.exchange, accepted.topic) == ("mine", "org.file.app.done")

    @pytest.mark.parametrize(
        ("table", "problem"),
        [
            ({"on_failure": "never"}, "FM_OUTBOX.on_failure"),
            ({"topic_prefx": "a"}, "FM_OUTBOX.topic_prefx"),
            ({"topic_prefix": 3}, "FM_OUTBOX.topic_prefix: is no text"),
            (["topic_prefix"], "FM_OUTBOX"),
        ],
    )
    def test_a_wrong_setting_is_named(self, project, table, problem):
        with override_settings(FM_OUTBOX=table):
            with pytest.raises(ImproperlyConfigured, match=problem):
                publish(a_message())
            with pytest.raises(SystemCheckError, match=problem):
                call_command("check")
        call_command("check")

    def test_a_process_that_publishes_needs_no_sqlalchemy(self, project, tmp_path):
        code = f"""
import sys
from tests.integration import django_project
from django.conf import settings
settings.configure(
    INSTALLED_APPS=[django_project.APP],
    DATABASES={{"default": django_project.database("sqlite:///{tmp_path}/outbox.sqlite3")}},
)
import django
django.setup()
for name in [name for name in sys.modules if name.startswith("sqlalchemy")]:
    del sys.modules[name]
from consumer_framework.publishing.integrations.django import publish
from fedora_messaging.message import Message
publish(Message(topic="a", body={{}}))
print("sqlalchemy" in sys.modules)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert done.stdout == "False\n"
        assert topics(project) == ["a"]

    def test_the_migrations_lack_nothing_of_the_model(self, project):
        call_command("makemigrations", check=True, dry_run=True, verbosity=0)

    def test_the_migrations_reach_the_version_that_the_relay_needs(self, project):
        loader = MigrationLoader(None)
        versions = [
            (operation.before, operation.after)
            for node in loader.graph.forwards_plan(loader.graph.leaf_nodes("fm_outbox")[0])
            for wrapped in loader.graph.nodes[node].operations
            for operation in getattr(wrapped, "database_operations", [wrapped])
            if isinstance(operation, ChangeTables)
        ]
        assert versions[0][0] == BASE
        assert versions[-1][1] == HEAD
        assert all(before[1] == after[0] for before, after in itertools.pairwise(versions))

    def test_the_plan_of_migrations_says_what_they_do(self, project):
        call_command("migrate", "fm_outbox", "zero", verbosity=0)
        out = io.StringIO()
        call_command("migrate", plan=True, stdout=out)
        assert "Bring the tables of the outbox from version 0001 to 0002" in out.getvalue()

    def test_sqlmigrate_shows_the_statements(self, project):
        out = io.StringIO()
        call_command("sqlmigrate", "fm_outbox", "0001", stdout=out)
        assert "CREATE TABLE fm_outbox (\n" in out.getvalue()
        assert "INSERT INTO fm_outbox_version (version_num) VALUES ('0001')" in out.getvalue()
        call_command("sqlmigrate", "fm_outbox", "0001", backwards=True, stdout=out)
        assert "DROP TABLE fm_outbox;" in out.getvalue()


class ToOther:
    def db_for_write(self, model, **hints):
        return "other"

    def allow_migrate(self, db, app_label, **hints):
        return db == "other"


class Enriching(OutboxMiddleware):
    def enrich(self, request, message):
        if "fail" in request.GET:
            raise ZeroDivisionError
        return {"author": request.headers.get("author", "nobody")}


def view(request, status=200):
    publish(a_message("plain"))
    return HttpResponse(status=status)


async def async_view(request, status=200):
    await publish_async(a_message("async"))
    return HttpResponse(status=status)


def raising(request):
    publish(a_message())
    raise (Http404 if "missing" in request.GET else ZeroDivisionError)


async def async_raising(request):
    await publish_async(a_message())
    raise ZeroDivisionError


def marked(request):
    """Answer as Django REST framework does after an exception."""
    publish(a_message())
    response = HttpResponse()
    response.exception = True
    return response


def atomic(request, status=200):
    with transaction.atomic():
        publish(a_message("inside"))
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        publish(a_message("gone"))
        raise ZeroDivisionError
    publish(a_message("outside"))
    return HttpResponse(status=status)


def streaming(request):
    def chunks():
        publish(a_message("late"))
        yield b"chunk"

    publish(a_message("early"))
    return StreamingHttpResponse(chunks())


def forgiving(get_response):
    """Make a response of success of every exception."""

    def middleware(request):
        publish(a_message("middleware"))
        return get_response(request)

    middleware.process_exception = lambda request, error: HttpResponse("never mind")  # type: ignore[attr-defined]
    return middleware


def both(request):
    publish(a_message("here"))
    publish(a_message("there"), using="other")
    return HttpResponse(status=int(request.GET["status"]))


def broken(request):
    """Leave a transaction that can only be rolled back."""
    publish(a_message())
    transaction.set_rollback(True)
    return HttpResponse()


def ending(request):
    """End as the worker of a server does that has no time left."""
    publish(a_message())
    raise SystemExit


class Stuck:
    """A coroutine view that never answers."""

    def __init__(self):
        self.is_called = asyncio.Event()

    async def view(self, request):
        await publish_async(a_message())
        self.is_called.set()
        await asyncio.Event().wait()


django_project.urlpatterns += [
    path("ending", ending),
    path("view/<int:status>", view),
    path("async/<int:status>", async_view),
    path("raising", raising),
    path("async-raising", async_raising),
    path("marked", marked),
    path("atomic/<int:status>", atomic),
    path("non-atomic/<int:status>", transaction.non_atomic_requests(view)),
    path("streaming", streaming),
    path("both", both),
    path("broken", broken),
]


@pytest.fixture(params=["wsgi", "asgi"])
def get(request, project):
    """Return a function that makes a request and returns the status of its response."""

    def get(url, method="GET", middleware=(django_project.MIDDLEWARE,), **headers):
        with override_settings(MIDDLEWARE=list(middleware)):
            if request.param == "wsgi":
                client = Client(raise_request_exception=False)
                response = client.generic(method, url, headers=headers)
                b"".join(response)
                return response.status_code
            return asyncio.run(get_async(url, method, headers))

    async def get_async(url, method, headers):
        client = AsyncClient(raise_request_exception=False)
        async with ThreadSensitiveContext():
            response = await client.generic(method, url, headers=headers)
            if response.streaming:
                _ = [chunk async for chunk in response]
            # The thread of the request ends with it, and so do its connections.
            await sync_to_async(connections.close_all)()
            return response.status_code

    return get


@on_sqlite
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
class TestMiddleware:
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
    def test_a_request_that_succeeds_stores_its_messages(self, project, get, method):
        assert get("/view/204", method) == 204
        assert topics(project) == ["org.example.plain"]

    def test_a_coroutine_view_that_succeeds_stores_its_messages(self, project, get):
        assert get("/async/302") == 302
        assert topics(project) == ["org.example.async"]

    @pytest.mark.parametrize(
        ("url", "status"),
        [
            ("/view/400", 400),
            ("/view/404", 404),
            ("/view/500", 500),
            ("/async/403", 403),
            ("/raising", 500),
            ("/raising?missing", 404),
            ("/async-raising", 500),
            ("/marked", 200),
        ],
    )
    def test_a_request_that_fails_stores_nothing(self, project, get, url, status):
        assert get(url) == status
        assert topics(project) == []

    def test_an_exception_that_became_a_response_of_success_stores_nothing(self, project, get):
        outer = [f"{__name__}.forgiving", django_project.MIDDLEWARE]
        assert get("/raising", middleware=outer) == 200
        assert topics(project) == ["org.example.middleware"]

    def test_each_database_gets_its_messages(self, project, other, get):
        assert get("/both?status=500") == 500
        assert topics(project) == topics(other) == []
        assert get("/both?status=200") == 200
        assert topics(project) == ["org.example.here"]
        assert topics(other) == ["org.example.there"]

    def test_an_own_transaction_of_the_view_decides_about_its_messages(self, project, get):
        get("/atomic/200")
        assert topics(project) == ["org.example.inside", "org.example.outside"]
        get("/atomic/500")
        assert topics(project)[2:] == ["org.example.inside"]

    def test_messages_of_a_stream_are_stored_when_they_are_published(self, project, get):
        assert get("/streaming") == 200
        assert topics(project) == ["org.example.early", "org.example.late"]

    @pytest.mark.parametrize("url", ["/view/200", "/atomic/200"])
    def test_enrich_adds_headers_to_the_messages(self, project, get, url):
        get(url, middleware=[f"{__name__}.Enriching"], author="ada")
        for row in project.rows():
            assert row.message.headers["author"] == "ada"
            assert row.message.headers["fedora_messaging_schema"] == "base.message"

    def test_if_enrich_raises_the_request_fails_and_stores_nothing(self, project, get):
        assert get("/view/200?fail", middleware=[f"{__name__}.Enriching"]) == 500
        assert topics(project) == []

    def test_a_commit_that_fails_answers_500(self, project, get):
        call_command("migrate", "fm_outbox", "zero", verbosity=0)
        assert get("/view/200") == 500

    def test_a_request_whose_worker_ends_stores_nothing(self, project, get):
        with contextlib.suppress(SystemExit):
            get("/ending")
        assert topics(project) == []

    def test_a_request_that_is_cancelled_stores_nothing(self, project):
        async def main():
            stuck = Stuck()
            django_project.urlpatterns.append(path("stuck", stuck.view))
            clear_url_caches()
            task = asyncio.create_task(AsyncClient().get("/stuck"))
            await stuck.is_called.wait()
            task.cancel()
            await task

        with (
            override_settings(MIDDLEWARE=[django_project.MIDDLEWARE]),
            pytest.raises(asyncio.CancelledError),
        ):
            asyncio.run(main())
        django_project.urlpatterns.pop()
        clear_url_caches()
        assert topics(project) == []

    def test_a_message_to_wait_for_is_stored_when_the_response_leaves(self, project, get, caplog):
        with override_settings(FM_OUTBOX={"on_failure": "wait"}):
            assert get("/view/200", middleware=[f"{__name__}.Impatient"]) == 200
        assert len(topics(project)) == 1
        assert "the response does not wait any longer" in caplog.text


class Impatient(OutboxMiddleware):
    timeout = 0.01


@on_sqlite
class TestAtomicRequests:
    @pytest.fixture(autouse=True)
    def _atomic_requests(self, project, outbox_url):
        connections.settings["default"]["ATOMIC_REQUESTS"] = True

    def test_a_request_that_succeeds_stores_its_messages(self, project, get):
        assert get("/atomic/200") == 200
        assert topics(project) == ["org.example.inside", "org.example.outside"]

    def test_a_request_that_fails_stores_nothing(self, project, get):
        for url in ("/atomic/400", "/view/500", "/raising", "/raising?missing", "/marked"):
            get(url)
        with contextlib.suppress(SystemExit):
            get("/ending")
        assert topics(project) == []

    def test_messages_that_were_published_before_the_view_come_first(self, project, get):
        both = [django_project.MIDDLEWARE, f"{__name__}.forgiving"]
        get("/view/200", middleware=both)
        assert topics(project) == ["org.example.middleware", "org.example.plain"]

    def test_an_exception_that_became_a_response_of_success_stores_nothing(self, project, get):
        inner = [f"{__name__}.forgiving", f"{__name__}.Enriching"]
        assert get("/raising", middleware=inner) == 200
        assert topics(project) == ["org.example.middleware"]

    def test_what_else_the_request_wrote_is_kept_when_its_response_is_a_failure(self, project, get):
        def writing(request):
            publish(a_message("gone"))
            OutboxMessage.objects.filter(topic="org.example.before").update(topic="changed")
            return HttpResponse(status=409)

        publish(a_message("before"))
        django_project.urlpatterns.append(path("writing", writing))
        clear_url_caches()
        try:
            assert get("/writing") == 409
        finally:
            django_project.urlpatterns.pop()
            clear_url_caches()
        assert topics(project) == ["changed"]

    def test_a_transaction_that_is_rolled_back_sends_nothing(self, project, get):
        get("/broken")
        assert topics(project) == []

    def test_a_view_may_have_no_transaction(self, project, get):
        assert get("/non-atomic/200") == 200
        assert get("/non-atomic/500") == 500
        assert topics(project) == ["org.example.plain"]

    def test_enrich_adds_headers_to_the_messages(self, project, get):
        get("/atomic/200", middleware=[f"{__name__}.Enriching"], author="ada")
        assert [row.message.headers["author"] for row in project.rows()] == ["ada", "ada"]

    def test_if_enrich_raises_the_transaction_is_rolled_back(self, project, get):
        assert get("/view/200?fail", middleware=[f"{__name__}.Enriching"]) == 500
        assert topics(project) == []

    def test_a_worker_that_ends_before_the_response_rolls_back(self, project, get):
        with contextlib.suppress(SystemExit):
            get("/atomic/200", middleware=[f"{__name__}.Ending"])
        assert topics(project) == []


class Ending(OutboxMiddleware):
    def enrich(self, request, message):
        raise SystemExit


@on_sqlite
class TestInTests:
    """Django's TestCase runs each test in a transaction, which decides nothing here."""

    def test_a_request_that_fails_stores_nothing(self, project):
        seen = []

        class Case(TestCase):
            databases = {"default", "other"}  # noqa: RUF012

            @override_settings(MIDDLEWARE=[django_project.MIDDLEWARE])
            def test(self):
                for url in ("/view/500", "/view/200"):
                    self.client.get(url)
                    seen.append(OutboxMessage.objects.count())

        result = unittest.TestResult()
        Case("test")(result)
        assert (result.errors, result.failures) == ([], [])
        assert seen == [0, 1]
        assert topics(project) == []
