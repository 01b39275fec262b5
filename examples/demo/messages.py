# SPDX-License-Identifier: GPL-2.0-or-later
"""Invented messages of real Fedora applications, in the order in which they would arrive.

Each package of the stream walks the whole way: upstream releases a version, somebody opens a
pull request, Koji builds it, and Bodhi takes the update to the stable repository. The packages
and the people do not exist. Each body has the fields that its schema requires. It also has the
fields that the `str()`, `url` or `summary` of its message class reads.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from typing import Any

from fedora_messaging.message import Message, get_class

Body = dict[str, Any]

# Fedora's applications publish below this topic; Anitya's topics are already complete.
TOPIC_PREFIX = "org.fedoraproject.prod."
DIST_GIT = "https://src.fedoraproject.org"
KOJI = "https://koji.fedoraproject.org"


class SchemaMissingError(RuntimeError):
    """The package with a message's schema is not installed."""


@dataclass(frozen=True)
class Release:
    """A new version of one package, and the people who bring it to Fedora."""

    package: str
    old: str
    new: str
    packager: str
    reviewer: str
    number: int
    """Identifies this release: the ids of its story are derived from it."""

    @property
    def nvr(self) -> str:
        """Name, version and release of the build, as Koji names it."""
        return f"{self.package}-{self.new}-1.fc43"

    @property
    def commit(self) -> str:
        """Hash of the commit that updates the spec file."""
        return sha256(self.nvr.encode()).hexdigest()[:40]


RELEASES = (
    Release("lanternfish", "2.3.1", "2.4.0", "hazel", "rowan", 1),
    Release("python-sundial", "0.9.4", "1.0.0", "aspen", "hazel", 2),
    Release("rust-pebble", "0.17.2", "0.18.0", "rowan", "juniper", 3),
)


def build(schema: str, body: Body) -> Message:
    """Make a message of the class that is registered under the name *schema*.

    Raises:
        SchemaMissingError: If no installed package has this schema.
        jsonschema.ValidationError: If *body* does not fit the schema.
    """
    message_class = get_class(schema)
    if message_class is Message:
        raise SchemaMissingError(f"no installed package has the message schema {schema}")
    topic = message_class.topic
    if not topic.startswith("org."):
        topic = TOPIC_PREFIX + topic
    message = message_class(topic=topic, body=body)
    message.validate()
    return message


def seconds() -> int:
    """Return the time in the form that Anitya and Koji's tasks use."""
    return int(datetime.now(UTC).timestamp())


# Messages of Anitya, on release-monitoring.org


def version_found(release: Release) -> Message:
    """Anitya finds the new upstream version."""
    project = {
        "backend": "custom",
        "created_on": seconds() - 86400 * 365,
        "ecosystem": f"https://{release.package}.example.org",
        "homepage": f"https://{release.package}.example.org",
        "id": 90000 + release.number,
        "name": release.package,
        "regex": None,
        "updated_on": seconds(),
        "version": release.new,
        "version_url": f"https://{release.package}.example.org/releases",
        "versions": [release.new, release.old],
    }
    found = {
        "agent": "anitya",
        "old_version": release.old,
        "packages": [{"distro": "Fedora", "package_name": release.package}],
        "project": project,
        "upstream_versions": [release.new],
        "versions": [release.new, release.old],
        "stable_versions": [release.new, release.old],
    }
    return build(
        "anitya.project.version.update.v2",
        {"distro": None, "project": project, "message": found},
    )


# Messages of Pagure, on src.fedoraproject.org


def person(name: str) -> Body:
    """Describe a user as Pagure does."""
    return {
        "name": name,
        "fullname": name.capitalize(),
        "url_path": f"user/{name}",
        "full_url": f"{DIST_GIT}/user/{name}",
    }


