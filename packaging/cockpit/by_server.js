// SPDX-License-Identifier: GPL-2.0-or-later
// The transport of `fm-consumer web`: POST run.

import { Lines } from "./lines.js";
import { TransportError } from "./transport_error.js";

export async function runByServer({ name, values }, { input = "", onText, signal }) {
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
