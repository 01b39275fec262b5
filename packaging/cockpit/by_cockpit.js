// SPDX-License-Identifier: GPL-2.0-or-later
// The transport of Cockpit: programs by its bridge, and the sockets of running instances.

import { TransportError } from "./transport_error.js";

const KINDS = {
    "not-found": "missing",
    "access-denied": "denied",
    "authentication-failed": "login",
    "not-authorized": "denied",
};

// Codes of HTTP from here on are refusals.
const REFUSED = 400;

export async function runInCockpit(call, options) {
    // A running instance answers some calls itself, and no program has to start.
    if (call.live && await askInstance(call.live, options))
        return { exit: 0, err: "" };
    return runProgram(call, options);
}

async function runProgram({ argv }, { input = "", onText, signal }) {
    const process = globalThis.cockpit.spawn(argv, { superuser: "try", err: "message" });
    process.stream(onText);
    process.input(input);
    try {
        await stoppable(process, signal);
        return { exit: 0, err: "" };
    } catch (error) {
        return endOfProcess(error, signal);
    }
}

async function stoppable(running, signal) {
    const stop = () => running.close("cancelled");
    signal?.addEventListener("abort", stop);
    try {
        await running;
    } finally {
        signal?.removeEventListener("abort", stop);
    }
}

function endOfProcess(error, signal) {
    if (signal?.aborted)
        return { exit: 130, err: "" };
    // A program that could not be started has a status, too, which means nothing.
    if (error.problem in KINDS)
        throw new TransportError(KINDS[error.problem], error.message ?? error.problem);
    if (error.exit_status !== null && error.exit_status !== undefined)
        return { exit: error.exit_status, err: error.message ?? "" };
    if (error.exit_signal)
        return { exit: 128, err: `ended by the signal ${error.exit_signal}` };
    throw new TransportError(KINDS[error.problem] ?? "lost", error.message ?? String(error.problem));
}

/**
 * Ask a running instance on its control socket; return true if it answered.
 *
 * Every failure is left to the command, which knows the reason and the cure.
 */
async function askInstance({ sockets, path }, { onText, signal }) {
    for (const unix of sockets) {
        const request = globalThis.cockpit.http({ unix, superuser: "try" }).get(path);
        let heard = false;
        let status = null;
        request.response((code) => { status = code; });
        // Cockpit streams the document of a refusal, too.
        request.stream((text) => {
            if (status >= REFUSED)
                return;
            heard = true;
            onText(text);
        });
        await stoppable(request, signal).catch(() => null);
        if (heard || signal?.aborted)
            return true;
    }
    return false;
}