def repository(release: Release) -> Body:
    """Describe the package's repository as Pagure does."""
    path = f"rpms/{release.package}"
    return {
        "id": 70000 + release.number,
        "name": release.package,
        "namespace": "rpms",
        "fullname": path,
        "url_path": path,
        "full_url": f"{DIST_GIT}/{path}",
        "description": f"The {release.package} package",
        "date_created": str(seconds() - 86400 * 365),
        "date_modified": str(seconds()),
        "user": person(release.packager),
        "tags": [],
        "close_status": [],
        "milestones": {},
    }


def pull_request(release: Release) -> Body:
    """Describe the pull request that updates the package."""
    now = str(seconds())
    return {
        "id": release.number,
        "uid": f"{release.number:032x}",
        "title": f"Update to {release.new}",
        "full_url": f"{DIST_GIT}/rpms/{release.package}/pull-request/{release.number}",
        "branch": "rawhide",
        "project": repository(release),
        "branch_from": f"update-{release.new}",
        "repo_from": person(release.packager),
        "remote_git": None,
        "date_created": now,
        "updated_on": now,
        "last_updated": now,
        "closed_at": None,
        "user": person(release.packager),
        "assignee": None,
        "status": "Open",
        "commit_start": release.commit,
        "commit_stop": release.commit,
        "closed_by": None,
        "initial_comment": f"Upstream released {release.new}.",
        "cached_merge_status": "FFORWARD",
        "threshold_reached": None,
        "tags": [],
        "comments": [],
    }


def request_opened(release: Release) -> Message:
    """A packager opens a pull request."""
    body = {"agent": release.packager, "pullrequest": pull_request(release)}
    return build("pagure.pull-request.new", body)


def request_commented(release: Release) -> Message:
    """A reviewer comments on it."""
    comment = {
        "id": 500 + release.number,
        "comment": "Scratch build is fine here.",
        "user": person(release.reviewer),
        "date_created": str(seconds()),
    }
    request = pull_request(release) | {"comments": [comment]}
    return build(
        "pagure.pull-request.comment.added",
        {"agent": release.reviewer, "pullrequest": request},
    )


def request_merged(release: Release) -> Message:
    """The reviewer merges it."""
    request = pull_request(release) | {
        "status": "Merged",
        "closed_at": str(seconds()),
        "closed_by": person(release.reviewer),
    }
    return build(
        "pagure.pull-request.closed",
        {"agent": release.reviewer, "pullrequest": request, "merged": True},
    )


def commit_pushed(release: Release) -> Message:
    """The commit arrives on the branch."""
    body = {
        "agent": release.reviewer,
        "forced": False,
        "repo": repository(release),
        "old_commit": sha256(release.old.encode()).hexdigest()[:40],
        "branch": "refs/heads/rawhide",
        "authors": [person(release.packager)],
        "total_commits": 1,
        "start_commit": release.commit,
        "end_commit": release.commit,
    }
    return build("pagure.git.receive", body)


# Messages of Koji


def task(release: Release, *, finished: bool) -> Body:
    """Describe the build task, with the one child that compiles."""
    number = 130000000 + release.number * 10
    parent = {
        "id": number,
        "url": f"{KOJI}/koji/taskinfo?taskID={number}",
        "method": "build",
        "arch": "noarch",
        "host_id": 400,
        "host_name": "builder-x86-00.example.org",
        "request": [f"{release.package}.src.rpm", "rawhide"],
        "result": None,
        "start_time": float(seconds()),
        "completion_time": float(seconds()) if finished else None,
        "create_time": float(seconds()),
        "state": 2 if finished else 1,
        "parent": None,
    }
    child = parent | {
        "id": number + 1,
        "url": f"{KOJI}/koji/taskinfo?taskID={number + 1}",
        "method": "buildArch",
        "arch": "x86_64",
        "parent": number,
        "result": {"rpms": [f"{release.nvr}.x86_64.rpm"], "logs": ["build.log"]},
        "children": [],
    }
    return parent | {"children": [child] if finished else []}


