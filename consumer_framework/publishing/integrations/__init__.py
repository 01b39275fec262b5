# SPDX-License-Identifier: GPL-2.0-or-later
"""Publishing from frameworks: one module each, which imports that framework and no other.

The middleware of each follows one rule: a message that is published while a request runs is stored
only if the request succeeds. The status of its response is below 400, and no exception left the
application. The messages are stored before the first byte of the response leaves, so a response of
success means that its messages will be sent.
"""
