# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of the flight recorder: processes killed at any byte, damage, disks that fail."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from consumer_framework.adapters.flight import (
    RECORD,
    REMEMBERED,
    CrashRecord,
    Flight,
    Records,
    image,
    read_records,
)
from consumer_framework.core.attempt import History
from consumer_framework.core.errors import StoreError
from consumer_framework.testing import make_delivery

A = make_delivery(message_id="a" * 40)
B = make_delivery(message_id="b", queue="another queue")


def names(found):
    return [(one.queue, one.message_id, one.crashes) for one in found.in_flight]


def crashed(delivery, times):
    return delivery._replace(history=History(crashes=times))


# Killed at any byte.


class KilledError(BaseException):
    """The process is no more."""


class Dying(bytearray):
    """Memory that takes so many bytes, one after the other, and then kills the process."""

    bytes_left = sys.maxsize
    backwards = False

    def __setitem__(self, where, what):
        if isinstance(where, int):
            where, what = slice(where, where + 1), bytes([what])
        for at, byte in self._steps(zip(range(where.start, where.stop), what, strict=True)):
            if not self.bytes_left:
                raise KilledError
            self.bytes_left -= 1
            super().__setitem__(at, byte)

    def _steps(self, steps):
        return reversed(list(steps)) if self.backwards else steps


def verdicts(action, *, crashed=(), backwards=False):
    """Yield the records that are read after *action* was killed, once for each byte it writes.

    *action* gets a recorder, and a function that it calls where the killing begins.
    """
    for killed_at in range(10_000):
        memory = Dying(image(1, crashed))
        memory.backwards = backwards

        def part_begins(memory=memory, killed_at=killed_at):
            memory.bytes_left = killed_at

        try:
            action(Flight(memory), part_begins)
        except KilledError:
            yield read_records(bytes(memory[RECORD:]))
        else:
            yield read_records(bytes(memory[RECORD:]))
            return


@pytest.mark.parametrize("backwards", [False, True])
def test_killed_at_any_byte_of_a_take_off_the_message_is_in_flight_or_not(backwards):
    def take_off(recorder, part_begins):
        recorder.landed(recorder.took_off(crashed(B, 200)))
        part_begins()
        recorder.took_off(crashed(A, 3))

    seen = list(verdicts(take_off, backwards=backwards))

    assert len(seen) > 60
    assert seen[:-1] == [Records()] * (len(seen) - 1)
    assert names(seen[-1]) == [("queue", "a" * 40, 4)]


def test_killed_at_any_byte_of_a_landing_the_message_is_in_flight_or_not():
    def land(recorder, part_begins):
        place = recorder.took_off(A)
        part_begins()
        recorder.landed(place)

    seen = [names(verdict) for verdict in verdicts(land)]

    assert seen == [[("queue", "a" * 40, 1)], []]


def test_killed_at_any_byte_of_forgetting_the_message_is_remembered_or_not():
    (before,) = verdicts(lambda recorder, _: recorder.took_off(A))

    def forget(recorder, part_begins):
        part_begins()
        recorder.forget(A)

    seen = [verdict.remembered for verdict in verdicts(forget, crashed=before.in_flight)]

    assert seen == [before.in_flight, ()]


def test_a_record_that_is_half_overwritten_is_torn_and_charges_no_message():
    """No process leaves such a record, but a loss of power may."""
    old, new = image(1), image(1)
    Flight(old).took_off(crashed(A, 1))
    Flight(new).took_off(crashed(B, 2))
    whole = [read_records(bytes(contents[RECORD:])) for contents in (old, new)]
    changed = [at for at in range(len(old)) if old[at] != new[at]]

    mixed = [read_records(bytes(new[RECORD:at] + old[at:])) for at in changed]

    assert len(mixed) > 20
    assert mixed[0] == whole[0]
    # The newer record is shorter: the bytes of the old record behind it do not count.
    assert {verdict for verdict in mixed if verdict.torn == 0} <= set(whole)
    assert Records(torn=1) in mixed


def test_any_flipped_byte_of_a_record_is_found():
    contents = image(1)
    place = Flight(contents).took_off(A)
    whole = bytes(contents)
    label_ends = whole.index(b"a" * 40) + 40

    for at in range(place, label_ends):
        flipped = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        assert read_records(flipped[RECORD:]) == Records(torn=1)


# A real kill.

