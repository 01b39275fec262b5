// SPDX-License-Identifier: GPL-2.0-or-later
// The view of one quarantined message: its facts, its tracebacks, its body and its edit.

import { diff, shortened } from "./diff.js";
import { useOrders } from "./dialogs.js";
import { bytes, duration, moment, plural } from "./format.js";
import { InstanceView } from "./instance.js";
import { usePolled } from "./polled.js";
import { dropRows, replayEdited, replayRows } from "./replay_orders.js";
import { go, linkTo } from "./router.js";
import { html, useState } from "./view.js";
import { Button, Facts } from "./widgets.js";

export function Message({ instance, row }) {
    const { data, problem, at, refresh } = usePolled("message", { instance, row }, 0);
    const [isEditing, setIsEditing] = useState(false);
    // A message that succeeded, or was dropped, is here no more.
    const [dialog, order] = useOrders(({ result }) => (result === "done" ? go([instance, "quarantine"]) : refresh()));
    const isQuarantined = data?.state === "quarantined";
    const actions = data && isQuarantined && html`
        <${Button} onClick=${() => order(replayRows(instance, [row]))}>Replay<//>
        <${Button} aria-pressed=${String(isEditing)} onClick=${() => setIsEditing(!isEditing)}>Edit<//>
        <${Button} kind="secondary danger" onClick=${() => order(dropRows(instance, [row]))}>Drop<//>`;
    return html`
        <${InstanceView} instance=${instance} name="message" parent="causes" title=${`Row ${row}`} problem=${problem} at=${at}
            busy=${!data && !problem} actions=${actions}>
            ${problem && html`<p><a href=${linkTo([instance, "quarantine"])}>All quarantined messages</a></p>`}
            ${data && html`
                ${isEditing && html`<${Editor} message=${data} onReplay=${(body) => order(replayEdited(instance, row, body))} />`}
                <${Facts} label="Message" facts=${factsOf(instance, data)} />
                <${Attempts} failures=${data.failures ?? []} />
                <${Text} title=${bodyTitle(data)} text=${bodyOf(data) ?? data.message?.body_base64 ?? ""} />
                <${Text} title="Headers" text=${pretty(data.message?.headers ?? data.properties?.headers ?? {})} />`}
            ${dialog}
        <//>`;
}

function factsOf(instance, data) {
    return [
        ["State", data.state],
        ["Why", data.reason],
        ["Cause", data.fingerprint && html`<a href=${linkTo([instance, "quarantine", "rows"], { cause: data.fingerprint })}>${data.fingerprint}</a>`],
        ["Topic", html`<span class="fm-code">${data.routing_key}</span>`],
        ["Message id", html`<span class="fm-code">${data.message_id || "none"}</span>`],
        ["Queue", data.queue],
        ["Exchange", data.exchange],
        ["Received", when(data.received)],
        ["Here since", when(data.created)],
        ["Attempts", String(data.attempts)],
        ["Crashes", data.crashes ? `the process died ${plural(data.crashes, "time")} while it was handled` : ""],
        ["Ordering key", data.lane],
        ["Behind", data.behind && html`<a href=${linkTo([instance, "quarantine", String(data.behind)])}>row ${data.behind}</a>`],
        ["Edited from", data.parent && html`<a href=${linkTo([instance, "quarantine", String(data.parent)])}>row ${data.parent}</a>`],
        ["Last order", data.ordered_by],
        ["Steps that are done", Object.keys(data.steps ?? {}).join(", ")],
    ];
}

const when = (at) => (at ? `${moment(at)}, ${duration(Date.now() / 1000 - at)} ago` : "");
const pretty = (value) => JSON.stringify(value, null, 2);
// JavaScript rounds large numbers, and so would an edit: the command's own text is exact.
const bodyOf = ({ text, message }) => text ?? (message && "body" in message ? pretty(message.body) : null);
const bodyTitle = (data) => `Body, ${bytes(data.size)}${bodyOf(data) === null ? ", not JSON, as base64" : ""}`;

function Text({ title, text }) {
    return html`<section class="fm-part"><h2>${title}</h2>
        <pre class="fm-pre" tabindex="0" aria-label=${title}>${text}</pre></section>`;
}

/** The failed attempts, the latest first and open. */
function Attempts({ failures }) {
    return html`<section class="fm-part">
        <h2>${plural(failures.length, "failed attempt")}</h2>
        ${[...failures].reverse().map((failure, place) => html`
            <details key=${failures.length - place} open=${place === 0}>
                <summary>Attempt ${failures.length - place}, ${when(failure.at)}: <span class="fm-error">${failure.message || failure.error}</span></summary>
                <pre class="fm-pre" tabindex="0" aria-label=${`Traceback of attempt ${failures.length - place}`}>${failure.traceback || `${failure.error}: ${failure.message}`}</pre>
            </details>`)}
    </section>`;
}

function Editor({ message, onReplay }) {
    const before = bodyOf(message) ?? "{}";
    const [text, setText] = useState(before);
    const problem = problemOf(text);
    const isChanged = !problem && text.trim() !== before;
    return html`
        <section class="fm-part fm-editor" aria-label="Edit">
            <div>
                <label for="fm-body"><h2>Edited body</h2></label>
                <textarea id="fm-body" class="fm-input fm-body" spellcheck="false" rows="16" value=${text}
                    aria-describedby="fm-body-problem" aria-invalid=${String(Boolean(problem))}
                    onInput=${(event) => setText(event.target.value)}></textarea>
                <p id="fm-body-problem" class="fm-error" role="status">${problem}</p>
                <${Button} kind="primary" disabled=${!isChanged} onClick=${() => onReplay(text)}>Replay as edited<//>
            </div>
            <div role="region" aria-label="Changes">
                <h2>Changes</h2>
                ${text === before
                    ? html`<p>None yet.</p>`
                    : html`<pre class="fm-pre" tabindex="0" aria-label="Changed lines">${shortened(diff(before, text)).map(([sign, line], place) => html`
                        <span key=${place} class=${SHADES[sign] ?? ""}>${sign} ${line}${"\n"}</span>`)}</pre>`}
            </div>
        </section>`;
}

const SHADES = { "-": "fm-removed", "+": "fm-added" };

function problemOf(text) {
    try {
        const body = JSON.parse(text);
        const isObject = typeof body === "object" && body !== null && !Array.isArray(body);
        return isObject ? "" : "That is no JSON object: write {…}.";
    } catch (error) {
        return `That is no JSON: ${error.message}.`;
    }
}
