// SPDX-License-Identifier: GPL-2.0-or-later
// The view of one instance: its condition, facts, plots and orders; and the frame of its other views.

import { sentence } from "./calls.js";
import { useOrders } from "./dialogs.js";
import { clock, duration, number, plural, rate } from "./format.js";
import { historyOf, remember } from "./history.js";
import { instanceOrders } from "./instance_orders.js";
import { instancesOf, isSoon, rankOf } from "./instance_state.js";
import { Loss } from "./instances.js";
import { Plot } from "./plot.js";
import { usePolled } from "./polled.js";
import { linkTo } from "./router.js";
import { html } from "./view.js";
import { Button, Condition, Empty, Facts, Notice, View } from "./widgets.js";

const SECONDS = 2;
// The rank of conditions that need nobody.
const CALM = 3;
const HOME = ["Message consumers", []];
const TABS = [
    ["instance", "Overview", []],
    ["in-flight", "In flight", ["in-flight"]],
    ["events", "Events", ["events"]],
    ["log", "Log", ["log"]],
    ["settings", "Settings", ["settings"]],
    ["causes", "Quarantine", ["quarantine"]],
    ["outbox", "Outbox", ["outbox"]],
];

/** A view of an instance, with the tabs of all of them; `parent` is the name of the tab that it belongs to. */
export function InstanceView({ instance, name, title, parent, ...more }) {
    const tab = TABS.find(([each]) => each === parent);
    const above = [HOME, ...title ? [[instance, [instance]]] : [], ...tab ? [[tab[1], [instance, ...tab[2]]]] : []];
    return html`
        <${View} name=${name} title=${title ?? instance} trail=${above}
            tabs=${html`<${Tabs} instance=${instance} current=${parent ?? name} />`} ...${more} />`;
}

function Tabs({ instance, current }) {
    return html`
        <nav class="pf-v6-c-tabs pf-m-nav" aria-label=${`Views of ${instance}`}>
            <ul class="pf-v6-c-tabs__list" role="list">
                ${TABS.map(([name, text, parts]) => html`
                    <li class=${`pf-v6-c-tabs__item ${name === current ? "pf-m-current" : ""}`} key=${name}>
                        <a class="pf-v6-c-tabs__link" href=${linkTo([instance, ...parts])}
                            aria-current=${name === current ? "page" : undefined}>
                            <span class="pf-v6-c-tabs__item-text">${text}</span></a>
                    </li>`)}
            </ul>
        </nav>`;
}

export function Instance({ instance }) {
    const { data, at, view, refresh } = usePolled("instance", { instance }, SECONDS);
    const [dialog, order] = useOrders(refresh);
    const one = instancesOf(data).find((each) => each.name === instance);
    if (one && at)
        remember([one], at);
    return html`
        <${InstanceView} instance=${instance} name="instance" ...${view}
            badge=${one && html`<${Condition} condition=${one.condition} />`}
            actions=${one && instanceOrders(one).map((each) => html`
                <${Button} key=${each.verb} kind=${each.danger ? "secondary danger" : "secondary"}
                    onClick=${() => order(each)}>${each.verb}<//>`)}>
            ${data && !one && html`<${Empty} title=${`There is no instance ${instance} on this host.`}>
                <a href="#/">All instances</a><//>`}
            ${one && html`<${Overview} one=${one} />`}
            ${dialog}
        <//>`;
}

function Overview({ one }) {
    const history = historyOf(one.name);
    return html`
        ${one.reason && html`<${Notice} tone=${rankOf(one.condition) < CALM ? "warning" : "info"}
            title=${sentence(`${one.condition}: ${one.reason}`)} />`}
        ${isSoon(one.loss) && html`<${Notice} tone="warning" title=${lossTitle(one.loss)}>
            ${one.loss.cure && html`<p>${sentence(one.loss.cure)}</p>`}<//>`}
        <p class="fm-line">${one.status}</p>
        ${one.remarks.map((remark) => html`<p class="fm-line" key=${remark}>${remark}</p>`)}
        <div class="fm-columns">
            <${Plot} label="Rate" times=${history.times} values=${history.rates} format=${rate} />
            <${Plot} label="Lag" times=${history.times} values=${history.lags} format=${number} whole />
        </div>
        <div class="fm-columns">
            <${Facts} label="State" facts=${factsOf(one)} />
            <${Facts} label="Counts since the start" facts=${countsOf(one)} />
        </div>
        ${one.workers.length > 1 && html`<${Workers} one=${one} />`}`;
}

function Workers({ one }) {
    return html`<p>Workers of ${one.group}: ${one.workers.map((name) => html`
        <a class="fm-worker" key=${name} href=${linkTo([name])}
            aria-current=${name === one.name ? "page" : undefined}>${name}</a>`)}</p>`;
}

const lossTitle = ({ subject, seconds }) =>
    `Messages are lost ${seconds <= 0 ? "now" : `in ${duration(seconds)}`}: ${subject}.`;

function factsOf(one) {
    return [
        ["Lag", one.lag === null ? "" : plural(one.lag, "message")],
        ["Lag in time", duration(one.lagSeconds)],
        ["Messages are lost in", one.loss && html`<${Loss} loss=${one.loss} />`],
        ["Held in memory", number(one.held)],
        ["Deferred", number(one.deferred)],
        ["Next one due at", one.nextDue === null ? "" : clock(one.nextDue)],
        ["Quarantined", one.quarantined
            ? html`<a href=${linkTo([one.name, "quarantine"])}>${number(one.quarantined)}</a>`
            : number(one.quarantined)],
        ["Outbox", one.outbox && html`<a href=${linkTo([one.name, "outbox"])}>${outboxText(one.outbox)}</a>`],
        ["Broker", one.broker],
        ["Queues", one.queues.join(", ")],
        ["Process", one.pid === null ? "" : String(one.pid)],
        ["Up", duration(one.up)],
        ["Restarts by systemd", number(one.restarts)],
    ];
}

function outboxText({ state, waiting, dead, trouble }) {
    return [state, waiting === null ? "" : `${number(waiting)} waiting`, dead ? `${number(dead)} dead` : "", trouble]
        .filter(Boolean).join(", ");
}

const COUNTS = {
    running: "Running now",
    received: "Received",
    succeeded: "Succeeded",
    skipped: "Skipped",
    failed: "Failed attempts",
    undecodable: "Undecodable",
    unrouted: "Without a route",
    acked: "Acknowledged",
    requeued: "Requeued",
    rejected: "Rejected",
    deferred: "Deferred",
    quarantined: "Quarantined",
    given_back: "Given back",
};

function countsOf({ counts }) {
    return counts ? Object.entries(COUNTS).map(([key, name]) => [name, counts[key] ? number(counts[key]) : ""]) : [];
}

