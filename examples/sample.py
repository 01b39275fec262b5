# SPDX-License-Identifier: GPL-2.0-or-later
"""A consumer that follows the packages in Fedora.

It prints a line for each message and, when you stop it, a digest of them all. It knows no
application: the message classes of Bodhi, Koji, Anitya and Pagure name the packages.

    fm-consumer run --conf examples/sample.toml --callback-file examples/sample.py:Sample
"""

import json
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

from fedora_messaging.message import Message
from pydantic import BaseModel

from consumer_framework import Consumer


class Sample(Consumer):
    """Print each message about the watched packages, and count them."""

    class Config(BaseModel):
        """The settings of `[consumer_config]`; any other key stops the consumer at its start."""

        # Shell patterns of package names. Empty: all messages, even those about no package.
        packages: list[str] = []
        # The line of a message: app_name, summary, topic, packages, usernames, url, severity ...
        line: str = "{message.app_name!s:>7}: {message.summary}"
        # A file for the digest, as JSON. The consumer prints the digest in any case.
        digest: Path | None = None

    config: Config

    def setup(self) -> None:
        """Run once, before the first message: the place to open files and connections."""
        self.apps: Counter[str] = Counter()
        self.packages: Counter[str] = Counter()
        # A line with a name that no message has fails here, and not with every message.
        self.config.line.format(message=Message())

    def handle(self, message: Message) -> None:
        """Run for each message. To return is to acknowledge it; to raise is to fail."""
        if not self.watches(message.packages):
            return
        print(self.config.line.format(message=message), flush=True)
        # Last, so that a message that failed above counts only once, however often it is retried.
        # Without the package that has a message's schema, the application is unknown too.
        self.apps[message.app_name or "unknown"] += 1
        self.packages.update(message.packages)

    def teardown(self) -> None:
        """Run once, after the last message."""
        print(f"{self.apps.total()} messages. Busiest packages:", flush=True)
        for package, count in self.packages.most_common(5):
            print(f"{count:>7}: {package}", flush=True)
        if self.config.digest:
            digest = {"apps": self.apps, "packages": self.packages}
            self.config.digest.write_text(json.dumps(digest, indent=2) + "\n", encoding="utf-8")

    def watches(self, packages: list[str]) -> bool:
        """Return True if a message about *packages* is wanted."""
        globs = self.config.packages
        return not globs or any(fnmatch(name, glob) for name in packages for glob in globs)