CHILD = """
import os, resource, sys
from pathlib import Path
from consumer_framework.adapters.flight import Flight
from consumer_framework.core.attempt import History
from consumer_framework.testing import make_delivery

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
recorder, found = Flight.open(Path(sys.argv[1]), 2)
poison = make_delivery(message_id="poison", queue="q")
recorder.took_off(poison._replace(history=History(crashes=recorder.crashes_of(poison))))
say(found.torn, *(f"{one.message_id}:{one.crashes}" for one in found.in_flight))
number = 0
while True:
    number += 1
    say("before", number)
    place = recorder.took_off(make_delivery(message_id=str(number), queue="q" * (number % 200)))
    say("took_off", number)
    say("landing", number)
    recorder.landed(place)
    say("fast", number)
    for number in range(number + 1, number + 51):
        recorder.landed(recorder.took_off(make_delivery(message_id=str(number))))
"""


def run_and_kill(directory, how, seconds):
    """Run a child and kill it; return the records that it found, and its last output."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, directory], stdout=subprocess.PIPE)
    assert child.stdout is not None
    found = child.stdout.readline().decode().split()
    time.sleep(seconds)
    child.send_signal(how)
    said = child.communicate()[0].decode().splitlines()
    assert child.returncode == -how
    return found, said[-1] if said else "fast 0"


def may_be_in_flight(said):
    state, number = said.split()[0], int(said.split()[1])
    match state:
        case "before" | "landing":
            return [[], [f"{number}:1"]]
        case "took_off":
            return [[f"{number}:1"]]
        case _:
            return [[]] + [[f"{fast}:1"] for fast in range(number, number + 52)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGABRT])
def test_a_killed_process_leaves_the_messages_in_flight_at_any_moment(tmp_path, how):
    chance = random.Random(3)  # noqa: S311 -- when to kill is no secret
    (torn, *in_flight), said = run_and_kill(tmp_path, how, 0)
    assert (torn, in_flight) == ("0", [])

    for kills in range(1, 21):
        found, next_said = run_and_kill(tmp_path, how, chance.uniform(0, 0.01))
        torn, *in_flight = found
        assert torn == "0"
        # This message is in flight all the time, in every process.
        assert f"poison:{kills}" in in_flight
        in_flight.remove(f"poison:{kills}")
        assert in_flight in may_be_in_flight(said)
        said = next_said


# The file.


def remnant(directory):
    """Return the file of a process that died with message A."""
    recorder, _ = Flight.open(directory, 2)
    recorder.took_off(A)
    return directory / "flight"


def test_the_next_process_reads_the_messages_in_flight(tmp_path):
    recorder, found = Flight.open(tmp_path, 2)
    assert found == Records()
    recorder.took_off(A)
    recorder.took_off(crashed(B, 4))

    _, found = Flight.open(tmp_path, 1)

    assert sorted(names(found)) == [("another queue", "b", 5), ("queue", "a" * 40, 1)]


def test_a_crashed_message_without_an_id_has_its_queue(tmp_path):
    recorder, _ = Flight.open(tmp_path, 1)
    recorder.took_off(make_delivery(message_id=None, queue="queue"))

    assert names(Flight.open(tmp_path, 1)[1]) == [("queue", "", 1)]


def test_in_flight_are_the_messages_of_the_last_death_with_all_their_crashes(tmp_path):
    remnant(tmp_path)
    recorder, _ = Flight.open(tmp_path, 2)
    recorder.took_off(B)

    recorder, found = Flight.open(tmp_path, 2)
    assert names(found) == [("another queue", "b", 1)]
    assert [one.message_id for one in found.remembered] == ["a" * 40]


def test_a_take_off_with_a_smaller_count_does_not_lower_the_crashes(tmp_path):
    recorder, _ = Flight.open(tmp_path, 2)
    recorder.took_off(crashed(A, 6))
    recorder, _ = Flight.open(tmp_path, 2)
    recorder.took_off(A)

    recorder, found = Flight.open(tmp_path, 2)

    assert names(found) == [("queue", "a" * 40, 7)]
    assert recorder.crashes_of(A) == 7


def test_a_message_that_has_not_landed_when_the_file_is_closed_counts_as_crashed(tmp_path):
    recorder, _ = Flight.open(tmp_path, 2)
    recorder.took_off(A)
    recorder.landed(recorder.took_off(B))
    recorder.close()

    assert names(Flight.open(tmp_path, 2)[1]) == [("queue", "a" * 40, 1)]


def test_the_message_that_crashed_longest_ago_is_forgotten_first(tmp_path):
    for number in range(REMEMBERED // 8 + 1):
        recorder, _ = Flight.open(tmp_path, 8)
        for place in range(8):
            recorder.took_off(make_delivery(message_id=f"{number}.{place}"))
        if number == 2:
            # It crashes again, so that it is not the oldest any more.
            recorder.took_off(make_delivery(message_id="0.0"))

    recorder, _ = Flight.open(tmp_path, 8)

    def count(number):
        ids = (f"{number}.{place}" for place in range(8))
        return sum(recorder.crashes_of(make_delivery(message_id=one)) for one in ids)

    assert [count(number) for number in (0, 1, 2, REMEMBERED // 8)] == [1, 7, 8, 8]


def test_all_messages_in_flight_are_remembered_however_many_there_were(tmp_path):
    many = REMEMBERED + 10
    recorder, _ = Flight.open(tmp_path, many)
    for number in range(many):
        recorder.took_off(make_delivery(message_id=str(number)))

    _, found = Flight.open(tmp_path, many)
    recorder, _ = Flight.open(tmp_path, many)

    assert len(found.in_flight) == many
    counts = {recorder.crashes_of(make_delivery(message_id=str(n))) for n in range(many)}
    assert counts == {1}


def test_remembered_messages_never_take_the_places_of_messages_in_flight():
    full = [CrashRecord(bytes([n % 256, n // 256] * 8), b"", 1) for n in range(2 * REMEMBERED)]
    recorder = Flight(image(3, full))
    for _ in range(3):
        recorder.took_off(A)

    with pytest.raises(RuntimeError, match="places"):
        recorder.took_off(A)


@pytest.mark.parametrize("places", [0, -1])
def test_a_recorder_without_a_place_is_refused(tmp_path, places):
    with pytest.raises(ValueError, match="needs a place"):
        Flight.open(tmp_path, places)


def test_the_file_is_private_and_has_its_room_on_the_disk(tmp_path):
    file = remnant(tmp_path)

    status = file.stat()

    assert status.st_mode & 0o777 == 0o600
    assert status.st_blocks * 512 >= status.st_size
    assert [one.name for one in tmp_path.iterdir()] == ["flight"]


# Files that cannot be read.

GARBAGE = {
    "empty": lambda _: b"",
    "text": lambda _: b"what is this?",
    "zeros": lambda whole: bytes(len(whole)),
    "truncated": lambda whole: whole[:-RECORD],
    "header only": lambda whole: whole[:RECORD],
    "too long": lambda whole: whole + bytes(RECORD),
    "newer": lambda whole: whole.replace(b"fm-flight 1", b"fm-flight 2", 1),
    "damaged header": lambda whole: whole.replace(b"bytes", b"bites", 1),
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_file_that_cannot_be_read_is_renamed_with_a_warning(tmp_path, caplog, garbage):
    file = remnant(tmp_path)
    contents = GARBAGE[garbage](file.read_bytes())
    file.write_bytes(contents)

    recorder, found = Flight.open(tmp_path, 1)

    assert found == Records()
    (aside,) = tmp_path.glob("flight.bad-*")
    assert aside.read_bytes() == contents
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(file) in record.getMessage()
    assert aside.name in record.getMessage()
    recorder.took_off(A)
    assert names(Flight.open(tmp_path, 1)[1]) == [("queue", "a" * 40, 1)]


def test_only_the_latest_unreadable_file_is_kept(tmp_path):
    (tmp_path / "flight.bad-20200101T000000Z").write_text("first")
    (tmp_path / "flight.bad-20210101T000000Z").write_text("second")
    (tmp_path / "flight").write_text("third")

    Flight.open(tmp_path, 1)

    (aside,) = tmp_path.glob("flight.bad-*")
    assert aside.read_text() == "third"


def test_a_damaged_record_is_left_out_with_a_warning_and_the_others_count(tmp_path, caplog):
    recorder, _ = Flight.open(tmp_path, 2)
    recorder.took_off(A)
    recorder.took_off(B)
    file = tmp_path / "flight"
    file.write_bytes(file.read_bytes().replace(b"a" * 40, b"a" * 39 + b"b"))

    _, found = Flight.open(tmp_path, 2)

    assert names(found) == [("another queue", "b", 1)]
    assert found.torn == 1
    assert "1 records are damaged" in caplog.text


# Disks and directories that fail.


def test_a_missing_directory_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match=r"missing/flight: No such file or directory"):
        Flight.open(tmp_path / "missing", 1)


def test_a_file_in_the_place_of_the_directory_is_a_store_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/flight: Not a directory"):
        Flight.open(tmp_path / "file", 1)


def test_a_directory_that_cannot_be_written_is_a_store_error():
    with pytest.raises(StoreError, match=r"^/proc/flight: \w"):
        Flight.open(Path("/proc"), 1)


def test_a_directory_in_the_place_of_the_file_is_a_store_error(tmp_path):
    (tmp_path / "flight").mkdir()
    with pytest.raises(StoreError, match=r"flight: Is a directory"):
        Flight.open(tmp_path, 1)


@contextmanager
def no_room(size):
    """Let the kernel refuse files of more than *size* bytes, in this process only."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_on_the_disk_nothing_is_changed(tmp_path):
    file = remnant(tmp_path)
    before = file.read_bytes()

    with no_room(100_000), pytest.raises(StoreError, match=os.strerror(errno.EFBIG)):
        Flight.open(tmp_path, 2)

    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == before
    assert names(Flight.open(tmp_path, 2)[1]) == [("queue", "a" * 40, 1)]


