# SPDX-License-Identifier: GPL-2.0-or-later
"""Says in words why there is no TLS connection: what OpenSSL and the broker's alerts mean."""

from __future__ import annotations

import re
import ssl

# What OpenSSL's reasons end with; alerts are those of RFC 8446, section 6.2.
_WORDS = {
    "certificate verify failed": "the broker's certificate is refused: tls.ca_cert does not vouch "
    "for it, or it has ended",
    "alert certificate required": "the broker demands a client certificate: give tls.certfile and "
    "tls.keyfile",
    "alert handshake failure": "the broker refuses TLS with this client: it may demand a client "
    "certificate (tls.certfile and tls.keyfile)",
    "alert certificate expired": "the broker refuses the client certificate of tls.certfile: it "
    "has ended",
    "alert certificate revoked": "the broker refuses the client certificate of tls.certfile: it "
    "is revoked",
    "alert unknown ca": "the broker refuses the client certificate of tls.certfile: it does not "
    "know who issued it",
    "alert bad certificate": "the broker refuses the client certificate of tls.certfile",
    "alert certificate unknown": "the broker refuses the client certificate of tls.certfile",
    "alert unsupported certificate": "the broker refuses the client certificate of tls.certfile",
    # An alert may be lost with the connection.
    "unexpected eof while reading": "the broker ended the TLS connection without a word",
    "eof occurred in violation of protocol": "the broker ended the TLS connection without a word",
    "wrong version number": "the port does not speak TLS: is it the one for amqp://?",
}


_HANG_UPS = ("unexpected eof while reading", "eof occurred in violation of protocol")


def is_hang_up(error: object) -> bool:
    """Whether the other side ended the connection, and said nothing."""
    return _reason(error).endswith(_HANG_UPS)


def words(error: object) -> str:
    """Say why TLS failed; "" where *error* is none of TLS, or one that nobody needs words for."""
    reason = _reason(error)
    return next((text for end, text in _WORDS.items() if reason.endswith(end)), "")


def _reason(error: object) -> str:
    """OpenSSL's own words, as far as it is said."""
    match error:
        case BaseException(args=[[*_, (_, _, str(reason))]]):
            # pyOpenSSL's: a list of (library, function, reason).
            return reason
        case ssl.SSLError(reason=str(reason)):
            return reason.lower().replace("_", " ")
    # pika keeps no more than the text of what it caught.
    found = re.search(r"\[SSL: ([A-Z0-9_]+)\]|(EOF occurred in violation of protocol)", str(error))
    return (found[1] or found[2]).lower().replace("_", " ") if found else ""
