// SPDX-License-Identifier: GPL-2.0-or-later
// The orders on quarantined messages: replay one, some or all of a cause, and drop.

import { plural } from "./format.js";
import { html } from "./view.js";
import { Field } from "./widgets.js";

const FINE = new Set(["succeeded", "reject"]);
const WORDS = {
    succeeded: "succeeded",
    failed: "failed again",
    skipped: "skipped",
    defer: "deferred by the handler",
    reject: "dropped by the handler",
    halt: "halted the instance",
};

const isRow = (line) => "row" in line && "result" in line;

/** Return the number of messages that a replay has run. */
export const doneOf = (lines) => lines.filter(isRow).length;

function noteOf(lines) {
    const failed = lines.filter((line) => isRow(line) && !FINE.has(line.result)).length;
    return failed ? `, ${failed} not successful` : "";
}

function resultOf(lines, isStopped) {
    const rows = lines.filter(isRow);
    const good = rows.filter(({ result }) => FINE.has(result)).length;
    const stop = lines.find((line) => line.stopped || line.stop);
    const reasons = [...countsOf(rows.filter(({ result }) => !FINE.has(result))
        .map(({ result, reason }) => `${WORDS[result] ?? result}${reason ? `: ${reason}` : ""}`))]
        .map(([reason, count]) => `${count} × ${reason}`).slice(0, 5).join("\n");
    if (!rows.length)
        return { tone: "warning", title: isStopped ? "Stopped; no message was run." : "No message was run.",
            text: "They are gone, or another replay has them.", result: isStopped ? "stopped" : "failed" };
    const title = `${good} of ${plural(rows.length, "message")} succeeded.`;
    const text = isStopped || stop ? "The replay was stopped; the other messages are still quarantined." : "";
    const isGood = good === rows.length;
    return { tone: isGood ? "success" : "danger", title, text, detail: reasons,
        result: isStopped ? "stopped" : isGood ? "done" : "failed" };
}

function countsOf(values) {
    const counts = new Map();
    values.forEach((value) => counts.set(value, (counts.get(value) ?? 0) + 1));
    return [...counts].sort(([, one], [, other]) => other - one);
}

const EFFECT = html`<p>The handler runs them again, oldest first. Nothing is published: no other consumer sees them.
    A message that fails again stays in quarantine.</p>`;

const replay = { verb: "Replay", lines: true, doneOf, noteOf, resultOf };

/** Replay these rows. */
export function replayRows(instance, rows) {
    const what = rows.length === 1 ? `row ${rows[0]}` : plural(rows.length, "message");
    return { ...replay, title: `Replay ${what} of ${instance}?`, text: EFFECT, total: () => rows.length,
        call: () => ({ name: "replay-rows", values: { instance, rows } }) };
}

/** Replay a message with another body. */
export function replayEdited(instance, row, body) {
    return { ...replay, title: `Replay row ${row} of ${instance} as edited?`, total: () => 1,
        text: html`<p>The edited copy runs in the place of the original, which is kept until the copy has succeeded.</p>`,
        call: () => ({ name: "replay-edited", values: { instance, row }, input: body }) };
}

/** Replay the oldest message of a cause. */
export function replayOne(instance, cause) {
    return { ...replay, verb: "Replay one", title: `Replay the oldest message of this cause?`, total: () => 1,
        text: html`<p>See whether the cause is mended before you replay the others.</p>${EFFECT}`,
        call: () => ({ name: "replay-cause", values: { instance, text: cause.fingerprint, first: "1" } }) };
}

/** Replay all messages of a cause, at once or in growing steps. */
export function replayAll(instance, cause) {
    return { ...replay, verb: "Replay all", title: `Replay ${plural(cause.count, "message")} of ${instance}?`,
        text: EFFECT, total: () => cause.count,
        defaults: { way: "ramp", ramp: "1,5,20,100", rate: "10/s", stop_at: "5%" },
        fields: rampFields,
        call: ({ way, ramp, rate, stop_at: stop }) => ({ name: "replay-cause", values: {
            instance, text: cause.fingerprint, ...way === "ramp" ? { ramp, rate, stop_at: stop, yes: true } : { yes: true } } }) };
}

function rampFields({ way, ramp, rate, stop_at: stop }, set) {
    const field = (key, label, value, help) => html`
        <${Field} id=${`fm-${key}`} label=${label} value=${value} help=${help} onValue=${(text) => set(key, text)} />`;
    return html`
        <${Field} id="fm-way" label="How" value=${way} onValue=${(text) => set("way", text)}
            choices=${[["ramp", "in growing steps"], ["all", "all at once"]]} />
        ${way === "ramp" && html`
            ${field("ramp", "Steps", ramp, "Messages in each step; the last step repeats.")}
            ${field("rate", "At most", rate, "Messages in a time, such as 10/s.")}
            ${field("stop_at", "Stop when so many of a step fail", stop, "")}`}`;
}

const LOST = html`<p>Dropped messages are lost for ever.
    <code>fm-consumer quarantine export</code> keeps a copy.</p>`;

const drop = { verb: "Drop", danger: true, text: LOST, resultOf: dropped };

function dropped(answer) {
    const { dropped: rows, kept = [] } = answer;
    const text = kept.length ? `${plural(kept.length, "message")} kept: gone, or in a replay meanwhile.` : "";
    return { tone: kept.length ? "warning" : "success", title: `${plural(rows.length, "message")} dropped.`, text, result: "done" };
}

/** Drop these rows. */
export function dropRows(instance, rows) {
    const what = rows.length === 1 ? `row ${rows[0]}` : plural(rows.length, "message");
    return { ...drop, title: `Drop ${what} of ${instance}?`, expects: rows.length > 1 ? rows.length : null,
        call: () => ({ name: "drop-rows", values: { instance, rows } }) };
}

/** Drop all messages of a cause. */
export function dropAll(instance, cause) {
    return { ...drop, verb: "Drop all", title: `Drop ${plural(cause.count, "message")} of ${instance}?`,
        expects: cause.count, call: () => ({ name: "drop-cause", values: { instance, text: cause.fingerprint } }) };
}
