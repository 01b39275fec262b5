# SPDX-License-Identifier: GPL-2.0-or-later
"""Configurations with one mistake each, and the finding that ``fm-consumer check`` has for it.

The line of the finding is the one that ends with ``#!``. Without such a line, the file has neither
the key nor a table around it, and the finding has no line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

QUEUE = """\
[queues.one]
durable = true
auto_delete = false
exclusive = false
arguments = {}
"""
BINDING = """\
[[bindings]]
queue = "one"
exchange = "amq.topic"
routing_keys = ["org.#"]
"""
URL = 'amqp_url = "amqp://localhost:1/%2F"'
CALLBACK = 'callback = "MODULE:function"'

# A SQLite file with the table `messages`: a unique column `n`, and `topic`.
TABLE = 'database = "DATABASE"\ntable = "'

ERROR, WARNING, INFO = "error", "warning", "info"


@dataclass(frozen=True, slots=True)
class Broken:
    """A configuration with a mistake.

    Attributes:
        name: The mistake.
        text: The file.
        level: The severity of the finding.
        path: Its TOML path.
        words: A part of its message and cure.
    """

    name: str
    text: str
    level: str
    path: str | None
    words: str

    @property
    def line(self) -> int | None:
        """The number of the line of the finding."""
        marked = [n for n, line in enumerate(self.text.splitlines(), 1) if line.endswith("#!")]
        return marked[0] if marked else None


def local(
    rest: str = "",
    *,
    url: str = URL,
    callback: str = CALLBACK,
    head: str = "",
    queue: str = QUEUE,
    binding: str = BINDING,
) -> str:
    """Return a file for a broker of this machine, with parts replaced."""
    return f"{url}\n{callback}\n{head}\n{queue}\n{binding}\n{rest}\n"


def ready_made(callback: str, table: str, *, columns: str = "") -> str:
    """Return the file of a ready-made consumer, with its keys."""
    more = f"[consumer_config.columns]\n{columns}" if columns else ""
    name = f'callback = "consumer_framework.kit.{callback}"'
    return local(f"[consumer_config]\n{table}\n{more}", callback=name)


def queue(key: str, value: str, name: str = "one") -> str:
    """Return the file with another value of a key of the queue."""
    return local(
        queue=QUEUE.replace("queues.one", f"queues.{name}").replace(
            f"{key} = {_old(QUEUE, key)}", f"{key} = {value} #!"
        )
    )


def arguments(text: str) -> str:
    """Return the file with an argument of the queue."""
    table = f"[queues.one.arguments]\nx-max-priority = 5\n{text} #!\n"
    return local(queue=QUEUE.replace("arguments = {}\n", table))


def binding(key: str, value: str) -> str:
    """Return the file with another value of a key of the binding."""
    return local(binding=BINDING.replace(f"{key} = {_old(BINDING, key)}", f"{key} = {value} #!"))


def framework(text: str, table: str = "") -> str:
    """Return the file with settings of the framework."""
    return local(f"[consumer_config.framework{table}]\n{text}")


def _old(text: str, key: str) -> str:
    return text.split(f"{key} = ")[1].split("\n", maxsplit=1)[0]


LOCAL = [
    # Not TOML.
    Broken("no value", local(head="topic_prefix = #!"), ERROR, None, "is not TOML"),
    Broken("an open string", local(head='topic_prefix = "org #!'), ERROR, None, "is not TOML"),
    Broken("a key twice", local(head="callback = 'x:y' #!"), ERROR, None, "is not TOML"),
    Broken("a table twice", local("[queues.one] #!"), ERROR, None, "is not TOML"),
    # The broker.
    Broken("another scheme", local(url='amqp_url = "http://host" #!'), ERROR, "amqp_url",
           "is not an AMQP URL"),
    Broken("a port of letters", local(url='amqp_url = "amqp://host:port/" #!'), ERROR, "amqp_url",
           "cannot be understood"),
    Broken("a number as the URL", local(url="amqp_url = 5672 #!"), ERROR, "amqp_url",
           "must be a string"),
    Broken("a secret for all", local(url='amqp_url = "amqp://u:hush@localhost:1/" #!'), WARNING,
           "amqp_url", "everybody on this machine can read"),
    Broken("TLS without TLS", local('[tls] #!\nca_cert = "/etc/ca"'), INFO, "tls",
           "has no effect on an amqp:// URL"),
    Broken("no CA file", local('[tls]\nca_cert = "/nowhere/ca.pem" #!',
           url='amqp_url = "amqps://localhost:1/"'), ERROR, "tls.ca_cert", "cannot be read"),
    Broken("a certificate alone", local('[tls]\ncertfile = "CERT" #!',
           url='amqp_url = "amqps://localhost:1/"'), WARNING, "tls.certfile",
           "has no effect without keyfile"),
    Broken("the key of another", local('[tls]\ncertfile = "CERT"\nkeyfile = "CERT" #!',
           url='amqp_url = "amqps://localhost:1/"'), ERROR, "tls.keyfile", "is not the key of"),
    Broken("a null character", local('[tls]\nca_cert = "a\\u0000" #!',
           url='amqp_url = "amqps://localhost:1/"'), ERROR, "tls.ca_cert", "null character"),
    Broken("an unknown key of tls", local('[tls]\ncert = "x" #!'), ERROR, "tls.cert",
           "unknown key"),
    # The outermost keys.
    Broken("an unknown key", local(head="passive_declare = true #!"), ERROR, "passive_declare",
           'did you mean "passive_declares"?'),
    Broken("a key in capitals", local(head='Passive_Declares = "yes" #!'), ERROR,
           "passive_declares", "must be a boolean"),
    Broken("a priority of 256", local(head="publish_priority = 256 #!"), ERROR,
           "publish_priority", "less than or equal to 255"),
    Broken("a reserved property", local('[client_properties] #!\nproduct = "mine"'), ERROR,
           "client_properties", "reserved keyword"),
    Broken("logging that is none", local("[log_config] #!\nversion = 3"), ERROR, "log_config",
           "Unsupported version"),
    Broken("no port to listen on", local('[monitoring] #!\naddress = "127.0.0.1"'), ERROR,
           "monitoring.port", "required"),
    Broken("a port that is none", local("[monitoring]\nport = 70000 #!"), ERROR,
           "monitoring.port", "65535"),
    # The callback.
    Broken("no callback", local(callback=""), ERROR, "callback", "no callback"),
    Broken("a missing module", local(callback='callback = "no_such_module:x" #!'), ERROR,
           "callback", "cannot be imported"),
    Broken("a missing object", local(callback='callback = "MODULE:functoin" #!'), ERROR,
           "callback", "functoin"),
    Broken("a callback without colon", local(callback='callback = "MODULE" #!'), ERROR,
           "callback", "names no object"),
    Broken("a missing setting", local("[consumer_config] #!",
           callback='callback = "MODULE:Typed"'), ERROR, "consumer_config.name", "required"),
    Broken("a setting of another type", local("[consumer_config]\nname = 5 #!",
           callback='callback = "MODULE:Typed"'), ERROR, "consumer_config.name",
           "must be a string"),
    Broken("an unknown setting", local('[consumer_config]\nname = "x"\nnaem = "y" #!',
           callback='callback = "MODULE:Typed"'), ERROR, "consumer_config.naem", "unknown key"),
    # Queues.
    Broken("no queue", local(head="queues = {} #!", queue="", binding=""), ERROR, "queues",
           "there is no queue"),
    Broken("text for a boolean", queue("durable", '"yes"'), ERROR, "queues.one.durable",
           "must be a boolean"),
    Broken("a key of the queue is missing",
           local(queue="[queues.one] #!\ndurable = true\nexclusive = false\narguments = {}\n"),
           ERROR, "queues.one.auto_delete", "required"),
    Broken("an unknown key of the queue", local(queue=f"{QUEUE}durabel = true #!\n"), ERROR,
           "queues.one.durabel", 'did you mean "durable"?'),
    Broken("a dot in the name of the queue", queue("durable", "1", '"one.two"'), ERROR,
           'queues."one.two".durable', "must be a boolean"),
    Broken("an exclusive queue", queue("exclusive", "true"), WARNING, "queues.one.exclusive",
           "goes with its consumer"),
    Broken("a queue that deletes itself", queue("auto_delete", "true"), WARNING,
           "queues.one.auto_delete", "goes with its consumer"),
    Broken("a queue that ends with the broker", queue("durable", "false"), WARNING,
           "queues.one.durable", "lost when the broker restarts"),
    Broken("a transient queue for all", queue("durable", "false"), WARNING, "queues.one.durable",
           "RabbitMQ 4.3 refuses"),
    Broken("a queue that nobody binds", local(queue=QUEUE.replace("one]", "one] #!"), binding="",
           head="bindings = []"), WARNING, "queues.one", "no binding of this file"),
    # Arguments.
    Broken("a limit of length", arguments("x-max-length = 5"), WARNING,
           "queues.one.arguments.x-max-length", "drops the oldest"),
    Broken("a limit of bytes", arguments("x-max-length-bytes = 5"), WARNING,
           "queues.one.arguments.x-max-length-bytes", "5 bytes wait"),
    Broken("an age", arguments("x-message-ttl = 60000"), WARNING,
           "queues.one.arguments.x-message-ttl", "waited for 1m"),
    Broken("a queue that expires", arguments("x-expires = 60000"), WARNING,
           "queues.one.arguments.x-expires", "nobody has consumed for 1m"),
    Broken("a delivery limit", arguments("x-delivery-limit = 3"), WARNING,
           "queues.one.arguments.x-delivery-limit", "more than 3 times"),
    Broken("a quorum queue", arguments('x-queue-type = "quorum"'), WARNING,
           "queues.one.arguments.x-queue-type", "came back 20 times"),
    Broken("a single active consumer of a quorum queue",
           arguments('x-queue-type = "quorum"\nx-single-active-consumer = true'), WARNING,
           "queues.one.arguments.x-single-active-consumer", "RabbitMQ 4.3"),
    Broken("a short consumer timeout", arguments("x-consumer-timeout = 60000"), WARNING,
           "queues.one.arguments.x-consumer-timeout", "takes messages back after 1m"),
    Broken("a number that is too large", local(queue=QUEUE.replace(
           "{}", "{x-max-length = 99999999999999999999} #!")), ERROR, "queues.one.arguments",
           "64 bits"),
    # Bindings.
    Broken("a binding of no queue", binding("queue", '"two"'), ERROR, "bindings[0].queue",
           'there is no [queues."two"]'),
    Broken("the default exchange", binding("exchange", '""'), ERROR, "bindings[0].exchange",
           "lets nobody bind"),
    Broken("no routing key", binding("routing_keys", "[]"), WARNING, "bindings[0].routing_keys",
           "is empty"),
    Broken("text for a list", binding("routing_keys", '"#"'), ERROR, "bindings[0].routing_keys",
           "must be an array"),
    Broken("half a word", local(binding=BINDING.replace('["org.#"]', '[\n"org.#",\n"a.b*", #!\n]')),
           WARNING, "bindings[0].routing_keys[1]", "mixes"),
    Broken("a space in a key", binding("routing_keys", '["org.a "]'), WARNING,
           "bindings[0].routing_keys[0]", "has a space"),
    Broken("a number among the keys", local(binding=BINDING.replace(
           '["org.#"]', '[\n"org.#",\n5, #!\n]')), ERROR, "bindings[0].routing_keys[1]",
           "must be a string"),
    Broken("no exchange", local(binding='[[bindings]] #!\nqueue = "one"\nrouting_keys = ["#"]\n'),
           ERROR, "bindings[0].exchange", "required"),
    Broken("the second binding", local('[[bindings]]\nqueue = "one"\nexchange = "amq.topic"\n'
           'routing_keys = ["a"]\nkeys = ["b"] #!'), ERROR, "bindings[1].keys", "unknown key"),
    Broken("wildcards for a direct exchange", local(binding=BINDING.replace(
           "amq.topic", "amq.direct").replace('["org.#"]', '["org.#"] #!')), WARNING,
           "bindings[0].routing_keys[0]", "stand for themselves"),
    # Flow.
    Broken("no limit of prefetched messages", local("[qos]\nprefetch_count = 0 #!"), WARNING,
           "qos.prefetch_count", "everything that the queue has"),
    Broken("slots that idle", local("[qos]\nprefetch_count = 3 #!\n"
           "[consumer_config.framework]\nslots = 8"), WARNING, "qos.prefetch_count", "some idle"),
    Broken("holds that idle", local("[qos]\nprefetch_count = 2 #!"), INFO, "qos.prefetch_count",
           "hold_slots"),
    Broken("an unknown key of qos", local("[qos]\nprefetch_coun = 2 #!"), ERROR,
           "qos.prefetch_coun", 'did you mean "prefetch_count"?'),
    # The framework.
    Broken("65 slots", framework("slots = 65 #!"), ERROR, "consumer_config.framework.slots",
           "less than or equal to 64"),
    Broken("an unknown key of the framework", framework("slot = 5 #!"), ERROR,
           "consumer_config.framework.slot", 'did you mean "slots"?'),
    Broken("an unknown profile", framework('profile = "fedroa" #!'), ERROR,
           "consumer_config.framework.profile", 'did you mean "fedora"?'),
    Broken("a rate without a unit", framework('rate = "5" #!'), ERROR,
           "consumer_config.framework.rate", "must be a rate"),
    Broken("a burst without a rate", framework("burst = 5 #!"), ERROR,
           "consumer_config.framework.burst", "has no effect without rate"),
    Broken("a key without its order", framework('ordering_key = "topic" #!'), ERROR,
           "consumer_config.framework.ordering_key", "has no effect"),
    Broken("an order without its key", framework('ordering = "key"').replace(
           "[consumer_config.framework]", "[consumer_config.framework] #!"), ERROR,
           "consumer_config.framework.ordering_key", "is required"),
    Broken("batches in strict order", framework('ordering = "strict"\nbatch = {} #!'), ERROR,
           "consumer_config.framework.batch", "one message is handled at a time"),
    Broken("an order in memory", framework('store = "memory"\nordering = "strict" #!'), ERROR,
           "consumer_config.framework.ordering", "is overtaken"),
    Broken("a handler that takes too long", framework('handler_timeout = "1h" #!'), ERROR,
           "consumer_config.framework.handler_timeout", "is not shorter than"),
    Broken("a time that is none", framework('start_timeout = "5 minutes" #!'), ERROR,
           "consumer_config.framework.start_timeout", "must be"),
    Broken("another broker's scheme", framework('brokers = [\n"one",\n"amqps://two", #!\n]'), ERROR,
           "consumer_config.framework.brokers[1]", "is amqps:// where"),
    Broken("delays that are no times", framework('delays = ["1s", "soon"] #!', ".recovery"), ERROR,
           "consumer_config.framework.recovery.delays[1]", "must be"),
    Broken("a rule without exceptions", local(
           '[[consumer_config.framework.recovery.rules]]\nexceptions = [] #!\nthen = "drop"'),
           ERROR, "consumer_config.framework.recovery.rules[0].exceptions", "at least 1 item"),
    Broken("a rule for no exception", local(
           '[[consumer_config.framework.recovery.rules]]\nexceptions = ["int"] #!\nthen = "drop"'),
           ERROR, "consumer_config.framework.recovery.rules[0].exceptions", "is no exception"),
    Broken("the second rule", local(
           '[[consumer_config.framework.recovery.rules]]\nexceptions = ["OSError"]\nthen = "drop"\n'
           '[[consumer_config.framework.recovery.rules]]\nexceptions = ["OSError"]\n'
           'then = "dorp" #!'),
           ERROR, "consumer_config.framework.recovery.rules[1].then", 'did you mean "drop"?'),
    Broken("an unknown messenger", framework('messenger = "amqpp" #!', ".outbox"), ERROR,
           "consumer_config.framework.outbox.messenger", 'did you mean "amqp"?'),
    Broken("an outbox that waits too long", framework('lease = "5s"\ntimeout = "9s" #!', ".outbox"),
           ERROR, "consumer_config.framework.outbox.timeout", "is not shorter than lease"),
]  # fmt: skip


# Fedora's broker.

PUBLIC_QUEUE = """\
[queues.7d5b12b6-4f6e-4bb8-b6d7-6a6d8d8ff2d0]
durable = false
auto_delete = true
exclusive = true
arguments = {}
"""


def private(
    *changes: tuple[str, str], name: str = "bodhi_updates", host: str = "rabbitmq", more: str = ""
) -> str:
    """Return a file for /pubsub, with lines replaced."""
    text = f"""\
