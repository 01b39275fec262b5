# SPDX-License-Identifier: GPL-2.0-or-later
"""Replaces secrets and personal details by invented ones, so that a message may go into a test.

A value is replaced for the key that it has, or for its form:

============ ============================================== ========================
kind         keys, and forms                                replacement
============ ============================================== ========================
secret       password, token, api_key, ...; bearer tokens,  ``secret-1``
             JSON web tokens, passwords in URLs, keys
e-mail       email, ...; ``somebody@example.com``           ``somebody-1@example.org``
person       username, fullname, agent, author, ...         ``somebody-1``
address      ip, ...; IPv4 and IPv6                         ``192.0.2.1``
============ ============================================== ========================

Keys with values within texts count too: JSON in a text, ``password=...``, ``?token=...``, and bytes
that are no message.

The same value has the same replacement everywhere, also within longer texts, so that values that
were equal stay equal. Numbers, true, false and null of personal keys stay; a number that is a
secret becomes 0. The addresses are those for documentation (RFC 2606, RFC 3849, RFC 5737).

A rule may take an innocent value for a detail, or miss one: a person has to look at the result.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from consumer_framework.core.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Kind: TypeAlias = Literal["secret", "e-mail", "person", "address"]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Keys by their words: "userEmail", "user_email" and "User-Email" have the same two.
_KEYS: dict[Kind, frozenset[str]] = {
    "secret": _set(
        "password passwd passphrase pwd secret secrets token tokens apikey api_key access_key "
        "private_key secret_key authorization cookie cookies credential credentials session_id "
        "sessionid otp"
    ),
    "e-mail": _set("email emails e_mail mail email_address"),
    "person": _set(
        "user users username usernames user_name agent agents agent_name author authors owner "
        "owners committer committers submitter reporter assignee maintainer maintainers packager "
        "reviewer nick nickname fullname full_name realname real_name human_name first_name "
        "last_name surname given_name family_name phone"
    ),
    "address": _set("ip ips ipaddress ip_address remote_addr client_ip"),
}
# Accounts of services are no persons.
_SERVICES = _set(
    "admin anitya apache bodhi bot copr fedora fedora-infra git hotness jenkins koji koschei mbs "
    "nobody packit pagure releng root system testing-farm zuul"
)
# Within a person, these keys have the name.
_NAMES = frozenset({"name", "id", "login", "display_name", "displayname"})
# Values of these keys look like addresses.
_VERSIONS = frozenset({"version", "release", "nvr", "nevra", "evr", "versions"})

_REPLACEMENTS: dict[Kind, Callable[[int], str]] = {
    "secret": lambda n: f"secret-{n}",
    "e-mail": lambda n: f"somebody-{n}@example.org",
    "person": lambda n: f"somebody-{n}",
    "address": lambda n: f"192.0.2.{n % 255}",
}

_FORMS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (
        "secret",
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----"
            r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
            r"|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bxox[a-z]-[\w-]{10,}"
            r"|\bAKIA[0-9A-Z]{16}\b"
            r"|(?<=[Bb]earer )[\w.~+/=-]{8,}"
            r"|(?<=://)(?<![^/]/)[^\s/:@]{0,255}:[^\s/@]{1,255}(?=@)"
        ),
    ),
    ("e-mail", re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")),
    (
        "address",
        re.compile(
            r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)"
            r"|(?<![\w.:-])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:-]|\.\w)"
        ),
    ),
)


def _key_of(*kinds: Kind) -> str:
    """Return the pattern of a key of *kinds* within a text."""
    words = "|".join(sorted({w.replace("_", "[_-]?") for kind in kinds for w in _KEYS[kind]}))
    return rf"(?<![\w-])(?P<key>(?i:[\w-]{{0,40}}?(?:{words})))"


# A key with its value within a text, in quotes of JSON, of JSON within JSON, or of Python.
_QUOTED = re.compile(
    _key_of(*_KEYS) + r"""\\*["']?\s{0,3}[:=]\s{0,3}"""
    r"""(?P<open>\\*["'])(?P<value>[^\n]{1,1000}?)(?<!\\)(?P=open)"""
)
# Without quotes most values are words of a sentence, or names in a program.
_BARE = re.compile(
    r"(?P<before>[?&]?)" + _key_of("secret") + r"\s{0,3}[:=]\s{0,3}(?:(?:Bearer|Basic)\s)?"
    r"""(?P<value>[^\s,;&"'()\[\]{}<>\\]{4,255}+)(?![(\[])"""
)
_SHORTEST_BARE = 6
# A shorter name may be a part of anything, and is replaced where it is a whole value only.
_SHORTEST = 4
_EXAMPLES = ("@example.org", "@example.com", "@example.net")