def build_changed(release: Release, old: int | None, new: int) -> Message:
    """Koji's build goes from one state to the next."""
    number = 2800000 + release.number
    now = datetime.now(UTC).isoformat()
    finished = new != 0
    body = {
        "name": release.package,
        "version": release.new,
        "release": "1.fc43",
        "epoch": None,
        "attribute": "state",
        "build_id": number,
        "owner": release.packager,
        "instance": "primary",
        "url": f"{KOJI}/koji/buildinfo?buildID={number}",
        "files_base_url": "https://kojipkgs.fedoraproject.org",
        "task_id": 130000000 + release.number * 10,
        "task": task(release, finished=finished),
        "request": [f"git+{DIST_GIT}/rpms/{release.package}.git#{release.commit}", "rawhide", {}],
        "old": old,
        "new": new,
        "creation_time": now,
        "completion_time": now if finished else None,
    }
    return build("koji_fedoramessaging.build.BuildStateChangeV1", body)


def build_started(release: Release) -> Message:
    """The build starts."""
    return build_changed(release, None, 0)


def build_finished(release: Release) -> Message:
    """The build is complete."""
    return build_changed(release, 0, 1)


def build_tagged(release: Release) -> Message:
    """Koji tags the build for testing."""
    body = {
        "build_id": 2800000 + release.number,
        "name": release.package,
        "version": release.new,
        "release": "1.fc43",
        "tag_id": 60000,
        "tag": "f43-updates-testing-pending",
        "user": "bodhi",
        "owner": release.packager,
        "instance": "primary",
    }
    return build("koji_fedoramessaging.tag.TagV1", body)


# Messages of Bodhi


def update(release: Release, status: str, request: str | None) -> Body:
    """Describe the update as Bodhi does."""
    return {
        "alias": f"FEDORA-2030-{0xABC000 + release.number:010x}",
        "builds": [{"nvr": release.nvr}],
        "release": {"name": "F43"},
        "request": request,
        "status": status,
        "user": {"name": release.packager},
    }


def testing_requested(release: Release) -> Message:
    """The packager submits the update to testing."""
    body = {"agent": release.packager, "update": update(release, "pending", "testing")}
    return build("bodhi.update.request.testing.v1", body)


def testing_reached(release: Release) -> Message:
    """The update is in the testing repository."""
    return build("bodhi.update.complete.testing.v1", {"update": update(release, "testing", None)})


def update_commented(release: Release) -> Message:
    """A tester gives karma."""
    comment = {
        "karma": 1,
        "text": f"Works for me. Thanks @{release.packager}",
        "timestamp": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
        "update": update(release, "testing", None),
        "user": {"name": release.reviewer},
    }
    return build("bodhi.update.comment.v1", {"comment": comment})


def karma_reached(release: Release) -> Message:
    """The update has enough karma."""
    body = {"status": "stable", "update": update(release, "testing", "stable")}
    return build("bodhi.update.karma.threshold.v1", body)


def stable_requested(release: Release) -> Message:
    """The packager submits the update to stable."""
    body = {"agent": release.packager, "update": update(release, "testing", "stable")}
    return build("bodhi.update.request.stable.v1", body)


def stable_reached(release: Release) -> Message:
    """The update is in the stable repository."""
    return build("bodhi.update.complete.stable.v1", {"update": update(release, "stable", None)})


STORY: Sequence[Callable[[Release], Message]] = (
    version_found,
    request_opened,
    request_commented,
    request_merged,
    commit_pushed,
    build_started,
    build_finished,
    build_tagged,
    testing_requested,
    testing_reached,
    update_commented,
    karma_reached,
    stable_requested,
    stable_reached,
)

ONE_ROUND = len(STORY) * len(RELEASES)
"""Messages until every package is stable."""


def endless() -> Iterator[Message]:
    """Yield the story of every package over and over, all packages one step at a time."""
    while True:
        for step in STORY:
            for release in RELEASES:
                yield step(release)


def stream(count: int) -> Iterator[Message]:
    """Yield *count* valid messages; after `ONE_ROUND` they repeat bodies under new ids."""
    return islice(endless(), count)
