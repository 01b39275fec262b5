// SPDX-License-Identifier: GPL-2.0-or-later
// The views of quarantined messages: by cause, and the messages of a cause.

import { useOrders } from "./dialogs.js";
import { bytes, number, plural } from "./format.js";
import { InstanceView } from "./instance.js";
import { usePolled } from "./polled.js";
import { dropAll, dropRows, matching, ofCause, replayAll, replayOne, replayRest, replayRows } from "./replay_orders.js";
import { go, linkTo } from "./router.js";
import { html, useState } from "./view.js";
import { Age, Button, Empty, LinkButton, Notice, Table } from "./widgets.js";

const SECONDS = 10;
const CAUSE_COLUMNS = [
    { name: "Messages", right: true },
    { name: "Cause", wide: true },
    { name: "First", right: true },
    { name: "Latest", right: true },
    { name: "Orders", hidden: true },
];

/** The causes of quarantined messages, the most frequent first. */
export function Causes({ instance }) {
    const { data, problem, at, refresh } = usePolled("causes", { instance }, SECONDS);
    const stats = usePolled("stats", { instance }, SECONDS);
    const [dialog, order] = useOrders(() => { refresh(); stats.refresh(); });
    const total = (data ?? []).reduce((sum, cause) => sum + cause.count, 0);
    return html`
        <${InstanceView} instance=${instance} name="causes" title="Quarantine" problem=${problem} at=${at} busy=${!data && !problem}
            actions=${html`<${LinkButton} href=${linkTo([instance, "quarantine", "rows"])}>All messages<//>`}>
            ${stats.data?.replay && html`<${Interrupted} instance=${instance} replay=${stats.data.replay} order=${order} />`}
            ${data && (data.length ? html`
                <p class="fm-summary"><strong>${plural(total, "message")}</strong><span>of ${plural(data.length, "cause")}</span>
                    ${stats.data && html`<span>${bytes(stats.data.bytes)} in the store</span>`}
                    ${stats.data?.blocked_lanes > 0 && html`<span>${plural(stats.data.blocked_lanes, "ordering key")} blocked by them</span>`}</p>
                <${Table} label="Causes" columns=${CAUSE_COLUMNS} rows=${data.map((cause) => causeRow(instance, cause, order))} />`
                : html`<${Empty} title="Nothing is quarantined.">Messages whose handler fails for good are set aside here.<//>`)}
            ${dialog}
        <//>`;
}

/** A replay in stages that has messages left: it was stopped, or it is under way. */
function Interrupted({ instance, replay, order }) {
    const { rows, ran, succeeded, failed } = replay;
    return html`
        <${Notice} tone="info" title=${`A replay has run ${number(ran)} of ${plural(rows, "message")}.`}>
            <p>${number(succeeded)} succeeded, ${number(failed)} failed.</p>
            <${Button} small onClick=${() => order(replayRest(instance, rows - ran))}>Go on<//>
        <//>`;
}

function causeRow(instance, cause, order) {
    const { sample } = cause;
    const others = cause.other_texts ? ` and ${plural(cause.other_texts, "other text")}` : "";
    const button = (text, kind, made) => html`
        <${Button} small kind=${kind} onClick=${() => order(made(instance, ofCause(cause)))}>${text}<//>`;
    return {
        key: cause.fingerprint,
        data: { "data-cause": cause.fingerprint },
        cells: [
            number(cause.count),
            html`
                <a href=${linkTo([instance, "quarantine", "rows"], { cause: cause.fingerprint })}><strong>${cause.fingerprint || "without a cause"}</strong></a>
                <div class="fm-error">${errorOf(sample)}<span class="fm-quiet">${others}</span></div>
                <div class="fm-quiet fm-code">${sample.routing_key}</div>`,
            html`<${Age} at=${cause.first} />`,
            html`<${Age} at=${cause.last} />`,
            html`<div class="fm-orders">
                ${button("Replay one", "secondary", replayOne)}
                ${cause.count > 1 && button("Replay all", "secondary", replayAll)}
                ${button("Drop all", "secondary danger", dropAll)}</div>`,
        ],
    };
}

/** Return the last error of a row in one line. */
export function errorOf({ error, message, reason }) {
    const kind = (error ?? "").split(".").at(-1);
    return [kind, message].filter(Boolean).join(": ") || reason;
}

const PAGE = 50;
const ROW_COLUMNS = [
    { name: "Choose", hidden: true },
    { name: "Row", right: true },
    { name: "Topic", wide: true },
    { name: "Error", wide: true },
    { name: "Attempts", right: true, optional: true },
    { name: "Age", right: true },
];
const STATES = [
    ["quarantined", "quarantined"],
    ["deferred", "deferred"],
    ["replaying", "in a replay"],
    ["superseded", "superseded by an edit"],
    ["any", "any"],
];

