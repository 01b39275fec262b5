// SPDX-License-Identifier: GPL-2.0-or-later
// The failure of a transport.

export class TransportError extends Error {
    /**
     * @param {string} kind "missing" (no such program), "denied", "login" or "lost".
     * @param {string} message The reason, one line.
     */
    constructor(kind, message) {
        super(message);
        this.kind = kind;
    }
}