@pytest.mark.parametrize("step", ["os.posix_fallocate", "mmap.mmap", "os.replace"])
def test_a_step_that_fails_while_opening_loses_nothing(tmp_path, monkeypatch, step):
    file = remnant(tmp_path)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(step, fail)
        with pytest.raises(StoreError, match=rf"^{file}: No space left on device$"):
            Flight.open(tmp_path, 2)

    assert list(tmp_path.iterdir()) == [file]
    assert names(Flight.open(tmp_path, 2)[1]) == [("queue", "a" * 40, 1)]


def test_half_a_file_of_a_process_that_died_while_opening_is_replaced(tmp_path):
    remnant(tmp_path)
    (tmp_path / "flight.new").write_bytes(b"half")

    assert names(Flight.open(tmp_path, 2)[1]) == [("queue", "a" * 40, 1)]
    assert [one.name for one in tmp_path.iterdir()] == ["flight"]


# Deaths that the watchdog causes.


def test_only_the_guilty_message_is_charged_with_the_death_that_follows(tmp_path):
    flight, _ = Flight.open(tmp_path, 3)
    for delivery in (A, B, crashed(make_delivery(message_id="c"), 4)):
        flight.took_off(delivery)
    flight.charge_only([B])
    _, found = Flight.open(tmp_path, 3)
    assert names(found) == [("another queue", "b", 1)]