amqp_url = "amqps://bodhi:@{host}.fedoraproject.org/%2Fpubsub"
callback = "MODULE:function"
passive_declares = true
[client_properties]
app = "bodhi"
app_version = "8.0"
[tls]
ca_cert = "CERT"
certfile = "CERT"
keyfile = "KEY"
{QUEUE.replace("one", name)}
{BINDING.replace("one", name)}
{more}
"""
    return _changed(text, changes)


def public(*changes: tuple[str, str]) -> str:
    """Return a file for /public_pubsub, with lines replaced."""
    text = private(("bodhi:@", "fedora:@"), ("/%2Fpubsub", "/%2Fpublic_pubsub"))
    text = _changed(text, [("passive_declares = true\n", ""), ("CERT", "FEDORA")])
    queue = QUEUE.replace("one", "bodhi_updates")
    text = _changed(text, [(queue, PUBLIC_QUEUE), ("bodhi_updates", PUBLIC_QUEUE[8:44])])
    return _changed(text, changes)


def _changed(text: str, changes: Iterable[tuple[str, str]]) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def unsaid(line: str, table: str = "") -> tuple[tuple[str, str], ...]:
    """Return the changes that take a line away, and mark its table."""
    return (f"{line}\n", ""), *([(f"{table}\n", f"{table} #!\n")] if table else [])


STAGING = "rabbitmq.stg"

FEDORA = [
    Broken("no TLS", private(('amqps://bodhi:@rabbitmq.fedoraproject.org/%2Fpubsub"',
           'amqp://bodhi:@rabbitmq.fedoraproject.org/%2Fpubsub" #!')), ERROR, "amqp_url",
           "no connection without TLS"),
    Broken("no CA", private(*unsaid('ca_cert = "CERT"', "[tls]")), ERROR, "tls.ca_cert",
           "is required by Fedora's broker"),
    Broken("no certificate", private(*unsaid('certfile = "CERT"', "[tls]")), ERROR,
           "tls.certfile", "ask Fedora Infrastructure"),
    Broken("no key", private(*unsaid('keyfile = "KEY"', "[tls]")), ERROR, "tls.keyfile",
           "is required by Fedora's broker"),
    Broken("queues that are created", private(
           ("passive_declares = true", "passive_declares = false #!")), ERROR, "passive_declares",
           "no account may create queues"),
    Broken("queues that are created by default", private(*unsaid("passive_declares = true")),
           ERROR, "passive_declares", "must be true"),
    Broken("one queue that is created", private(
           ("arguments = {}", "arguments = {}\npassive = false #!")), ERROR,
           "queues.bodhi_updates.passive", "no account may create queues"),
    Broken("the queue of another", private(("[queues.bodhi_updates]", "[queues.pagure_updates] #!"),
           ('"bodhi_updates"', '"pagure_updates"')), ERROR, "queues.pagure_updates",
           'does not begin with "bodhi"'),
    Broken("a queue that the broker names", private(("[queues.bodhi_updates]", '[queues.""] #!'),
           ('"bodhi_updates"', '""')), ERROR, 'queues.""', "the broker names no queue"),
    Broken("another user than the certificate's", private(
           ('bodhi:@rabbitmq.fedoraproject.org/%2Fpubsub"',
            'pagure:@rabbitmq.fedoraproject.org/%2Fpubsub" #!')), WARNING, "amqp_url",
           'is not the common name "bodhi"'),
    Broken("an account of production in staging", private(
           ('certfile = "CERT"', 'certfile = "CERT" #!'), host=STAGING), WARNING, "tls.certfile",
           'use the account "bodhi.stg"'),
    Broken("an account of staging in production", private(
           ('certfile = "CERT"\nkeyfile = "KEY"', 'certfile = "STAGING" #!\nkeyfile = "STAGED"')),
           WARNING, "tls.certfile", "is one of the staging broker"),
    Broken("a queue without the suffix", private(
           ('certfile = "CERT"\nkeyfile = "KEY"', 'certfile = "STAGING"\nkeyfile = "STAGED"'),
           ("[queues.bodhi_updates]", "[queues.bodhi_updates] #!"), host=STAGING), ERROR,
           "queues.bodhi_updates", 'does not begin with "bodhi.stg"'),
    Broken("no name of the application", private(*unsaid('app = "bodhi"', "[client_properties]")),
           WARNING, "client_properties.app", "the name of the application"),
    Broken("no client properties", private(
           ('[client_properties]\napp = "bodhi"\napp_version = "8.0"\n', "")), WARNING,
           "client_properties.app", "is not set"),
    Broken("no version of the application",
           private(*unsaid('app_version = "8.0"', "[client_properties]")), INFO,
           "client_properties.app_version", "is not set"),
    Broken("the historical exchange", private(('exchange = "amq.topic"',
           'exchange = "zmq.topic" #!')), WARNING, "bindings[0].exchange", "is historical"),
    Broken("the historical exchange, too", private(more=BINDING.replace("one", "bodhi_updates")
           .replace('"amq.topic"', '"zmq.topic" #!')), INFO, "bindings[1].exchange",
           "remove this binding"),
    Broken("an exchange of nobody", private(('exchange = "amq.topic"', 'exchange = "bodhi" #!')),
           WARNING, "bindings[0].exchange", "is no exchange of Fedora's messages"),
    Broken("messages to an exchange of nobody", private(("passive_declares = true",
           'passive_declares = true\npublish_exchange = "bodhi" #!')), WARNING, "publish_exchange",
           "take messages from"),
    Broken("the default virtual host", private(('%2Fpubsub"', '" #!')), ERROR, "amqp_url",
           'the virtual host is "/"'),
    Broken("a virtual host without its slash", private(('%2Fpubsub"', 'pubsub" #!')), ERROR,
           "amqp_url", 'the virtual host is "pubsub"'),
    Broken("a virtual host of one's own", private(('%2Fpubsub"', '%2Fkoji" #!')), INFO,
           "amqp_url", "has rules of its own"),
    Broken("the cap of a queue", private(('%2Fpubsub"', '%2Fpubsub" #!')), INFO, "amqp_url",
           "1 GiB at most"),
    Broken("the profile for another host name", private(
           ("rabbitmq.fedoraproject.org", "localhost:1"),
           ("passive_declares = true", "passive_declares = false #!"),
           more='[consumer_config.framework]\nprofile = "fedora"'), ERROR, "passive_declares",
           "must be true"),
    Broken("the cap of a public queue", public(('%2Fpublic_pubsub"', '%2Fpublic_pubsub" #!')),
           INFO, "amqp_url", "50 MB at most, and is deleted after 1h"),
    Broken("a public queue with a name", public((PUBLIC_QUEUE[:46], "[queues.mine] #!\n"),
           (PUBLIC_QUEUE[8:44], "mine")), ERROR, "queues.mine", "is no UUID"),
    Broken("the queue of the example", public(
           (f"{PUBLIC_QUEUE[8:44]}]", "00000000-0000-0000-0000-000000000000] #!"),
           (PUBLIC_QUEUE[8:44], "00000000-0000-0000-0000-000000000000")), WARNING,
           "queues.00000000-0000-0000-0000-000000000000", "take the output of uuidgen"),
    Broken("a public queue that is to last", public(("durable = false", "durable = true #!")),
           WARNING, f"queues.{PUBLIC_QUEUE[8:44]}.durable", "does not last"),
    Broken("a public queue that stays", public(("auto_delete = true", "auto_delete = false #!")),
           INFO, f"queues.{PUBLIC_QUEUE[8:44]}.auto_delete", "for up to 1h"),
    Broken("a public queue for all", public(("exclusive = true", "exclusive = false #!")), WARNING,
           f"queues.{PUBLIC_QUEUE[8:44]}.exclusive", "everybody on /public_pubsub"),
    Broken("a public queue that does not last", public(("exclusive = true", "exclusive = true #!")),
           WARNING, f"queues.{PUBLIC_QUEUE[8:44]}.exclusive", "an account on /pubsub"),
    Broken("a public queue that is not made", public(
           ("[client_properties]", "passive_declares = true #!\n[client_properties]")), WARNING,
           "passive_declares", "must be false"),
    Broken("no public certificate", public(*unsaid('certfile = "FEDORA"', "[tls]")), ERROR,
           "tls.certfile", "those of the package fedora-messaging"),
]  # fmt: skip
READY = [
    Broken("a directory for lines of JSON", ready_made(
           "json_lines:AppendJsonLines", 'path = "DIRECTORY" #!'), ERROR, "consumer_config.path",
           "is a directory; name a file in it"),
    Broken("a file in no directory", ready_made(
           "json_lines:AppendJsonLines", 'path = "/no/such/place/lines.json" #!'), ERROR,
           "consumer_config.path", "there is no directory /no/such/place; create it"),
    Broken("copies that come back", ready_made("forward:Forward", 'exchange = "amq.topic" #!'),
           ERROR, "consumer_config.exchange", "come back to the queue by its routing key org.#"),
    Broken("a table that is not there", ready_made("insert_row:InsertRow", f'{TABLE}none" #!',
           columns='n = "id"'), ERROR, "consumer_config.table", "there is no table none; create"),
    Broken("a column that is not there", ready_made("insert_row:InsertRow", f'{TABLE}messages"',
           columns='m = "id" #!'), ERROR, "consumer_config.columns.m", "it has n, topic"),
    Broken("a column that is not unique", ready_made("insert_row:InsertRow", f'{TABLE}messages"',
           columns='topic = "id" #!'), ERROR, "consumer_config.columns.topic",
           "CREATE UNIQUE INDEX messages_topic"),
    Broken("no database file", ready_made("insert_row:InsertRow",
           'database = "sqlite:////no/such/file" #!\ntable = "t"', columns='n = "id"'), ERROR,
           "consumer_config.database", "unable to open database file"),
    Broken("a program that is not there", ready_made("command:RunCommand",
           'command = ["no-such-program", "-x"] #!'), ERROR, "consumer_config.command",
           "there is no program 'no-such-program' in PATH=/usr/local/sbin:"),
    Broken("a program that is not at its path", ready_made("command:RunCommand",
           'command = ["/no/such/program"] #!'), ERROR, "consumer_config.command",
           "there is no program '/no/such/program'; correct it"),
    Broken("a directory of a command that is not there", ready_made("command:RunCommand",
           'shell = "true"\ndirectory = "/no/such/place" #!'), ERROR,
           "consumer_config.directory", "there is no directory /no/such/place; create it"),
    Broken("no URL of a database", ready_made("insert_row:InsertRow",
           'database = "mysqlite" #!\ntable = "t"', columns='n = "id"'), ERROR,
           "consumer_config.database", "is no URL of a database; write sqlite:"),
]  # fmt: skip
CORPUS = [*LOCAL, *FEDORA, *READY]
