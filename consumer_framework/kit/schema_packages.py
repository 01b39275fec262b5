# SPDX-License-Identifier: GPL-2.0-or-later
"""Message schemas: the installed ones, and the package that has those of a topic.

A message names its schema by the name of an entry point of the group ``fedora.messages``. A class
may say its topic; most topics are published with a prefix before it, such as
``org.fedoraproject.prod``. :data:`PACKAGES` knows the applications of Fedora by the word after that
prefix.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from consumer_framework.core.topics import MANY, ONE, matches, words_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint

GROUP = "fedora.messages"

_WEBHOOK = "webhook-to-fedora-messaging-messages"
# The first word of an application's topics -> the packages on PyPI that have its schemas.
PACKAGES: dict[str, tuple[str, ...]] = {
    "anitya": ("anitya-schema",),
    "ansible": ("fedorainfra-ansible-messages",),
    "badges": ("tahrir-messages",),
    "bodhi": ("bodhi-messages",),
    "bugzilla": ("bugzilla2fedmsg-schema",),
    "buildsys": ("koji-fedoramessaging-messages",),
    "ci": ("ci-messages",),
    "copr": ("copr-messaging",),
    "discourse": (_WEBHOOK, "discourse2fedmsg-messages"),
    "fas": ("noggin-messages",),
    "fedocal": ("fedocal-messages",),
    "fedora_elections": ("fedora-elections-messages",),
    "fedora_image_uploader": ("fedora-image-uploader-messages",),
    "fmn": ("fmn-messages",),
    "forgejo": (_WEBHOOK,),
    "git": ("fedorainfra-ansible-messages", "fedora-messaging-git-hook-messages"),
    "github": (_WEBHOOK,),
    "gitlab": (_WEBHOOK,),
    "happinesspacket": ("happinesspacket-schema",),
    "hotness": ("fedora-messaging-the-new-hotness-schema",),
    "ipa": ("journal-to-fedora-messaging-messages",),
    "kerneltest": ("kerneltest-messages",),
    "mailman": ("mailman3-fedmsg-plugin-schemas",),
    "maubot": ("maubot-fedora-messages",),
    "mdapi": ("mdapi-messages",),
    "meetbot": ("meetbot-messages",),
    "nuancier": ("nuancier-messages",),
    "pagure": ("pagure-messages",),
    "planet": ("fedora-planet-messages",),
    "pretix": (_WEBHOOK,),
    "wiki": ("mediawiki-messages",),
}
# org.fedoraproject.prod, io.pagure.prod, org.release-monitoring.stg, with a wildcard perhaps.
_PREFIX = re.compile(r"^(?:[a-z0-9-]+|\*)\.(?:[a-z0-9-]+|\*)\.(?:prod|stg|dev|\*)\.")
# The version at the end of a schema's name: `.v2`, `_v1`, `V1`.
_VERSION = re.compile(r"(?:[._]v|V)(\d+)$")
_WILDCARDS = re.compile(r"(?:\.[*#])+$")


@dataclass(frozen=True, slots=True)
class Schema:
    """One installed schema.

    Attributes:
        name: The name of its entry point, which messages carry.
        package: The package that has it.
        version: The version of that package.
        place: Its class as ``MODULE:CLASS``.
        topic: The topic of the class; "" if it names none.
        severity: The severity of its messages as a number of :mod:`logging`.
        is_deprecated: True if its package calls it so.
        body: The JSON schema of the body.
        fault: The reason why the class cannot be loaded; "" if it can.
    """

    name: str
    package: str
    version: str
    place: str
    topic: str = ""
    severity: int = logging.INFO
    is_deprecated: bool = False
    body: Any = None
    fault: str = ""

    @property
    def subject(self) -> str:
        """The name without its version: ``bodhi.update.edit`` of ``bodhi.update.edit.v2``."""
        return _VERSION.sub("", self.name)

    @property
    def generation(self) -> int:
        """The version at the end of the name; 0 without one."""
        found = _VERSION.search(self.name)
        return int(found[1]) if found else 0


def installed() -> list[Schema]:
    """Return the installed schemas by name. A class that cannot be loaded has a fault."""
    return sorted(map(_schema, entry_points(group=GROUP)), key=lambda schema: schema.name)


def named(name: str) -> Schema | None:
    """Return the installed schema with that name."""
    return next((_schema(point) for point in entry_points(group=GROUP, name=name)), None)


def names() -> list[str]:
    """Return the names of the installed schemas, without loading their classes."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def _schema(point: EntryPoint) -> Schema:
    package, version = (point.dist.name, point.dist.version) if point.dist else ("", "")
    try:
        kind = point.load()
        topic, severity = getattr(kind, "topic", ""), getattr(kind, "severity", logging.INFO)
        return Schema(
            point.name,
            package,
            version,
            point.value,
            topic if isinstance(topic, str) else "",
            severity if isinstance(severity, int) else logging.INFO,
            bool(getattr(kind, "deprecated", False)),
            kind.body_schema,
        )
    except Exception as error:  # noqa: BLE001 -- importing runs anybody's code
        fault = f"{type(error).__name__}: {error}"
        return Schema(point.name, package, version, point.value, fault=fault)


@dataclass(frozen=True, slots=True)
class Need:
    """The schemas of a topic.

    Attributes:
        exact: The installed schemas of this very topic, the newest version first.
        others: Installed schemas of the same application, if there is no exact one.
        packages: The packages that have the schemas of the application, if they are known.
    """

    exact: tuple[Schema, ...]
    others: tuple[Schema, ...]
    packages: tuple[str, ...]


def need_of(topic: str, schemas: Iterable[Schema]) -> Need:
    """Find the schemas of a topic.

    Args:
        topic: A topic, or a pattern of topics, with or without its prefix. Wildcards at the end
            stand for all topics there.
        schemas: The installed ones.
    """
    rest = _PREFIX.sub("", topic)
    packages = PACKAGES.get(rest.partition(".")[0], ())
    known = [schema for schema in schemas if schema.name != "base.message"]
    if {ONE, MANY} & set(words_of(topic)):
        # A wildcard at the end asks for everything below it.
        pattern = _WILDCARDS.sub(f".{MANY}", rest)
        exact = [schema for schema in known if matches(pattern, _topic(schema))]
    else:
        exact = [schema for schema in known if _is_of(schema, topic)]
    exact.sort(key=lambda schema: (schema.subject, -schema.generation))
    same = {_normal(package) for package in packages}
    others = () if exact else tuple(s for s in known if _normal(s.package) in same)
    return Need(tuple(exact), others, packages)


def _is_of(schema: Schema, topic: str) -> bool:
    own = _topic(schema)
    return topic == own or topic.endswith(f".{own}")


def _topic(schema: Schema) -> str:
    """Return the topic of a schema's class, or the one that its name suggests, without prefix."""
    return _PREFIX.sub("", schema.topic or schema.subject)


def _normal(package: str) -> str:
    """Normalize the name of a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def is_installed(package: str, schemas: Iterable[Schema]) -> bool:
    """Tell if one of *schemas* is of that package."""
    return any(_normal(schema.package) == _normal(package) for schema in schemas)