def test_a_handler_that_did_not_return_in_time_is_remembered_until_another_death(tmp_path):
    flight, _ = Flight.open(tmp_path, 3)
    places = [flight.took_off(delivery) for delivery in (crashed(A, 1), B)]
    flight.charge_only([A])
    flight.landed(places[1])
    for _ in range(2):
        flight, found = Flight.open(tmp_path, 3)
        assert (flight.crashes_of(A), flight.has_hung(A)) == (2, True)
        assert not flight.has_hung(B)
    assert found.remembered[0].hung
    # The next death has another cause.
    flight.took_off(crashed(A, 2))
    flight, _ = Flight.open(tmp_path, 3)
    assert (flight.crashes_of(A), flight.has_hung(A)) == (3, False)


def test_a_message_that_is_not_guilty_keeps_its_former_crashes(tmp_path):
    flight, _ = Flight.open(tmp_path, 1)
    flight.took_off(A)
    flight, _ = Flight.open(tmp_path, 1)
    flight.took_off(crashed(A, 1))
    flight.charge_only([])
    flight, found = Flight.open(tmp_path, 1)
    assert found.in_flight == ()
    assert flight.crashes_of(A) == 1


def test_messages_land_as_usual_whether_they_are_guilty_or_not():
    flight = Flight(image(2))
    places = [flight.took_off(delivery) for delivery in (A, B)]
    flight.charge_only([A])
    for place in places:
        flight.landed(place)
    with pytest.raises(ValueError, match="nothing took off"):
        flight.landed(places[1])
    assert {flight.took_off(A), flight.took_off(B)} == set(places)
