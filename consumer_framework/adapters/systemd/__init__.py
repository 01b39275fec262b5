# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd, seen from a service and from an administrator's command.

The service notifies its manager (:mod:`.notify`), logs to the journal (:mod:`.journald`), finds
its credentials (:mod:`.credentials`) and watches its control group (:mod:`.cgroup`). A command
asks about units and starts them (:mod:`.systemctl`, the only module that runs systemd's programs),
reads and writes unit files (:mod:`.unit_files`), and knows the accounts that services run as
(:mod:`.accounts`).

Decisions about instances live in ``operate``, and the words of a configuration in ``settings``.
"""
