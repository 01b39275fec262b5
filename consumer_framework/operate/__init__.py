# SPDX-License-Identifier: GPL-2.0-or-later
"""Acts on instances from outside: the functions behind the commands.

``status`` and ``scaling`` look at the instances of this host and change their number, ``workers``
knows the names of workers, ``units`` installs the units, ``check`` examines an instance before it
starts, ``explain`` predicts the fate of a message, ``offline`` works on the store of a stopped
instance, and ``api_store`` reads that of a running one for users who may not open its file.

``page`` serves the page for browsers where Cockpit is not installed.

Nothing here runs inside an instance. Of the runtime it uses the assembly, the control socket and
the state files only, and nothing here prints.
"""
