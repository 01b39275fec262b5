# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of an instance as frozen values.

- :mod:`.model` declares each setting once: type, default, meaning, and the effort of a change.
- :mod:`.outbox` declares the table of an outbox.
- :mod:`.health` declares the thresholds of the condition, and the limits of queues.
- :mod:`.parsing` checks a whole document and collects every problem with its TOML path.
- :mod:`.changes` compares two configurations, for a reload.
- :mod:`.author` checks the author's part against the ``Config`` of a consumer.
- :mod:`.credentials` puts secrets in the place of ``credential:NAME``.
- :mod:`.schema` derives the rows of the reference pages and the JSON schema.

Nothing here reads a file, a clock or the environment: the adapters do.
"""

from .author import is_config_type, known_keys, parse_consumer_config
from .brokers import Address
from .changes import FRAMEWORK_TAKES, TAKES, Change, changes, in_force, is_authors
from .health import PRIVATE, PUBLIC, QueuePolicy, Thresholds, virtual_host
from .listing import Setting, settings_of
from .model import (
    CONFIGURATION_DIRECTORY,
    INSTANCE_NAME,
    TRANSIENT_QUEUE,
    Batch,
    Binding,
    BreakerSettings,
    Framework,
    Monitoring,
    Ordering,
    Profile,
    PublishingKind,
    Qos,
    Queue,
    Recovery,
    RuleSettings,
    Settings,
    StoreKind,
    Tls,
    instance_name_problem,
    is_fedoras_host,
)
from .outbox import OnFailure, OutboxRule, OutboxSettings, Unroutable
from .parsing import (
    NO_OVERRIDES,
    Overrides,
    conflicts,
    outbox_settings,
    outbox_table,
    override,
    parse,
    refuse_conflicts,
)
from .problems import toml_path
from .table import Takes
from .toml_lines import TomlLines

__all__ = [
    "CONFIGURATION_DIRECTORY",
    "FRAMEWORK_TAKES",
    "INSTANCE_NAME",
    "NO_OVERRIDES",
    "PRIVATE",
    "PUBLIC",
    "TAKES",
    "TRANSIENT_QUEUE",
    "Address",
    "Batch",
    "Binding",
    "BreakerSettings",
    "Change",
    "Framework",
    "Monitoring",
    "OnFailure",
    "Ordering",
    "OutboxRule",
    "OutboxSettings",
    "Overrides",
    "Profile",
    "PublishingKind",
    "Qos",
    "Queue",
    "QueuePolicy",
    "Recovery",
    "RuleSettings",
    "Setting",
    "Settings",
    "StoreKind",
    "Takes",
    "Thresholds",
    "Tls",
    "TomlLines",
    "Unroutable",
    "changes",
    "conflicts",
    "in_force",
    "instance_name_problem",
    "is_authors",
    "is_config_type",
    "is_fedoras_host",
    "known_keys",
    "outbox_settings",
    "outbox_table",
    "override",
    "parse",
    "parse_consumer_config",
    "refuse_conflicts",
    "settings_of",
    "toml_path",
    "virtual_host",
]
