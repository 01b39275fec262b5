# SPDX-License-Identifier: GPL-2.0-or-later
"""The operator at the other end of a connection: identity, rights, and the trace of orders.

The kernel names the user and the process of a peer (``SO_PEERCRED``, unix(7)). In the sandbox of
our unit it shows every user but root and the instance's own as "nobody" (``PrivateUsers=``,
systemd.exec(5)), and ``ProtectProc=`` hides the peer's login. So a client tells its login itself,
in a header. It is recorded, and gives no right.

Root and the user of the process have every right. The mode of the socket decides about others. The
members of the group ``fm-operators`` can connect; they may look and operate.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import socket
import struct
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer_framework.core.log_fields import OPERATOR_LOGIN, OPERATOR_PID, OPERATOR_UID
from consumer_framework.core.text import clipped, printable

from .routes import Refusal, Right, right_of

if TYPE_CHECKING:
    from consumer_framework.core.log_fields import Fields

    from .routes import Route
    from .schema import Request

_log = logging.getLogger(__name__)

# The header with the login of a client.
LOGIN_HEADER = "FM-Login"
# pid, uid and gid of a peer, each an int (unix(7)).
_CREDENTIALS = struct.Struct("3i")
# Characters of a login (useradd(8) allows 32).
_LONGEST_LOGIN = 64
# The login uid of a process that no login began (proc(5)).
_NO_LOGIN = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Operator:
    """The user who gives an order.

    Attributes:
        uid: The user of the peer's process, as this process sees it.
        pid: The process.
        login: The login that the peer claims; "" for none.
    """

    uid: int
    pid: int
    login: str = ""

    def __str__(self) -> str:
        return f"{self.login or 'somebody'} (uid {self.uid}, pid {self.pid})"

    def may(self, right: Right) -> bool:
        """Tell whether the operator has *right*."""
        return right is not Right.ADMINISTER or self.uid in {0, os.geteuid()}

    @property
    def fields(self) -> Fields:
        """The fields of a log line about an order."""
        known = {OPERATOR_UID: str(self.uid), OPERATOR_PID: str(self.pid)}
        return {**known, **({OPERATOR_LOGIN: self.login} if self.login else {})}


# The operator on whose order the present task, or thread, acts. Read it where an order begins, and
# not later: tasks that are started meanwhile inherit it.
ORDERED_BY: ContextVar[Operator | None] = ContextVar("ORDERED_BY", default=None)


def order_fields() -> Fields:
    """Return the fields of a log line about the present order; none without an operator."""
    operator = ORDERED_BY.get()
    return operator.fields if operator is not None else {}


def who_orders() -> str:
    """Return the words for the operator of the present order."""
    operator = ORDERED_BY.get()
    return str(operator) if operator is not None else "an operator"


def short_name() -> str:
    """Return the login of the operator of the present order, or else the number of the user."""
    operator = ORDERED_BY.get()
    if operator is None:
        return "an operator"
    return operator.login or f"user {operator.uid}"


def trace_of(order: str) -> str:
    """Return one line for people about the present *order*, such as ``"replay"``."""
    return f"{order} by {who_orders()} at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def operator_at(connection: socket.socket, login: str = "") -> Operator:
    """Return the operator at the other end of a Unix socket.

    Args:
        connection: The socket.
        login: The login that the peer claims.
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return Operator(uid, pid, clipped(printable(login), _LONGEST_LOGIN))


def this_user() -> Operator:
    """Return the operator who runs this process."""
    return Operator(os.getuid(), os.getpid(), login_of_this_process())


def login_of_this_process() -> str:
    """Return the login that began this process, before sudo; "" if nobody knows it."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        number = int(Path("/proc/self/loginuid").read_text(encoding="ascii"))
        if number != _NO_LOGIN:
            return pwd.getpwuid(number).pw_name
    if before_sudo := os.environ.get("SUDO_USER"):
        return printable(before_sudo)
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.getuid()).pw_name
    return ""


def admit(operator: Operator, route: Route, request: Request[Any]) -> None:
    """Let *operator* make *request*, and leave a trace of an order.

    Raises:
        Refusal: The operator may not.
    """
    call = f"{route.method} {route.path}"
    right = right_of(route, request)
    if not operator.may(right):
        _log.warning("%s is refused: %s", operator, call, extra=operator.fields)
        why = f"{call} is for root and the user of this process; use sudo, or ask an administrator"
        raise Refusal(HTTPStatus.FORBIDDEN, why)
    ORDERED_BY.set(operator)
    if right is not Right.LOOK:
        _log.info("%s orders %s", operator, call, extra=operator.fields)
