# SPDX-License-Identifier: GPL-2.0-or-later
"""A consumer that follows what happens to packages in Fedora.

It prints a line for each message and, when it is stopped, a digest of them all. It knows no
application: the message classes of Bodhi, Koji, Anitya and Pagure say what they are about.

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
        """What `[consumer_config]` may hold; anything else stops the consumer at its start."""

        # Shell patterns of package names. Empty: everything, even what concerns no package.
        packages: list[str] = []
        # The line of a message: app_name, summary, topic, packages, usernames, url, severity ...
        line: str = "{message.app_name!s:>7}: {message.summary}"
        # A file for the digest, as JSON. It is printed in any case.
        digest: Path | None = None

    config: Config

    def setup(self) -> None:
        """Run once, before the first message: the place to open files and connections."""
        self.apps: Counter[str] = Counter()
        self.packages: Counter[str] = Counter()
        # A line that names what no message has fails here, and not with every message.
        self.config.line.format(message=Message())

    def handle(self, message: Message) -> None:
        """Run for each message. To return is to acknowledge it; to raise is to fail."""
        if not self.watches(message.packages):
            return
        print(self.config.line.format(message=message), flush=True)
        # Last, so that a message that failed above counts once only, however often it is retried.
        # Without the package that has a message's schema, its application is not known either.
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
        """Tell whether a message about *packages* is wanted."""
        globs = self.config.packages
        return not globs or any(fnmatch(name, glob) for name in packages for glob in globs)
