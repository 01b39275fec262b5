# SPDX-License-Identifier: GPL-2.0-or-later
"""``fm-consumer outbox``: looking at an outbox, and changing its rows, on every database."""

import json
import os
import stat
import time

import pytest
from click.testing import CliRunner

from consumer_framework.cli import main
from consumer_framework.cli import outbox_orders as orders
from consumer_framework.publishing.store import OutboxStore
from tests.unit.outboxes import message, spooled

from .instance import publish, queue_table, until
from .outbox import on_every_database

LEASE = 60.0


class Outbox:
    """An outbox with its configuration file, and the command."""

    def __init__(self, url, directory):
        self.url, self.directory = url, directory
        self.file = directory / "web.toml"
        self.file.write_text(f'[consumer_config.framework.outbox]\ndatabase = "{url}"\n')
        self.store = OutboxStore.connect(url)

    def __call__(self, verb, *words, exit_code=0, **options):
        arguments = [verb, "--conf", str(self.file), "--state-dir", str(self.directory)]
        result = CliRunner().invoke(
            main, ["outbox", *arguments, *map(str, words)], catch_exceptions=False, **options
        )
        assert result.exit_code == exit_code, result.output
        return result.stdout if exit_code == 0 else result.output

    def json(self, verb, *words, **options):
        return json.loads(self(verb, *words, "--json", **options))

    def rows(self, **options):
        return [row.row for row in self.store.rows(**options)]


@pytest.fixture
def empty(outbox_url, tmp_path):
    outbox = Outbox(outbox_url, tmp_path)
    outbox("migrate")
    yield outbox
    outbox.store.close()


@pytest.fixture
def outbox(empty):
    """Two dead rows, one that failed, one that a relay has, and two that wait."""
    now = time.time()
    messages = [
        message("k1", topic="app.dead", created=now - 7200),
        message(topic="app.dead.too", created=now - 60),
        message("k2", topic="app.failed", created=now - 300),
        message(topic="app.sending", created=now - 5),
        message("k3", topic="app.new", created=now - 1, body=b'{"secret": "\\u202e!"}'),
        message("k2", topic="app.behind", created=now),
    ]
    store = empty.store
    store.put(spooled(*messages))
    first = store.claim("me.1", 4, LEASE, now)
    one, two, three, _ = (claimed.row for claimed in first)
    store.settle(
        "me.1",
        dead=[(one, "its headers are too large"), (two, "no queue is bound for its topic")],
        retries=[(three, now + 630, "the broker refused it (basic.nack)")],
    )
    return empty


@on_every_database
def test_the_status_counts_what_waits_and_says_that_nothing_is_sent(outbox):
    text = outbox("status", exit_code=1)
    waiting, dead, sent, relay = text.splitlines()[1:5]
    assert "waiting  4, 1 of them tried again later; the oldest for 5 min" in waiting
    assert dead.split() == ["dead", "2"]
    assert sent.endswith("0, since the outbox was made")
    assert relay.endswith("none: nothing is sent")
    assert f"outbox list --conf {outbox.file}" in text
    found = json.loads(outbox("status", "--json", exit_code=1))
    assert (found["waiting"], found["retrying"], found["dead"], found["relay"]) == (4, 1, 2, None)


@on_every_database
def test_the_status_tells_of_a_relay_elsewhere_by_its_lease(outbox):
    outbox.store.lease("somebody", LEASE, time.time())
    assert "one holds the lease, and was not asked" in outbox("status")


@on_every_database
def test_a_list_has_what_each_message_waits_for(outbox):
    text = outbox("list")
    assert text.splitlines()[0].split() == [
        *("ROW", "AGE", "STATE", "NEXT", "KEY", "ATTEMPTS", "TOPIC", "REASON"),
    ]
    assert "being sent" in text
    assert "in 10 min" in text
    assert "its headers are too large" in text
    assert "6 messages" in text
    dead = outbox.json("list", "--state", "dead")
    assert [row["topic"] for row in dead] == ["app.dead", "app.dead.too"]


@on_every_database
@pytest.mark.parametrize(
    ("words", "topics"),
    [
        (["--topic", "app.dead*"], ["app.dead", "app.dead.too"]),
        (["--key", "k2"], ["app.failed", "app.behind"]),
        (["--older-than", "1h"], ["app.dead"]),
        (["--state", "waiting", "--older-than", "4m"], ["app.failed"]),
        (["--limit", "1"], ["app.dead"]),
        (["--topic", "no.*"], []),
    ],
)
def test_a_list_has_the_messages_that_are_asked_for(outbox, words, topics):
    assert [row["topic"] for row in outbox.json("list", *words)] == topics
    text = outbox("list", *words)
    assert ("nothing is here" in text) == (not topics)
    assert ("there are more" in text) == ("--limit" in words)


