# SPDX-License-Identifier: GPL-2.0-or-later
"""What every Notifier does; a suite names its own `notifier` and `manager` fixtures.

`manager` is what the service manager knows: `is_ready`, `is_stopping`, `status_line`, the seconds
of each of the `extensions`, and how many `restart_resets` there were.
"""


class NotifierSuite:
    def test_the_manager_knows_nothing_before_it_is_told(self, notifier, manager):
        assert not manager.is_ready
        assert not manager.is_stopping
        assert manager.status_line == ""

    def test_a_status_makes_nothing_ready(self, notifier, manager):
        notifier.status("connecting")
        assert manager.status_line == "connecting"
        assert not manager.is_ready
        assert not manager.is_stopping

    def test_readiness_comes_with_its_status(self, notifier, manager):
        notifier.ready("consuming")
        assert manager.is_ready
        assert manager.status_line == "consuming"

    def test_readiness_outlasts_every_later_status(self, notifier, manager):
        notifier.ready("consuming")
        notifier.status("waiting for the broker")
        assert manager.is_ready
        assert not manager.is_stopping
        assert manager.status_line == "waiting for the broker"

    def test_readiness_may_be_announced_again(self, notifier, manager):
        notifier.ready("consuming")
        notifier.status("waiting for the broker")
        notifier.ready("consuming")
        assert manager.status_line == "consuming"

    def test_stopping_comes_with_its_status_and_needs_no_readiness(self, notifier, manager):
        notifier.stopping("stopping")
        assert manager.is_stopping
        assert not manager.is_ready
        assert manager.status_line == "stopping"
        notifier.status("stopped")
        assert manager.status_line == "stopped"

    def test_more_time_is_asked_for_each_time_anew_and_changes_nothing_else(
        self, notifier, manager
    ):
        notifier.status("connecting")
        notifier.extend(15.0)
        notifier.extend(15.0)
        notifier.extend(0.25)
        assert manager.extensions == [15.0, 15.0, 0.25]
        assert manager.status_line == "connecting"
        assert not manager.is_ready
        assert not manager.is_stopping

    def test_a_restart_reset_changes_nothing_else(self, notifier, manager):
        notifier.ready("consuming")
        notifier.restart_reset()
        assert manager.restart_resets == 1
        assert manager.status_line == "consuming"
        assert not manager.is_stopping