/** Messages of the store, some on each page: the command lists no more than it is asked for. */
export function Rows({ instance, query }) {
    const { cause, after, state = "quarantined", topic, where } = query;
    // One more than is shown tells whether there is another page.
    const asked = { instance, number: String(PAGE + 1), fingerprint: cause, after, state, topic, where };
    const { data, problem, at, refresh } = usePolled("rows", asked, SECONDS);
    const [chosen, setChosen] = useState(new Set());
    const [dialog, order] = useOrders(() => { setChosen(new Set()); refresh(); });
    // The orders on all that fit take one condition, and would reach further than a narrower list.
    const isOnlyWhere = where && !cause && !topic && state === "quarantined";
    const shown = (data ?? []).slice(0, PAGE);
    const rows = shown.map(({ id }) => String(id)).filter((id) => chosen.has(id));
    const choose = (id, isChosen) => setChosen((before) => {
        const next = new Set(before);
        isChosen ? next.add(id) : next.delete(id);
        return next;
    });
    const to = (more) => linkTo([instance, "quarantine", "rows"], { ...query, ...more });
    return html`
        <${InstanceView} instance=${instance} name="rows" parent="causes" title=${cause || "Messages"} problem=${problem} at=${at} busy=${!data && !problem}>
            <${Filters} instance=${instance} query=${query} />
            ${isOnlyWhere && html`<${Matching} instance=${instance} where=${where} order=${order} />`}
            ${data && (shown.length ? html`
                <div class="fm-filters">
                    <${Button} small disabled=${!rows.length} onClick=${() => order(replayRows(instance, rows))}>Replay chosen<//>
                    <${Button} small kind="secondary danger" disabled=${!rows.length} onClick=${() => order(dropRows(instance, rows))}>Drop chosen<//>
                    <span role="status">${rows.length ? `${rows.length} chosen` : ""}</span>
                </div>
                <${Table} label="Messages" columns=${ROW_COLUMNS} rows=${shown.map((row) => messageRow(instance, row, chosen, choose))} />
                <nav class="fm-pages" aria-label="Pages">
                    ${after && html`<a href=${to({ after: "" })}>First page</a>`}
                    <span>Rows ${number(shown[0].id)} to ${number(shown.at(-1).id)}</span>
                    ${data.length > PAGE && html`<a href=${to({ after: String(shown.at(-1).id) })}>Next page</a>`}
                </nav>`
                : html`<${Empty} title=${after ? "There are no more messages." : "No message fits."}>
                    ${after && html`<a href=${to({ after: "" })}>First page</a>`}<//>`)}
            ${dialog}
        <//>`;
}

function Filters({ instance, query }) {
    const [topic, setTopic] = useState(query.topic ?? "");
    const [where, setWhere] = useState(query.where ?? "");
    const change = (more) => go([instance, "quarantine", "rows"], { ...query, after: "", ...more });
    return html`
        <form class="fm-filters" role="search" onSubmit=${(event) => { event.preventDefault(); change({ topic, where }); }}>
            <label>State <select class="fm-input" value=${query.state ?? "quarantined"}
                onChange=${(event) => change({ state: event.target.value })}>
                ${STATES.map(([value, text]) => html`<option key=${value} value=${value} selected=${value === (query.state ?? "quarantined")}>${text}</option>`)}
            </select></label>
            <label>Topic <input class="fm-input fm-long" type="search" placeholder="*.bodhi.*" value=${topic}
                onInput=${(event) => setTopic(event.target.value)} /></label>
            <label>Condition <input class="fm-input fm-long" type="search" placeholder="error~timeout" value=${where}
                onInput=${(event) => setWhere(event.target.value)} /></label>
            <button class="pf-v6-c-button pf-m-secondary pf-m-small" type="submit"><span class="pf-v6-c-button__text">Search</span></button>
        </form>`;
}

/** The orders on all messages that fit a condition, on this page and the others. */
function Matching({ instance, where, order }) {
    const { data } = usePolled("matching", { instance, text: where }, SECONDS);
    const count = (data ?? []).reduce((sum, cause) => sum + cause.count, 0);
    if (!count)
        return null;
    const selection = matching(where, count);
    return html`
        <div class="fm-filters">
            <strong>${plural(count, "quarantined message")} fit${count === 1 ? "s" : ""}</strong>
            <${Button} small onClick=${() => order(replayAll(instance, selection))}>Replay all<//>
            <${Button} small kind="secondary danger" onClick=${() => order(dropAll(instance, selection))}>Drop all<//>
        </div>`;
}

function messageRow(instance, row, chosen, choose) {
    const id = String(row.id);
    return {
        key: id,
        data: { "data-row": id },
        cells: [
            html`<input type="checkbox" aria-label=${`Choose row ${id}`} checked=${chosen.has(id)} disabled=${row.state !== "quarantined"}
                onChange=${(event) => choose(id, event.target.checked)} />`,
            html`<a href=${linkTo([instance, "quarantine", id])} aria-label=${`Row ${id}`}>${id}</a>`,
            html`<span class="fm-code">${row.routing_key}</span>`,
            html`<span class="fm-error">${errorOf(row)}</span>`,
            number(row.attempts),
            html`<${Age} at=${row.created} />`,
        ],
    };
}
