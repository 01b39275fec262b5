# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the sample consumer at work: a private broker, a stream of messages, and the result.

Everything happens in a temporary directory and on a free port. The demo reads none of this host's
configuration, and leaves nothing behind. Without RabbitMQ, the consumer runs on the same messages
from a file, by `fm-consumer replay`.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pika
from fedora_messaging import config
from fedora_messaging.message import Message, dumps

from consumer_framework.testing.broker import Broker, BrokerError

EXAMPLES = Path(__file__).resolve().parent.parent
# This file runs as a script, so that Python imports from its directory only.
sys.path.insert(0, str(EXAMPLES.parent))

from examples.demo.messages import ONE_ROUND, SchemaMissingError, stream  # noqa: E402

QUEUE = "sample"
START_TIMEOUT = 20.0
HANDLE_TIMEOUT = 20.0
STOP_TIMEOUT = 20.0
REPLAY_TIMEOUT = 300.0

CYAN, DIM, GREEN, RED = "36", "2", "32", "31"
COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ


class DemoError(Exception):
    """The demo failed; the text is for the person at the terminal."""


def paint(text: str, colour: str) -> str:
    """Color *text*, if it goes to a terminal."""
    return f"\x1b[{colour}m{text}\x1b[0m" if COLOURS else text


def say(text: str) -> None:
    """Print a line of the demo itself."""
    print(f"{paint('demo     |', GREEN)} {text}", flush=True)


def wait_until(condition: Callable[[], bool], timeout: float, otherwise: str) -> None:
    """Wait at most *timeout* seconds for *condition*.

    Raises:
        DemoError: The time is over; its text is *otherwise*.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(otherwise)
        time.sleep(0.05)


class ConsumerProcess:
    """The `fm-consumer` process, whose output is shown as it arrives."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - the command is written below
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        # The sample prints one line for each message to stdout; the log goes to stderr.
        self.lines = 0
        self._relays = [
            threading.Thread(target=self._relay, args=(self._process.stdout, CYAN, True)),
            threading.Thread(target=self._relay, args=(self._process.stderr, DIM, False)),
        ]
        for relay in self._relays:
            relay.start()

    def _relay(self, lines: IO[str], colour: str, count: bool) -> None:  # noqa: FBT001
        for line in lines:
            print(f"{paint('consumer |', colour)} {line.rstrip()}", flush=True)
            self.lines += count

    def check_alive(self) -> None:
        """Raise DemoError if the process ended by itself."""
        code = self._process.poll()
        if code is not None:
            raise DemoError(f"the consumer ended by itself with exit code {code}")

    def stop(self) -> None:
        """Send SIGTERM and wait for the end.

        Raises:
            DemoError: If the process does not end in time, or with another exit code than 0.
        """
        self.check_alive()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise DemoError(f"the consumer ignored SIGTERM for {STOP_TIMEOUT:.0f} s") from None
        if code != 0:
            raise DemoError(f"the consumer ended with exit code {code} after SIGTERM, not 0")

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            DemoError: If the process does not end in time, or with another exit code than 0.
        """
        try:
            code = self._process.wait(REPLAY_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise DemoError(f"the replay was not done after {REPLAY_TIMEOUT:.0f} s") from None
        if code != 0:
            raise DemoError(f"the replay ended with exit code {code}, not 0")

    def close(self) -> None:
        """End the process, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for relay in self._relays:
            relay.join()


