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
import { Button, Code, Facts, Text, Wrapped } from "./widgets.js";

export function Message({ instance, row }) {
    const { data, view, refresh } = usePolled("message", { instance, row }, 0);
    const [isEditing, setIsEditing] = useState(false);
    // A message that succeeded, or was dropped, is here no more.
    const [dialog, order] = useOrders(({ result }) => (result === "done" ? go([instance, "quarantine"]) : refresh()));
    const isQuarantined = data?.state === "quarantined";
    const actions = data && isQuarantined && html`
        <${Button} onClick=${() => order(replayRows(instance, [row]))}>Replay<//>
        <${Button} aria-pressed=${String(isEditing)} onClick=${() => setIsEditing(!isEditing)}>Edit<//>
        <${Button} kind="secondary danger" onClick=${() => order(dropRows(instance, [row]))}>Drop<//>`;
    return html`
        <${InstanceView} instance=${instance} name="message" parent="causes" title=${`Row ${row}`}
            actions=${actions} ...${view}>
            ${view.problem && html`<p><a href=${linkTo([instance, "quarantine"])}>All quarantined messages</a></p>`}
            ${data && html`
                ${isEditing && html`<${Editor} message=${data}
                    onReplay=${(body) => order(replayEdited(instance, row, body))} />`}
                <${Facts} label="Message" facts=${factsOf(instance, data)} />
                <${Attempts} failures=${data.failures ?? []} />
                <${Text} title=${bodyTitle(data)}>${bodyOf(data) ?? data.message?.body_base64 ?? ""}<//>
                <${Text} title="Headers">${pretty(data.message?.headers ?? data.properties?.headers ?? {})}<//>`}
            ${dialog}
        <//>`;
}

function factsOf(instance, data) {
    const rowLink = (row) => row && html`<a href=${linkTo([instance, "quarantine", String(row)])}>row ${row}</a>`;
    const cause = linkTo([instance, "quarantine", "rows"], { cause: data.fingerprint });
    return [
        ["State", data.state],
        ["Why", data.reason],
        ["Cause", data.fingerprint && html`<a href=${cause}>${data.fingerprint}</a>`],
        ["Topic", html`<${Code}>${data.routing_key}<//>`],
        ["Message id", html`<${Code}>${data.message_id || "none"}<//>`],
        ["Queue", data.queue],
        ["Exchange", data.exchange],
        ["Received", when(data.received)],
        ["Here since", when(data.created)],
        ["Attempts", String(data.attempts)],
        ["Crashes", data.crashes ? `the process died ${plural(data.crashes, "time")} while it was handled` : ""],
        ["Ordering key", data.lane],
        ["Behind", rowLink(data.behind)],
        ["Edited from", rowLink(data.parent)],
        ["Last order", data.ordered_by],
        ["Steps that are done", Object.keys(data.steps ?? {}).join(", ")],
    ];
}

const when = (at) => (at ? `${moment(at)}, ${duration(Date.now() / 1000 - at)} ago` : "");
const pretty = (value) => JSON.stringify(value, null, 2);
// JavaScript rounds large numbers, and so would an edit: the command's own text is exact.
const bodyOf = ({ text, message }) => text ?? (message && "body" in message ? pretty(message.body) : null);
const bodyTitle = (data) => `Body, ${bytes(data.size)}${bodyOf(data) === null ? ", not JSON, as base64" : ""}`;

/** The failed attempts, the latest first and open. */
function Attempts({ failures }) {
    return html`<section class="fm-part">
        <h2>${plural(failures.length, "failed attempt")}</h2>
        ${failures.map((failure, place) => html`
            <${Attempt} key=${place} failure=${failure} number=${place + 1}
                isOpen=${place === failures.length - 1} />`).reverse()}
    </section>`;
}

function Attempt({ failure: { at, error, message, traceback }, number, isOpen }) {
    return html`
        <details open=${isOpen}>
            <summary>Attempt ${number}, ${when(at)}: <${Wrapped}>${message || error}<//></summary>
            <pre class="fm-pre" tabindex="0" aria-label=${`Traceback of attempt ${number}`}>
                ${traceback || `${error}: ${message}`}</pre>
        </details>`;
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
                    : html`<${Difference} lines=${shortened(diff(before, text))} />`}
            </div>
        </section>`;
}

function Difference({ lines }) {
    return html`
        <pre class="fm-pre" tabindex="0" aria-label="Changed lines">${lines.map(([sign, line], place) => html`
            <span key=${place} class=${SHADES[sign] ?? ""}>${sign} ${line}${"\n"}</span>`)}</pre>`;
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
