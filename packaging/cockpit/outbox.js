// SPDX-License-Identifier: GPL-2.0-or-later
// The views of an outbox: its relay, its messages, and one of them.

import { useOrders } from "./dialogs.js";
import { ChoiceFilter, Filters } from "./filters.js";
import { bytes, duration, moment, number } from "./format.js";
import { InstanceView } from "./instance.js";
import { usePolled } from "./polled.js";
import { go, linkTo } from "./router.js";
import { html } from "./view.js";
import { Age, Button, Code, Empty, Facts, Notice, Table, Text, Wrapped } from "./widgets.js";

const SECONDS = 5;
const SHOWN = 100;
const NONE = /there is no outbox yet/u;
const COLUMNS = [
    { name: "Row", right: true },
    { name: "State" },
    { name: "Topic", wide: true },
    { name: "Reason", wide: true },
    { name: "Attempts", right: true, optional: true },
    { name: "Age", right: true },
];
const STATES = [["any", "any"], ["waiting", "waiting"], ["dead", "dead"]];

export function Outbox({ instance, query }) {
    const state = query.state ?? "any";
    const status = usePolled("outbox", { instance }, SECONDS);
    const rows = usePolled("outbox-rows", { instance, outbox_state: state, number: String(SHOWN) }, SECONDS);
    const { problem } = status.view;
    // Most instances publish nothing, which is no trouble.
    if (NONE.test(problem?.message))
        return html`
            <${InstanceView} instance=${instance} name="outbox" title="Outbox" busy=${false}>
                <${Empty} title="There is no outbox yet.">The first message that a handler publishes makes it.<//><//>`;
    return html`
        <${InstanceView} instance=${instance} name="outbox" title="Outbox" ...${problem ? status.view : rows.view}>
            ${status.data && html`<${Relay} status=${status.data} />`}
            ${rows.data && html`
                <${Filters}>
                    <${ChoiceFilter} label="State" value=${state} choices=${STATES}
                        onValue=${(one) => go([instance, "outbox"], { state: one })} />
                <//>
                ${rows.data.length
                    ? html`<${Table} label="Messages of the outbox" columns=${COLUMNS}
                        rows=${rows.data.map((row) => rowOf(instance, row))} />`
                    : html`<${Empty} title="No message is here.">
                        The outbox keeps messages until the broker has them.<//>`}
                ${rows.data.length === SHOWN && html`<p>These are the oldest ${SHOWN}.</p>`}`}
        <//>`;
}

function Relay({ status }) {
    const { relay, lease_until: lease, problem } = status;
    const hasLease = lease !== null && lease > Date.now() / 1000;
    return html`
        ${!relay && !hasLease && html`
            <${Notice} tone="danger" title="No relay runs: nothing is sent.">${problem && html`<p>${problem}</p>`}<//>`}
        ${relay?.trouble && html`<${Notice} tone="warning" title=${relay.trouble} />`}
        ${status.remarks.map((remark) => html`<p class="fm-line" key=${remark}>${remark}</p>`)}
        <${Facts} label="Outbox" facts=${[
            ["Relay", relay ? `${relay.state}, process ${relay.pid}` : hasLease ? "another holds the lease" : "none"],
            ["Sends to", relay?.endpoint],
            ["Waiting", number(status.waiting)],
            ["Tried again later", number(status.retrying || null)],
            ["The oldest for", status.oldest === null ? "" : duration(Date.now() / 1000 - status.oldest)],
            ["Dead", number(status.dead)],
            ["Sent so far", number(status.totals?.sent ?? 0)],
            ["Database", status.database],
        ]} />`;
}

function rowOf(instance, row) {
    const id = String(row.row);
    return {
        key: id,
        data: { "data-row": id },
        cells: [html`<a href=${linkTo([instance, "outbox", id])} aria-label=${`Row ${id}`}>${id}</a>`,
            row.state, html`<${Code}>${row.topic}<//>`, html`<${Wrapped}>${row.reason}<//>`,
            number(row.attempts), html`<${Age} at=${row.created} />`],
    };
}

export function OutboxMessage({ instance, row }) {
    const { data, view, refresh } = usePolled("outbox-message", { instance, row }, 0);
    // A message that was sent, or discarded, is here no more.
    const [dialog, order] = useOrders(({ result }) => (result === "done" ? go([instance, "outbox"]) : refresh()));
    const actions = data && html`
        <${Button} onClick=${() => order(sendAgain(instance, row))}>Send again<//>
        <${Button} kind="secondary danger" onClick=${() => order(discard(instance, row))}>Discard<//>`;
    return html`
        <${InstanceView} instance=${instance} name="outbox-message" parent="outbox" title=${`Outbox row ${row}`}
            actions=${actions} ...${view}>
            ${view.problem && html`<p><a href=${linkTo([instance, "outbox"])}>All messages of the outbox</a></p>`}
            ${data && html`
                <${Facts} label="Message" facts=${factsOf(data)} />
                <${Text} title=${`Body, ${bytes(data.bytes)}`}>${JSON.stringify(data.body, null, 2)}<//>
                <${Text} title="Headers">${JSON.stringify(data.headers, null, 2)}<//>`}
            ${dialog}
        <//>`;
}

function factsOf(data) {
    return [
        ["State", data.state],
        ["Reason", data.reason],
        ["Topic", html`<${Code}>${data.topic}<//>`],
        ["Message id", html`<${Code}>${data.id}<//>`],
        ["Exchange", data.exchange],
        ["Ordering key", data.ordering_key],
        ["Published", moment(data.created)],
        ["Failed attempts", number(data.attempts)],
        ["Next attempt", data.due ? moment(data.due) : ""],
    ];
}

const result = (title) => ({ changed }) => (changed
    ? { tone: "success", title, result: "done" }
    : { tone: "warning", title: "It was left alone: a relay sends it now, or it is gone.", result: "failed" });

function sendAgain(instance, row) {
    return {
        title: `Send row ${row} again?`, verb: "Send again",
        text: html`<p>The relay sends it at once, in its turn.</p>`,
        call: () => ({ name: "outbox-retry", values: { instance, rows: [row] } }),
        resultOf: result("The relay sends it now."),
    };
}

function discard(instance, row) {
    return {
        title: `Discard row ${row}?`, verb: "Discard", danger: true,
        text: html`<p>The message is never sent. <code>fm-consumer outbox export</code> keeps a copy.</p>`,
        call: () => ({ name: "outbox-discard", values: { instance, rows: [row] } }),
        resultOf: result("The message is discarded."),
    };
}
