// SPDX-License-Identifier: GPL-2.0-or-later
// Lines of JSON in text that comes in pieces.

export class Lines {
    /** @param {function(object)} onLine Called with each object. */
    constructor(onLine) {
        this._onLine = onLine;
        this._rest = "";
    }

    /** Add text; calls back for each line that it completes. */
    add(text) {
        const lines = (this._rest + text).split("\n");
        this._rest = lines.pop();
        for (const line of lines.filter((each) => each.trim()))
            this._onLine(JSON.parse(line));
    }
}
