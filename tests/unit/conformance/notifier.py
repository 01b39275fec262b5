# SPDX-License-Identifier: GPL-2.0-or-later
"""The promises of the port Notifier; each suite has its own fixtures `notifier` and `manager`.

`manager` has the state that the service manager knows: `is_ready`, `is_reloading`,
`is_stopping`, `is_triggered`, `feeds`, `status_line`, the seconds of each of the `extensions`, and
the number of `restart_resets`.
"""


class NotifierSuite:
    def test_the_manager_knows_nothing_before_it_is_told(self, notifier, manager):
        assert not manager.is_ready
        assert not manager.is_stopping
        assert not manager.is_triggered
        assert manager.feeds == 0
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

    def test_a_reload_is_over_when_readiness_is_announced_again(self, notifier, manager):
        notifier.ready("consuming")
        assert not manager.is_reloading
        notifier.reloading("reloading")
        assert manager.is_reloading
        assert manager.status_line == "reloading"
        notifier.status("a step of it")
        assert manager.is_reloading
        notifier.ready("consuming")
        assert not manager.is_reloading
        assert not manager.is_stopping

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

    def test_each_feed_counts_and_leaves_the_status(self, notifier, manager):
        notifier.ready("consuming")
        for _ in range(3):
            notifier.watchdog()
        assert manager.feeds == 3
        assert manager.status_line == "consuming"
        assert not manager.is_triggered

    def test_a_trigger_comes_with_its_status_and_feeds_nothing(self, notifier, manager):
        notifier.trigger("stuck")
        assert manager.is_triggered
        assert manager.feeds == 0
        assert manager.status_line == "stuck"

    def test_no_service_manager_waits_unless_it_says_so(self, notifier, manager):
        assert notifier.watchdog_seconds == 0
