// SPDX-License-Identifier: GPL-2.0-or-later
// The views of quarantined messages: by cause, and the messages of a cause.

import { useOrders } from "./dialogs.js";
import { ChoiceFilter, Filters, TextFilter } from "./filters.js";
import { bytes, number, plural } from "./format.js";
import { InstanceView } from "./instance.js";
import { usePolled } from "./polled.js";
import { dropAll, dropRows, matching, ofCause, replayAll, replayOne, replayRest, replayRows } from "./replay_orders.js";
import { go, linkTo } from "./router.js";
import { html, useState } from "./view.js";
import { Age, Button, Code, Empty, LinkButton, Notice, Table, Wrapped } from "./widgets.js";

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
    const { data, view, refresh } = usePolled("causes", { instance }, SECONDS);
    const stats = usePolled("stats", { instance }, SECONDS);
    const [dialog, order] = useOrders(() => { refresh(); stats.refresh(); });
    const replay = stats.data?.replay;
    return html`
        <${InstanceView} instance=${instance} name="causes" title="Quarantine" ...${view}
            actions=${html`<${LinkButton} href=${linkTo([instance, "quarantine", "rows"])}>All messages<//>`}>
            ${replay && html`<${Interrupted} instance=${instance} replay=${replay} order=${order} />`}
            ${data && (data.length ? html`
                <${Summary} causes=${data} stats=${stats.data} />
                <${Table} label="Causes" columns=${CAUSE_COLUMNS}
                    rows=${data.map((cause) => causeRow(instance, cause, order))} />`
                : html`<${Empty} title="Nothing is quarantined.">
                    Messages whose handler fails for good are set aside here.<//>`)}
            ${dialog}
        <//>`;
}

function Summary({ causes, stats }) {
    const total = causes.reduce((sum, cause) => sum + cause.count, 0);
    const blocked = stats?.blocked_lanes ?? 0;
    return html`
        <p class="fm-summary">
            <strong>${plural(total, "message")}</strong><span>of ${plural(causes.length, "cause")}</span>
            ${stats && html`<span>${bytes(stats.bytes)} in the store</span>`}
            ${blocked > 0 && html`<span>${plural(blocked, "ordering key")} blocked by them</span>`}
        </p>`;
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
                <a href=${linkTo([instance, "quarantine", "rows"], { cause: cause.fingerprint })}>
                    <strong>${cause.fingerprint}</strong></a>
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
    const { data, view, refresh } = usePolled("rows", asked, SECONDS);
    const [chosen, setChosen] = useState(new Set());
    const [dialog, order] = useOrders(() => { setChosen(new Set()); refresh(); });
    const choose = (id, isChosen) => setChosen((before) => changed(before, id, isChosen));
    // The orders on all that fit take one condition, and would reach further than a narrower list.
    const isOnlyWhere = where && !cause && !topic && state === "quarantined";
    const shown = (data ?? []).slice(0, PAGE);
    return html`
        <${InstanceView} instance=${instance} name="rows" parent="causes" title=${cause || "Messages"} ...${view}>
            <${RowFilters} instance=${instance} query=${query} />
            ${isOnlyWhere && html`<${Matching} instance=${instance} where=${where} order=${order} />`}
            ${shown.length > 0 && html`
                <${Chosen} instance=${instance} rows=${shown} chosen=${chosen} order=${order} />
                <${Table} label="Messages" columns=${ROW_COLUMNS}
                    rows=${shown.map((row) => messageRow(instance, row, chosen, choose))} />`}
            ${data && !shown.length && html`
                <${Empty} title=${after ? "There are no more messages." : "No message fits."}><//>`}
            ${data && html`
                <${Pages} instance=${instance} query=${query} shown=${shown} hasMore=${data.length > PAGE} />`}
            ${dialog}
        <//>`;
}

function changed(set, value, isIn) {
    const next = new Set(set);
    if (isIn)
        next.add(value);
    else
        next.delete(value);
    return next;
}

/** The orders on the messages that are chosen on this page. */
function Chosen({ instance, rows, chosen, order }) {
    const numbers = rows.map(({ id }) => String(id)).filter((id) => chosen.has(id));
    const button = (text, kind, made) => html`
        <${Button} small kind=${kind} disabled=${!numbers.length}
            onClick=${() => order(made(instance, numbers))}>${text}<//>`;
    return html`
        <div class="fm-filters">
            ${button("Replay chosen", "secondary", replayRows)}
            ${button("Drop chosen", "secondary danger", dropRows)}
            <span role="status">${numbers.length ? `${numbers.length} chosen` : ""}</span>
        </div>`;
}

function Pages({ instance, query, shown, hasMore }) {
    const to = (after) => linkTo([instance, "quarantine", "rows"], { ...query, after });
    return html`
        <nav class="fm-pages" aria-label="Pages">
            ${query.after && html`<a href=${to("")}>First page</a>`}
            ${shown.length > 0 && html`<span>Rows ${number(shown[0].id)} to ${number(shown.at(-1).id)}</span>`}
            ${hasMore && html`<a href=${to(String(shown.at(-1).id))}>Next page</a>`}
        </nav>`;
}

function RowFilters({ instance, query }) {
    const [topic, setTopic] = useState(query.topic ?? "");
    const [where, setWhere] = useState(query.where ?? "");
    const change = (more) => go([instance, "quarantine", "rows"], { ...query, after: "", ...more });
    return html`
        <${Filters} onSearch=${() => change({ topic, where })}>
            <${ChoiceFilter} label="State" value=${query.state ?? "quarantined"} choices=${STATES}
                onValue=${(state) => change({ state })} />
            <${TextFilter} label="Topic" example="*.bodhi.*" long value=${topic} onValue=${setTopic} />
            <${TextFilter} label="Condition" example="error~timeout" long value=${where} onValue=${setWhere} />
        <//>`;
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
            html`<input type="checkbox" aria-label=${`Choose row ${id}`} checked=${chosen.has(id)}
                disabled=${row.state !== "quarantined"} onChange=${(event) => choose(id, event.target.checked)} />`,
            html`<a href=${linkTo([instance, "quarantine", id])} aria-label=${`Row ${id}`}>${id}</a>`,
            html`<${Code}>${row.routing_key}<//>`,
            html`<${Wrapped}>${errorOf(row)}<//>`,
            number(row.attempts),
            html`<${Age} at=${row.created} />`,
        ],
    };
}