class Observer:
    """The demo's own connection to the broker, to publish and to inspect the queue."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._publishing = self._connection.channel()
        # With confirms, a message that reaches no queue raises here instead of vanishing silently.
        self._publishing.confirm_delivery()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def queue(self) -> tuple[int, int]:
        """Count the messages that wait in the queue, and its consumers; 0 and 0 without a queue."""
        channel = self._connection.channel()
        try:
            declared = channel.queue_declare(QUEUE, passive=True).method
        except pika.exceptions.ChannelClosedByBroker:
            return 0, 0
        channel.close()
        return declared.message_count, declared.consumer_count

    def publish(self, messages: Iterator[Message], rate: float) -> Counter[str]:
        """Publish *rate* messages a second, as fedora_messaging's publisher would.

        Returns:
            The number of published messages of each application.
        """
        published: Counter[str] = Counter()
        for message in messages:
            self._publishing.basic_publish(
                exchange=config.conf["publish_exchange"],
                routing_key=message._encoded_routing_key,  # noqa: SLF001
                body=message._encoded_body,  # noqa: SLF001
                properties=message._properties,  # noqa: SLF001
                mandatory=True,
            )
            published[message.app_name or "unknown"] += 1
            self._connection.sleep(1 / rate)
        return published


def configure(directory: Path, url: str) -> Path:
    """Write a copy of examples/sample.toml with the broker's *url* and a file for the digest."""
    text = (EXAMPLES / "sample.toml").read_text(encoding="utf-8")
    text = set_value(text, "amqp_url", url)
    text = set_value(text, "digest", str(directory / "digest.json"))
    path = directory / "sample.toml"
    path.write_text(text, encoding="utf-8")
    return path


def set_value(toml: str, key: str, value: str) -> str:
    """Replace the one line of *toml* that sets *key*, also in a comment."""
    line = f"{key} = {json.dumps(value)}"
    toml, found = re.subn(rf"^(# )?{key} = .*$", lambda _: line, toml, flags=re.MULTILINE)
    if found != 1:
        raise DemoError(f"examples/sample.toml has {found} lines for {key}, not one")
    return toml


@contextmanager
def running_consumer(toml: Path, verb: str = "run", *words: Path) -> Iterator[ConsumerProcess]:
    """Run `fm-consumer` with the configuration *toml* within the context."""
    program = Path(sys.executable).with_name("fm-consumer")
    if not program.exists():
        raise DemoError(f"{program} does not exist: install the project into this environment")
    callback = f"{EXAMPLES / 'sample.py'}:Sample"
    options = ["--conf", str(toml), "--callback-file", callback]
    command = [str(program), verb, *options, *map(str, words)]
    consumer = ConsumerProcess(command, consumer_environment(toml.parent))
    try:
        yield consumer
    finally:
        consumer.close()