@on_every_database
def test_one_message_is_shown_readably(outbox):
    dead, *_, new, _ = outbox.rows()
    text = outbox("show", dead)
    assert "dead: no relay sends it" in text
    assert "its headers are too large" in text
    assert "2 h ago" in text
    assert f"Mended? fm-consumer outbox retry --conf {outbox.file}" in text
    assert "\\u202e!" in outbox("show", new)
    assert outbox.json("show", new)["body"] == {"secret": "\u202e!"}


@on_every_database
def test_a_row_that_is_gone_is_refused(outbox):
    gone = max(outbox.rows()) + 1
    assert f"there is no row {gone} (any more)" in outbox("show", gone, exit_code=2)
    assert "name one ROW" in outbox("show", exit_code=2)
    assert "is no row" in outbox("show", "x", exit_code=2)


@on_every_database
def test_dead_messages_are_tried_again_and_those_that_a_relay_has_are_left_alone(outbox):
    dead, too, failed, sending, *_ = outbox.rows()
    assert "1 message to be sent" in outbox("retry", dead)
    assert outbox.rows(state="dead") == [too]
    assert outbox.json("retry", "--all") == {"selected": 1, "changed": 1, "kept": 0}
    assert outbox.rows(state="dead") == []
    assert "nothing fits" in outbox("retry", "--all")
    text = outbox("retry", failed, sending)
    assert "1 message to be sent" in text
    assert "1 message left alone" in text
    assert outbox.store.show(failed).due == 0


@on_every_database
def test_delayed_messages_are_tried_at_once_if_that_is_asked_for(outbox):
    found = outbox.json("retry", "--state", "waiting", "--topic", "app.failed")
    assert found == {"selected": 1, "changed": 1, "kept": 0}
    assert outbox.store.stats().retrying == 0


@on_every_database
def test_a_discard_asks_with_the_number_and_deletes_what_no_relay_has(outbox):
    before = outbox.rows()
    said = outbox("discard", "--all", "--state", "any", input="n\n", exit_code=1)
    assert "Delete 6 messages (4 of them still to be sent) of web for ever?" in said
    assert outbox.rows() == before
    text = outbox("discard", "--all", "--state", "any", input="y\n")
    assert "5 messages deleted" in text
    assert "1 message left alone" in text
    assert outbox.rows() == [before[3]]


@on_every_database
def test_a_discard_of_dead_messages_leaves_the_others(outbox):
    assert outbox.json("discard", "--all", "--yes") == {"selected": 2, "changed": 2, "kept": 0}
    assert len(outbox.rows()) == 4


@on_every_database
def test_a_purge_deletes_old_dead_messages_only(outbox):
    dead, too, *others = outbox.rows()
    assert outbox.json("purge", "--older-than", "1h", "--yes")["changed"] == 1
    assert outbox.rows() == [too, *others]
    assert outbox.json("purge", "--all", "--yes")["changed"] == 1
    assert outbox.rows() == others
    assert dead not in outbox.rows()


@on_every_database
def test_an_export_is_read_by_the_command_that_publishes(outbox, tmp_path):
    lines = outbox("export", "--state", "dead").splitlines()
    assert [json.loads(line)["topic"] for line in lines] == ["app.dead", "app.dead.too"]
    target = tmp_path / "all.jsonl"
    assert (
        "6 messages written"
        in CliRunner()
        .invoke(main, ["outbox", "export", "--conf", str(outbox.file), "-o", str(target)])
        .output
    )
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert len(target.read_text().splitlines()) == 6
    row = outbox.rows()[4]
    assert json.loads(outbox("export", row))["body"] == {"secret": "\u202e!"}


@on_every_database
def test_tables_that_are_missing_are_told_with_the_command_that_makes_them(outbox_url, tmp_path):
    outbox = Outbox(outbox_url, tmp_path)
    if outbox.store.is_sqlite:
        (tmp_path / "outbox.sqlite3").touch()
    said = outbox("list", exit_code=78)
    assert f"run: fm-consumer outbox migrate --conf {outbox.file}" in said
    assert outbox.json("migrate")["changed"]
    assert not outbox.json("migrate")["changed"]
    assert "nothing is here" in outbox("list")
    outbox.store.close()


@on_every_database
def test_a_change_must_say_which_messages(outbox):
    for words in ([], [1, "--all"], ["--all", "--topic", "x"], [1, "--key", "k"]):
        assert "say which" in outbox("retry", *words, exit_code=2)
    assert "say which" in outbox("export", 1, "--key", "k", exit_code=2)
    assert "must be a length of time" in outbox("list", "--older-than", "soon", exit_code=2)