@dataclass
class Anonymizer:
    """Replaces values, the same value always by the same one.

    Args:
        kept: Keys whose values stay, with all below them, in any case.

    Attributes:
        replaced: The replacement of each value that was replaced.
    """

    kept: Iterable[str] = ()
    replaced: dict[str, str] = field(default_factory=dict)
    _counts: dict[Kind, int] = field(default_factory=dict)
    _made: set[str] = field(default_factory=set)
    # Of all values that are replaced; None if there are new ones.
    _known: re.Pattern[str] | None = None

    def __post_init__(self) -> None:
        self.kept = {_words(key) for key in self.kept}

    def learn(self, value: Any) -> None:
        """Find the details of *value*, so that they are replaced wherever they come.

        Call it with everything before the first :meth:`cleaned`.
        """
        self._walk(value, "", None, self._note)

    def cleaned(self, value: Any) -> Any:
        """Return a copy of *value* without the details that are known, whatever its type is."""
        return self._walk(value, "", None, self._replace)

    def text(self, text: str, *, is_version: bool = False) -> str:
        """Return *text* without the details that are known, and without those of a known form."""
        text = self._without_forms(text, is_version=is_version)
        if self._known is None:
            self._known = _any_of(self.replaced)
        return self._known.sub(lambda found: self.replaced[found[0]], text)

    def _without_forms(self, text: str, *, is_version: bool = False) -> str:
        text = redact(text)
        text = _BARE.sub(self._of_bare_key, _QUOTED.sub(self._of_key, text))
        for kind, form in _FORMS:
            if kind == "address" and is_version:
                continue
            text = form.sub(lambda found, kind=kind: self._of_form(kind, found[0]), text)  # type: ignore[misc]
        return text

    # Values, one after the other.

    def _walk(
        self, value: Any, key: str, kind: Kind | None, done: Callable[[Any, str, Kind | None], Any]
    ) -> Any:
        """Apply *done* to each value below *value*, with its key and the kind that the key has."""
        if isinstance(value, dict):
            return {
                self._key(name): inner
                if _words(str(name)) in self.kept
                else self._walk(inner, _words(str(name)), _kind_of(_words(str(name)), kind), done)
                for name, inner in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._walk(inner, key, kind, done) for inner in value]
        return done(value, key, kind)

    def _key(self, name: Any) -> Any:
        return self._without_forms(name) if isinstance(name, str) else name

    def _note(self, value: Any, key: str, kind: Kind | None) -> None:
        if isinstance(value, str):
            if kind is not None and _is_detail(kind, value):
                self._replacement(kind, value)
            self._without_forms(value, is_version=key in _VERSIONS)
        elif isinstance(value, bytes):
            self._without_forms(value.decode(errors="surrogateescape"))

    def _replace(self, value: Any, key: str, kind: Kind | None) -> Any:
        if isinstance(value, str):
            if value in self.replaced and (kind is not None or len(value) >= _SHORTEST):
                return self.replaced[value]
            return self.text(value, is_version=key in _VERSIONS)
        if isinstance(value, bytes):
            # All other bytes stay as they are, valid or not.
            text = value.decode(errors="surrogateescape")
            return self.text(text).encode(errors="surrogateescape")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return 0 if kind == "secret" and is_number else value

    def _of_key(self, found: re.Match[str]) -> str:
        """Replace the value of a key within a text."""
        kind, value = _kind_of(_words(found["key"]), None), found["value"]
        if kind is None or not _is_detail(kind, value):
            return found[0]
        start, end = (place - found.start() for place in found.span("value"))
        return found[0][:start] + self._replacement(kind, value) + found[0][end:]

    def _of_bare_key(self, found: re.Match[str]) -> str:
        is_secret = _kind_of(_words(found["key"]), None) == "secret"
        is_long = len(found["value"]) >= _SHORTEST_BARE
        is_value = found["before"] or (is_long and re.search(r"\d", found["value"]))
        return self._of_key(found) if is_secret and is_value else found[0]

    def _of_form(self, kind: Kind, found: str) -> str:
        if kind == "address" and not _is_address(found):
            return found
        if kind == "e-mail" and found.endswith(_EXAMPLES):
            return found
        return self._replacement(kind, found)

    def _replacement(self, kind: Kind, value: str) -> str:
        if value in self.replaced:
            return self.replaced[value]
        if value in self._made:
            return value
        self._counts[kind] = number = self._counts.get(kind, 0) + 1
        is_long_address = kind == "address" and ":" in value
        made = f"2001:db8::{number:x}" if is_long_address else _REPLACEMENTS[kind](number)
        self.replaced[value] = made
        self._made.add(made)
        self._known = None
        return made


def _any_of(values: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of *values* as whole words, the longest first."""
    long = sorted((v for v in values if len(v) >= _SHORTEST), key=len, reverse=True)
    words = "|".join(map(re.escape, long))
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)" if words else r"(?!)")


def _words(key: str) -> str:
    """Return the words of a key, in lower case with ``_`` between them."""
    return re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)).strip("_").lower()


def _kind_of(key: str, above: Kind | None) -> Kind | None:
    """Return the kind of a key: its own, or that of its last words, or that of the one above it."""
    parts = key.split("_")
    ends = ["_".join(parts[n:]) for n in range(len(parts))]
    for kind, keys in _KEYS.items():
        if keys.intersection(ends):
            return kind
    if above == "secret":
        return above
    return above if above == "person" and key in _NAMES else None


def _is_detail(kind: Kind, value: str) -> bool:
    """Tell whether the whole *value* of a key of *kind* is a detail."""
    if kind == "person":
        # An address has its own form; names in a path or a URL are found if they come elsewhere.
        is_name = "/" not in value and "@" not in value[1:]
        return bool(value) and is_name and value.lower() not in _SERVICES
    return bool(value) and (kind != "address" or _is_address(value))


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    documented = (ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8::/32"))
    is_example = any(address in network for network in documented)
    return not (address.is_loopback or address.is_unspecified or is_example)
