// SPDX-License-Identifier: GPL-2.0-or-later
// The calls of calls.json: arguments from values, and JSON from the output.

import { Lines } from "./lines.js";
import { isCockpit, run } from "./transport.js";
import { TransportError } from "./transport_error.js";

/** A problem as the operator sees it: a title, a cure, and the text of the program. */
export class Problem extends Error {
    constructor(title, cure = "", text = "") {
        super(title);
        this.cure = cure;
        this.text = text;
    }
}

let table = null;

async function load() {
    table ??= fetch("calls.json").then((answer) => answer.json());
    return table;
}

/**
 * Return the argv of a call.
 *
 * @param {object} known The document of calls.json.
 * @param {string} name The call.
 * @param {object} values Strings, arrays of strings for {rows}, true for an option without a value; none is empty.
 * @throws {Problem} A value does not match its pattern.
 */
export function argvOf(known, name, values) {
    const { argv, options = {} } = known.calls[name];
    const filled = argv.flatMap((word) => fill(known, word, (key) => values[key]));
    const given = Object.entries(options).filter(([key]) => key in values);
    return [...filled, ...given.flatMap(([key, words]) =>
        words.flatMap((word) => fill(known, word, () => values[key])))];
}

/** Return { sockets, path } of a call that a running instance answers itself; null for others. */
function liveOf(known, name, values) {
    const { path } = known.calls[name];
    if (!path)
        return null;
    return { path, sockets: known.sockets.flatMap((word) => fill(known, word, (key) => values[key])) };
}

function isGiven(value) {
    return value !== undefined && value !== null && value !== "" && value !== false;
}

function fill(known, word, valueOf) {
    const [, before, key, after] = word.match(/^([^{]*)\{(\w+)\}(.*)$/) ?? [];
    if (key === undefined)
        return [word];
    const pattern = new RegExp(`^(?:${known.values[key]})$`, "u");
    return [valueOf(key)].flat().map((value) => {
        if (!pattern.test(String(value)))
            throw new Problem(`“${value}” cannot be used as ${key.replace("_", " ")}.`);
        return `${before}${value}${after}`;
    });
}

/**
 * Run a call and return the JSON document that it prints.
 *
 * @throws {Problem} It failed.
 */
export async function ask(name, values = {}, options = {}) {
    let text = "";
    await start(name, values, { ...options, onText: (part) => { text += part; } });
    try {
        return text.trim() ? JSON.parse(text) : null;
    } catch {
        throw new Problem("The answer is not understood.", UPDATE, text.slice(0, 500));
    }
}

/**
 * Run a call that prints a JSON object on each line; return its exit code.
 *
 * @param {{onLine: function(object), input: string, signal: AbortSignal}} options The signal ends the call.
 * @throws {Problem} It failed.
 */
export async function follow(name, values, { onLine, ...options }) {
    const lines = new Lines(onLine);
    return start(name, values, { ...options, onText: (part) => lines.add(part) });
}

async function start(name, choices, options) {
    const known = await load();
    const values = Object.fromEntries(Object.entries(choices).filter(([, value]) => isGiven(value)));
    const call = { name, argv: argvOf(known, name, values), values, live: liveOf(known, name, values) };
    try {
        const end = await run(call, options);
        const fine = known.calls[name].fine ?? [0];
        if (fine.includes(end.exit) || options.signal?.aborted)
            return end.exit;
        throw problemOf(call, end);
    } catch (error) {
        throw error instanceof TransportError ? problemOfTransport(call, error) : error;
    }
}

const UPDATE = "Update the package consumer-framework, so that it is as new as this page.";
const ADMINISTRATOR = isCockpit
    ? "Turn on administrative access at the top of the page."
    : "Run fm-consumer web as root, or as the user of the instance.";

const TRANSPORT_PROBLEMS = {
    missing: ({ argv }) => [`${argv[0]} is not installed on this host.`,
        "Install the package consumer-framework, and load this page again."],
    denied: () => ["This account may not do that.", ADMINISTRATOR],
    login: () => ["You are not logged in any more.", isCockpit
        ? "Log in again."
        : "Open the address that fm-consumer web printed; it is valid once. Start the command again for a new one."],
    lost: () => ["The host does not answer.", isCockpit
        ? "Look at the connection, and load this page again."
        : "Start fm-consumer web again: it ends when nobody uses it."],
};

function problemOfTransport(call, error) {
    const [title, cure] = TRANSPORT_PROBLEMS[error.kind](call);
    return new Problem(title, cure, error.message);
}

const DENIED = /may not be read by this user|permission|not permitted|access denied|administrative|authentication/iu;

/** Turn the end of a program into a problem. */
export function problemOf({ argv }, { exit, err }) {
    const text = err.trim().replace(/^fm-consumer: /gmu, "");
    if (exit === 127)
        return problemOfTransport({ argv }, new TransportError("missing", text));
    if (/No such (command|option)/u.test(text))
        return new Problem("The fm-consumer of this host is older than this page.", UPDATE, text);
    const [title, ...cures] = (text.split("\n").at(-1) || `${argv[0]} ended with ${exit}`).split("; ");
    const cure = [DENIED.test(text) ? ADMINISTRATOR : "", sentence(cures.join("; "))].filter(Boolean).join(" ");
    // A name keeps its small letter: "builds does not run."
    const isName = argv.includes(title.split(" ")[0]);
    return new Problem(isName ? `${title}.` : sentence(title), cure, text.includes("\n") ? text : "");
}

/** Return *text* as a sentence: with a capital and a full stop. */
export function sentence(text) {
    const trimmed = text.trim();
    return trimmed && `${trimmed[0].toUpperCase()}${trimmed.slice(1)}${/[.!?]$/u.test(trimmed) ? "" : "."}`;
}
