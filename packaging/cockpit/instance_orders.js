// SPDX-License-Identifier: GPL-2.0-or-later
// The orders to one instance: pause, resume, reload, restart, start and stop.

import { clock, plural } from "./format.js";
import { html } from "./view.js";
import { Field } from "./widgets.js";

const done = (title) => () => ({ tone: "success", title, result: "done" });

const BY_OPERATOR = /^by .+ \(uid \d+/u;

/** Return the orders that make sense for an instance as it is now. */
export function instanceOrders(one) {
    if (!one.isActive)
        return [start(one)];
    // The breaker pauses an instance, too, and then an operator may do so besides.
    const gate = one.condition !== "paused" ? [pause(one)] :
        BY_OPERATOR.test(one.reason) ? [resume(one)] : [resume(one), pause(one)];
    return [...gate, reload(one), ...one.hasUnit ? [restart(one), stop(one)] : []];
}

function pause({ name }) {
    return {
        title: `Pause ${name}?`, verb: "Pause",
        text: html`<p>It takes no more messages until you resume or restart it. They wait in its queues, which may
            have a limit. Running handlers finish. A replay that you order runs all the same.</p>`,
        defaults: { reason: "" },
        fields: ({ reason }, set) => html`<${Field} id="fm-reason" label="Reason" value=${reason}
            onValue=${(text) => set("reason", text)} help="Others see it in the status." />`,
        call: ({ reason }) => ({ name: "pause", values: { instance: name, reason } }),
        resultOf: gateResult(`${name} is paused.`),
    };
}

// A pause of an operator is one reason of several: the breaker, or a lost connection, may remain.
const gateResult = (title) => ({ instances: [{ is_paused: isPaused, reasons }] }) => {
    if (isPaused || !reasons.length)
        return { tone: "success", title, result: "done" };
    const still = "The pause has ended, but it takes no messages yet.";
    return { tone: "warning", title: still, text: reasons.join("; "), result: "done" };
};

function resume({ name }) {
    return {
        title: `Resume ${name}?`, verb: "Resume", text: html`<p>It takes messages again.</p>`,
        call: () => ({ name: "resume", values: { instance: name } }),
        resultOf: gateResult(`${name} takes messages again.`),
    };
}

function reload({ name }) {
    return {
        title: `Reload the configuration of ${name}?`, verb: "Reload",
        text: html`<p>The file is checked first. One that is wrong is refused, and nothing changes.</p>`,
        call: () => ({ name: "reload", values: { instance: name } }), resultOf: reloaded,
    };
}

function reloaded({ instances: [report] }) {
    const problems = (report.problems ?? []).map(problemText).join("\n");
    const failed = (title) => ({ tone: "danger", title, detail: problems, result: "failed" });
    if (report.result === "refused")
        return failed("The file is refused; the old settings stay.");
    if (!["unchanged", "reloaded"].includes(report.result))
        return failed(`${report.instance} does not run.`);
    const waiting = (report.changes ?? []).filter((change) => change.takes === "restart").map(({ path }) => path);
    return {
        tone: waiting.length ? "warning" : "success", result: "done",
        title: report.result === "unchanged"
            ? "The file has not changed."
            : `${plural(report.changes.length, "change")} read.`,
        text: waiting.length ? `These wait for a restart: ${waiting.join(", ")}.` : "",
    };
}

const problemText = ({ path, message, cure }) =>
    `${path ? `${path}: ` : ""}${message}${cure ? `; ${cure}` : ""}`;

/** Log more, or less, for a while. */
export function logLevel(name) {
    return {
        title: `Set the log level of ${name}?`, verb: "Set",
        text: html`<p>The level of its file comes back by itself.</p>`,
        defaults: { level: "DEBUG", age: "10m" },
        fields: ({ level, age }, set) => html`
            <${Field} id="fm-level" label="Level" value=${level} onValue=${(text) => set("level", text)}
                choices=${["DEBUG", "INFO", "WARNING", "ERROR"].map((one) => [one, one])} />
            <${Field} id="fm-age" label="For" value=${age} onValue=${(text) => set("age", text)}
                help="Such as 30s, 10m or 1h." />`,
        call: ({ level, age }) => ({ name: "log-level", values: { instance: name, level, age } }),
        resultOf: ({ level, until }) =>
            done(`${name} logs with the level ${level} until ${clock(until)}.`)(),
    };
}

function byUnit(verb, name, text, result, danger = false) {
    return { title: `${verb} ${name}?`, verb, danger, text: html`<p>${text}</p>`,
        call: () => ({ name: verb.toLowerCase(), values: { instance: name } }), resultOf: done(result) };
}

const restart = ({ name }) => byUnit("Restart", name,
    "Running handlers finish first. The messages that it has go back to the broker, and are delivered again.",
    `${name} was restarted.`);

const stop = ({ name }) => byUnit("Stop", name,
    "Running handlers finish first. Messages wait in its queues until it is started.", `${name} is stopped.`, true);

const start = ({ name }) => byUnit("Start", name, "systemd starts its service.", `${name} was started.`);
