# SPDX-License-Identifier: GPL-2.0-or-later
"""A plugin of sos: `sos report --only-plugins fm_consumer` collects the facts about instances.

The bundle has the state of all instances, the causes of their quarantined messages, their lines in
the journal, and their configuration without secrets. It has no message and no key.

sos runs it with the Python of the system, which may be older than the framework's. So it imports
nothing of the framework.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sos.report.plugins import DebianPlugin, Plugin, RedHatPlugin, UbuntuPlugin

try:
    import tomllib
except ImportError:  # Python 3.9 of EL 9
    HAS_TOML = False
else:
    HAS_TOML = True

CONFIGURATION = "etc/fedora-messaging"
INSTANCE = re.compile(r"[A-Za-z0-9_-]{1,28}")
HIDDEN = "<hidden>"
# The name of a key whose value may be a secret, whatever the value is.
SECRET_NAME = re.compile(
    r"passw|passphrase|pwd|secret|token|credential|api_?key|access_?key|private_?key|auth|cookie"
    r"|(?:^|_)(?:pass|pin|key)$",
    re.IGNORECASE,
)
# "user:password@" in a URL, and "password=..." in a URL or in the parameters of a database.
USER_PART = re.compile(r"""://[^\s"']*@""")
SECRET_PART = re.compile(r"""((?:password|passwd|secret|token)=)[^&;\s"']+""", re.IGNORECASE)


def without_secrets(value: Any, path: tuple[str, ...] = ()) -> Any:
    """Return a part of a configuration with each value hidden that may be a secret.

    The settings of an author are hidden as well, for nobody but the author knows them.
    """
    if isinstance(value, dict):
        return {key: without_secrets(inner, (*path, key)) for key, inner in value.items()}
    if path and SECRET_NAME.search(path[-1]) and not isinstance(value, bool):
        return HIDDEN
    if isinstance(value, list):
        return [without_secrets(inner, path) for inner in value]
    if not isinstance(value, str):
        return value
    if path[:1] == ("consumer_config",) and path[:2] != ("consumer_config", "framework"):
        return HIDDEN
    return SECRET_PART.sub(rf"\1{HIDDEN}", USER_PART.sub(f"://{HIDDEN}@", value))


def readable(text: str) -> str:
    """Return the text of a configuration file as JSON without secrets, or the reason for none."""
    if not HAS_TOML:
        return "It is not collected: Python 3.11 or newer is needed to hide its secrets.\n"
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return f"It is not collected, because it is no TOML: {error}\n"
    return json.dumps(without_secrets(document), indent=2, default=str) + "\n"


class FmConsumer(Plugin, RedHatPlugin, DebianPlugin, UbuntuPlugin):  # type: ignore[misc]
    """Collects the facts about the instances of consumer_framework."""

    short_desc = "Message consumers (consumer_framework)"
    plugin_name = "fm_consumer"
    profiles = ("services",)
    packages = ("consumer-framework",)
    commands = ("fm-consumer",)

    def setup(self) -> None:
        """Choose the facts."""
        self.add_cmd_output(["fm-consumer --version", "fm-consumer status --json"])
        self.add_cmd_output("systemctl list-timers fm-consumer-retention.timer")
        for file in sorted((Path(self.sysroot) / CONFIGURATION).glob("*.toml")):
            text = file.read_text(encoding="utf-8", errors="replace")
            self.add_string_as_file(readable(text), f"{file.stem}.json")
            if INSTANCE.fullmatch(file.stem):
                self.add_cmd_output(f"fm-consumer quarantine list {file.stem} --json")
                self.add_cmd_output(f"fm-consumer quarantine stats {file.stem} --json")
        self.add_journal(units=["fm-consumer@*", "fm-outbox@*"])
