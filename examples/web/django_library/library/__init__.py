# SPDX-License-Identifier: GPL-2.0-or-later
"""A library with a web API: Django, and its own database connection.

The messages about a new book share the transaction that stores the book. A loan changes no table:
the response of its request decides about the message.
"""
