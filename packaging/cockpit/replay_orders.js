// SPDX-License-Identifier: GPL-2.0-or-later
// The orders on quarantined messages: replay one, some or all that are selected, and drop.
//
// A selection is { name, text, count }: of a cause or of a condition, with the number of its messages.

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

/** Return the selection of all messages of a cause. */
export const ofCause = ({ fingerprint, count }) => ({ name: "cause", text: fingerprint, count });

/** Return the selection of all messages that fit a condition. */
export const matching = (where, count) => ({ name: "matching", text: where, count });

const isRow = (line) => "row" in line && "result" in line;
const doneOf = (lines) => lines.filter(isRow).length;

/** Describe a replay under way: its stage, and the failures so far. */
function noteOf(lines) {
    const stage = lines.findLast((line) => "stage" in line);
    const failed = lines.filter((line) => isRow(line) && !FINE.has(line.result)).length;
    const notes = [
        stage && `stage ${stage.stage} of ${stage.stages}, up to ${stage.percent} %`,
        failed && `${failed} without success`,
    ];
    return notes.filter(Boolean).map((note) => `; ${note}`).join("");
}

function resultFor(instance) {
    return (lines, isAborted) => {
        const rows = lines.filter(isRow);
        const failed = rows.filter(({ result }) => !FINE.has(result));
        const end = lines.findLast((line) => "done" in line) ?? {};
        const isStopped = isAborted || ["stopped", "interrupted"].includes(end.ended);
        const why = end.reason ? `: ${end.reason}` : "";
        const isGood = rows.length > 0 && !failed.length;
        return {
            tone: isGood ? "success" : rows.length ? "danger" : "warning",
            title: titleOf(rows.length, rows.length - failed.length),
            text: isStopped ? `The replay was stopped${why}. The other messages are still quarantined.` : "",
            detail: reasonsOf(failed),
            result: isStopped ? "stopped" : isGood ? "done" : "failed",
            next: end.left && isStopped ? replayRest(instance, end.left) : null,
        };
    };
}

function titleOf(count, good) {
    if (count === 0)
        return "No message was run: they are gone, or another replay has them.";
    return count === 1
        ? `The message ${good ? "succeeded" : "did not succeed"}.`
        : `${good} of ${plural(count, "message")} succeeded.`;
}

const MOST_REASONS = 5;

function reasonsOf(failed) {
    const counts = new Map();
    for (const { result, reason } of failed) {
        const text = `${WORDS[result] ?? result}${reason ? `: ${reason}` : ""}`;
        counts.set(text, (counts.get(text) ?? 0) + 1);
    }
    const sorted = [...counts].sort(([, one], [, other]) => other - one);
    return sorted.slice(0, MOST_REASONS).map(([text, count]) => (count > 1 ? `${count} × ${text}` : text)).join("\n");
}

const EFFECT = html`<p>The handler runs them again, oldest first. Nothing is published: no other consumer sees them.
    A message that fails again stays in quarantine.</p>`;

const replay = (instance) => ({ verb: "Replay", lines: true, doneOf, noteOf, resultOf: resultFor(instance) });

/** Replay these rows. */
export function replayRows(instance, rows) {
    const what = rows.length === 1 ? `row ${rows[0]}` : plural(rows.length, "message");
    return { ...replay(instance), title: `Replay ${what} of ${instance}?`, text: EFFECT, total: () => rows.length,
        call: () => ({ name: "replay-rows", values: { instance, rows } }) };
}

/** Replay a message with another body. */
export function replayEdited(instance, row, body) {
    return { ...replay(instance), title: `Replay row ${row} of ${instance} as edited?`, total: () => 1,
        text: html`<p>The edited copy runs in the place of the original, which is kept until the copy succeeds.</p>`,
        call: () => ({ name: "replay-edited", values: { instance, row }, input: body }) };
}

/** Replay the oldest message of a cause. */
export function replayOne(instance, cause) {
    return { ...replay(instance), verb: "Replay one", title: "Replay the oldest message of this cause?", total: () => 1,
        text: html`<p>See whether the cause is mended before you replay the others.</p>${EFFECT}`,
        call: () => ({ name: "replay-cause", values: { instance, text: cause.text, first: "1" } }) };
}

/** Replay all messages of a selection, at once or in stages. */
export function replayAll(instance, { name, text, count }) {
    return { ...replay(instance), verb: "Replay all", title: `Replay ${plural(count, "message")} of ${instance}?`,
        text: EFFECT, total: () => count,
        defaults: { way: count > 1 ? "stages" : "all", ramp: "1,5,20,100", rate: "10/s", stop_at: "5%" },
        fields: fieldsOfStages,
        call: ({ way, ramp, rate, stop_at: stop }) => ({ name: `replay-${name}`, values: {
            instance, text, ...way === "stages" ? { ramp, rate, stop_at: stop } : {} } }) };
}

/** Go on with a replay that was stopped, for the messages that are left of it. */
export function replayRest(instance, left) {
    return { ...replay(instance), verb: "Go on", title: `Replay the other ${plural(left, "message")} of ${instance}?`,
        text: EFFECT, total: () => left, call: () => ({ name: "replay-rest", values: { instance } }) };
}

function fieldsOfStages({ way, ramp, rate, stop_at: stop }, set) {
    const field = (key, label, value, help) => html`
        <${Field} id=${`fm-${key}`} label=${label} value=${value} help=${help} onValue=${(text) => set(key, text)} />`;
    return html`
        <${Field} id="fm-way" label="How" value=${way} onValue=${(text) => set("way", text)}
            choices=${[["stages", "in stages"], ["all", "all at once"]]} />
        ${way === "stages" && html`
            ${field("ramp", "Stages", ramp, "Percentages of all messages that have run at the end of each stage.")}
            ${field("stop_at", "Stop when so many of a stage fail", stop, "")}
            ${field("rate", "At most", rate, "Messages in a second (s), minute (m) or hour (h).")}`}`;
}

const LOST = html`<p>Dropped messages are lost for ever.${" "}
    <code>fm-consumer quarantine export</code> keeps a copy.</p>`;

const drop = { verb: "Drop", danger: true, text: LOST, resultOf: dropped };

function dropped({ dropped: rows, kept = [] }) {
    const text = kept.length ? `${plural(kept.length, "message")} kept: gone, or in a replay meanwhile.` : "";
    const title = `${plural(rows.length, "message")} dropped.`;
    return { tone: kept.length ? "warning" : "success", title, text, result: "done" };
}

/** Drop these rows. */
export function dropRows(instance, rows) {
    const what = rows.length === 1 ? `row ${rows[0]}` : plural(rows.length, "message");
    return { ...drop, title: `Drop ${what} of ${instance}?`, expects: rows.length > 1 ? rows.length : null,
        call: () => ({ name: "drop-rows", values: { instance, rows } }) };
}

/** Drop all messages of a selection, if there are still as many as the operator saw. */
export function dropAll(instance, { name, text, count }) {
    return { ...drop, verb: "Drop all", title: `Drop ${plural(count, "message")} of ${instance}?`, expects: count,
        call: () => ({ name: `drop-${name}`, values: { instance, text, number: String(count) } }) };
}