def consumer_environment(directory: Path) -> dict[str, str]:
    """Return an environment with its own directories, without a surrounding service's socket."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"FEDORA_MESSAGING_CONF", "NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM"}
    }
    for variable in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        path = directory / variable.lower()
        path.mkdir()
        environment[variable] = str(path)
    return environment


def exercise(
    consumer: ConsumerProcess, observer: Observer, count: int, rate: float
) -> Counter[str]:
    """Publish, and stop the consumer once it has handled everything; count by application."""

    def consuming() -> bool:
        consumer.check_alive()
        return observer.queue()[1] > 0

    def handled() -> bool:
        consumer.check_alive()
        return consumer.lines >= count

    wait_until(consuming, START_TIMEOUT, f"no consumer on the queue after {START_TIMEOUT:.0f} s")
    say(f"the consumer is ready; publishing {count} messages, {rate:g} a second")
    published = observer.publish(stream(count), rate)
    try:
        wait_until(handled, HANDLE_TIMEOUT, "")
    except DemoError:
        consumer.check_alive()
        # The comparison of the counts reports the missing messages.
        say(paint(f"not everything is handled after {HANDLE_TIMEOUT:.0f} s", RED))
    say("stopping the consumer with SIGTERM")
    consumer.stop()
    return published


def compare(published: Counter[str], handled: Counter[str], left: int) -> None:
    """Print the counts side by side.

    Raises:
        DemoError: If they differ, or if *left* messages are still in the queue.
    """
    print(f"\n{'application':<12} {'published':>9} {'handled':>9}")
    for app in sorted(published | handled, key=str.lower):
        print(f"{app:<12} {published[app]:>9} {handled[app]:>9}")
    print(f"{'all':<12} {published.total():>9} {handled.total():>9}\n", flush=True)
    wrong = [app for app in sorted(published | handled) if published[app] != handled[app]]
    if wrong:
        raise DemoError(f"published and handled differ for {', '.join(wrong)}; {left} left queued")
    if left:
        raise DemoError(f"{left} messages are still in the queue")


def demonstrate(broker: Broker, directory: Path, count: int, rate: float) -> None:
    """Run the sample consumer against *broker*, publish to it, and compare the counts."""
    toml = configure(directory, broker.url)
    # Messages read the configuration when they are made, and must not read this host's.
    config.conf.load_config(str(toml))
    observer = Observer(broker.url)
    try:
        with running_consumer(toml) as consumer:
            published = exercise(consumer, observer, count, rate)
        left, _ = observer.queue()
    finally:
        observer.close()
    compare(published, handled_by_app(directory / "digest.json"), left)


def demonstrate_without_broker(directory: Path, count: int) -> None:
    """Run the sample consumer on the same messages from a file, and compare the counts."""
    toml = configure(directory, "amqp://localhost")
    config.conf.load_config(str(toml))
    recorded = directory / "recorded.jsonl"
    messages = list(stream(count))
    recorded.write_text(dumps(messages), encoding="utf-8")
    say(f"fm-consumer replay runs the consumer on {count} messages of a file")
    with running_consumer(toml, "replay", recorded) as consumer:
        consumer.finish()
    written = Counter(message.app_name or "unknown" for message in messages)
    compare(written, handled_by_app(directory / "digest.json"), 0)


def handled_by_app(digest: Path) -> Counter[str]:
    """Read the number of handled messages of each application from the consumer's *digest*."""
    try:
        return Counter(json.loads(digest.read_text(encoding="utf-8"))["apps"])
    except FileNotFoundError:
        raise DemoError("the consumer wrote no digest: did its teardown fail?") from None


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--count", type=int, default=ONE_ROUND, help="messages to publish (%(default)s)"
    )
    parser.add_argument("--rate", type=float, default=15.0, help="messages a second (%(default)s)")
    options = parser.parse_args(arguments)
    if options.count < 1 or options.rate <= 0:
        parser.error("--count and --rate must be positive")
    return options


def started_broker(stack: ExitStack) -> Broker | None:
    """Start a private RabbitMQ, which *stack* stops; None, and the reason said, without one."""
    reason = Broker.missing()
    if reason is None:
        say("starting a private RabbitMQ")
        try:
            return stack.enter_context(Broker())
        except BrokerError as error:
            reason = str(error)
    say(paint(f"there is no private RabbitMQ: {reason}", RED))
    say("so the messages come from a file, and no broker takes part")
    return None


def run(count: int, rate: float) -> None:
    """Run the whole demo.

    Raises:
        DemoError: Something is missing, or a count is wrong.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fm-demo-") as directory, ExitStack() as stack:
        broker = started_broker(stack)
        if broker is None:
            demonstrate_without_broker(Path(directory), count)
        else:
            demonstrate(broker, Path(directory), count, rate)
    verb = "replayed" if broker is None else "published"
    say(f"{count} messages {verb} and handled, in {time.monotonic() - start:.1f} s altogether")
    say("next: examples/sample.py is the consumer, examples/sample.toml its configuration;")
    say("      change either and run this again, with more messages: --count 500 --rate 100")


def main() -> int:
    """Run the demo and return its exit code."""
    options = parse(sys.argv[1:])
    # As on Ctrl-C: the broker and the consumer must not outlive the demo.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(options.count, options.rate)
    except SchemaMissingError as error:
        say(paint(f"{error}; pip install 'consumer-framework[demo]' brings it", RED))
    except (DemoError, BrokerError) as error:
        say(paint(str(error), RED))
    except pika.exceptions.AMQPError as error:
        say(paint(f"the broker refused something: {error!r}", RED))
    except KeyboardInterrupt:
        say("interrupted")
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