@pytest.mark.parametrize("outbox_url", ["sqlite"], indirect=True)
def test_many_rows_are_changed_by_portions(empty, monkeypatch):
    monkeypatch.setattr(orders, "_PORTION", 2)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    empty.store.put(spooled(*(message() for _ in range(5))))
    assert empty.json("discard", "--all", "--state", "waiting", "--yes")["changed"] == 5


def test_an_outbox_that_is_not_there_is_told(tmp_path):
    outbox = Outbox(f"sqlite:///{tmp_path}/gone.sqlite3", tmp_path)
    said = outbox("status", exit_code=78)
    assert "gone.sqlite3: there is no outbox yet" in said
    assert not (tmp_path / "gone.sqlite3").exists()
    outbox.file.unlink()
    assert f"{outbox.file}: there is no such file" in outbox("status", exit_code=78)


def test_without_a_database_the_outbox_is_the_instances_own(tmp_path):
    outbox = Outbox(f"sqlite:///{tmp_path}/outbox.sqlite3", tmp_path)
    outbox("migrate")
    outbox.store.put(spooled(message(topic="app.own")))
    outbox.file.write_text('callback = "some.module:handler"\n')
    assert outbox.json("list")[0]["topic"] == "app.own"
    outbox.store.close()


def test_a_database_that_is_down_is_told_with_the_exit_code_for_later(tmp_path):
    pytest.importorskip("psycopg")
    outbox = Outbox("postgresql://nobody@127.0.0.1:1/x", tmp_path)
    said = outbox("status", exit_code=75)
    assert "postgresql+psycopg://nobody@127.0.0.1:1/x" in said
    assert "Traceback" not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone becomes another user")
def test_a_file_that_this_user_may_not_read_is_told_with_a_cure(tmp_path):
    outbox = Outbox(f"sqlite:///{tmp_path}/outbox.sqlite3", tmp_path)
    outbox("migrate")
    outbox.store.close()
    tmp_path.chmod(0o711)
    (tmp_path / "outbox.sqlite3").chmod(0o600)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and str(parent).startswith(("/tmp/pytest", "/var/tmp/pytest")):  # noqa: S108
            parent.chmod(0o755)
    os.seteuid(65534)
    try:
        said = outbox("list", exit_code=78)
    finally:
        os.seteuid(0)
    assert "may not be read by this user; use sudo" in said


def test_a_wrong_url_and_a_wrong_file_are_told(tmp_path):
    outbox = Outbox(f"sqlite:///{tmp_path}/outbox.sqlite3", tmp_path)
    outbox.store.close()
    outbox.file.write_text('[consumer_config.framework.outbox]\ndatabase = "nonsense"\n')
    assert "cannot be understood; write sqlite:////PATH" in outbox("list", exit_code=78)
    outbox.file.write_text("[consumer_config.framework.outbox]\ndatabase = 3\n")
    assert "outbox.database: must be" in outbox("list", exit_code=78)
    outbox.file.write_text("[")
    assert "is not TOML" in outbox("list", exit_code=78)


def test_a_credential_that_only_the_relay_sees_is_told(tmp_path):
    outbox = Outbox(f"sqlite:///{tmp_path}/outbox.sqlite3", tmp_path)
    outbox.store.close()
    url = "postgresql://web:credential:password@127.0.0.1:1/x"
    outbox.file.write_text(f'[consumer_config.framework.outbox]\ndatabase = "{url}"\n')
    assert 'the credential "password" cannot be checked here' in outbox("list", exit_code=78)


HANDLER = """
from fedora_messaging import api
from fedora_messaging.message import Message

def handler(message):
    api.publish(Message(topic="answer", body=message.body))
"""


def test_an_instances_own_relay_is_asked(broker, queue_name, start):
    # Started by hand: the control socket is in the state directory.
    environment = {"RUNTIME_DIRECTORY": ""}
    instance = start(broker.url, queue_table(queue_name), HANDLER, environment=environment).ready()

    def status():
        named = ["--conf", str(instance.configuration), "--state-dir", str(instance.state)]
        result = CliRunner().invoke(main, ["outbox", "status", *named], catch_exceptions=False)
        return result.exit_code, result.output

    publish(broker.url, queue_name, [1])
    until(lambda: "sent     1, 1 unroutable" in status()[1], lambda: str(status()))
    exit_code, text = status()
    assert exit_code == 0
    assert "relay    sending to " in text
    assert "(1 sent in " in text
    assert instance.stop() == 0
    exit_code, text = status()
    assert exit_code == 1
    assert f"Send: fm-consumer run --conf {instance.configuration}" in text
