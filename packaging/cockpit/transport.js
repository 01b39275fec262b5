// SPDX-License-Identifier: GPL-2.0-or-later
// Runs programs on the host, by Cockpit's bridge or by `fm-consumer web`.
//
// Both ways have one promise: `run` calls `onText` with the standard output as it comes, and
// returns { exit, err } when the program has ended. It raises TransportError where the program
// could not be started or its host is gone.

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

export const isCockpit = "cockpit" in globalThis;

/**
 * Run a call.
 *
 * @param {{name: string, argv: string[], values: object}} call As calls.js made it.
 * @param {{input: string, onText: function(string), signal: AbortSignal}} options The signal ends the program.
 */
export const run = isCockpit ? runInCockpit : runByServer;

const COCKPIT_KINDS = {
    "not-found": "missing",
    "access-denied": "denied",
    "authentication-failed": "login",
    "not-authorized": "denied",
};

async function runInCockpit({ argv }, { input = "", onText, signal }) {
    const process = globalThis.cockpit.spawn(argv, { superuser: "try", err: "message" });
    const stop = () => process.close("cancelled");
    signal?.addEventListener("abort", stop);
    process.stream(onText);
    process.input(input);
    try {
        await process;
        return { exit: 0, err: "" };
    } catch (error) {
        return endOfProcess(error, signal);
    } finally {
        signal?.removeEventListener("abort", stop);
    }
}

function endOfProcess(error, signal) {
    if (signal?.aborted)
        return { exit: 130, err: "" };
    if (error.exit_status !== null && error.exit_status !== undefined)
        return { exit: error.exit_status, err: error.message ?? "" };
    if (error.exit_signal)
        return { exit: 128, err: `ended by the signal ${error.exit_signal}` };
    throw new TransportError(COCKPIT_KINDS[error.problem] ?? "lost", error.message ?? String(error.problem));
}

async function runByServer({ name, values }, { input = "", onText, signal }) {
    try {
        const answer = await fetch("run", {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify({ call: name, values, input }),
            signal,
        });
        if (!answer.ok)
            throw await refusal(answer);
        return await readAnswer(answer, onText);
    } catch (error) {
        if (signal?.aborted)
            return { exit: 130, err: "" };
        if (error instanceof TransportError)
            throw error;
        throw new TransportError("lost", "fm-consumer web does not answer");
    }
}

async function refusal(answer) {
    const problem = await answer.json().catch(() => ({}));
    const kind = { 401: "login", 403: "denied" }[answer.status] ?? "lost";
    return new TransportError(kind, problem.detail ?? problem.title ?? `HTTP ${answer.status}`);
}

async function readAnswer(answer, onText) {
    const end = { exit: null, err: "" };
    const lines = new Lines((part) => {
        if ("out" in part)
            onText(part.out);
        end.err += part.err ?? "";
        end.exit = part.exit ?? end.exit;
    });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
        const { done, value } = await reader.read();
        if (done)
            break;
        lines.add(value);
    }
    if (end.exit === null)
        throw new TransportError("lost", "fm-consumer web ended before the command did");
    return end;
}

/** Cuts text into lines of JSON, as it comes. */
export class Lines {
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
