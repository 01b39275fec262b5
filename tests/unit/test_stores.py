# SPDX-License-Identifier: GPL-2.0-or-later
import logging

from consumer_framework.adapters.flight import Flight
from consumer_framework.core.settings import Framework
from consumer_framework.host.stores import open_stores
from consumer_framework.testing import make_delivery


def test_a_message_that_a_process_died_with_is_named_with_its_fields(tmp_path, caplog):
    open_stores(tmp_path, "sample", Framework()).close()
    flight, _ = Flight.open(tmp_path, 1)
    flight.took_off(make_delivery(message_id="id-1"))
    # Not landed: as by a process that is killed.
    flight.close()
    with caplog.at_level(logging.WARNING):
        open_stores(tmp_path, "sample", Framework()).close()
    (record,) = caplog.records
    assert "the process died while message id-1 of " in record.getMessage()
    assert record.FM_MESSAGE_ID == "id-1"
