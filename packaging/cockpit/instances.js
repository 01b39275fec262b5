// SPDX-License-Identifier: GPL-2.0-or-later
// The view of all instances of the host.

import { CheckFilter, Filters, TextFilter } from "./filters.js";
import { age, duration, number, plural, rate } from "./format.js";
import { historyOf, remember } from "./history.js";
import { byTrouble, instancesOf, isSoon, rankOf } from "./instance_state.js";
import { Sparkline } from "./plot.js";
import { usePolled } from "./polled.js";
import { linkTo } from "./router.js";
import { html, useState } from "./view.js";
import { Condition, Empty, Notice, Table, View } from "./widgets.js";

const SECONDS = 5;
const COLUMNS = [
    { name: "Instance" },
    { name: "Condition", wide: true },
    { name: "Rate", right: true },
    { name: "Rate lately", optional: true },
    { name: "Lag", right: true },
    { name: "Quarantined", right: true },
    { name: "Loss in" },
    { name: "Up", right: true, optional: true },
];

export function Instances() {
    const { data, at, view } = usePolled("status", {}, SECONDS);
    const [filter, setFilter] = useState("");
    const [onlyTrouble, setOnlyTrouble] = useState(false);
    const all = instancesOf(data).sort(byTrouble);
    if (at)
        remember(all, at);
    const shown = all.filter((one) => one.name.includes(filter.trim()) && (!onlyTrouble || needsLook(one)));
    return html`
        <${View} name="instances" title="Message consumers" ...${view}>
            ${data && !data.systemd && html`<${Notice} tone="warning" title="systemd does not answer.">
                <p>${data.problem}. Only instances that were started by hand, or have messages, are shown.</p><//>`}
            ${data && (all.length ? html`
                <${Summary} instances=${all} />
                <${Filters}>
                    <${TextFilter} label="Name" value=${filter} onValue=${setFilter} />
                    <${CheckFilter} label="Only those with trouble" value=${onlyTrouble} onValue=${setOnlyTrouble} />
                <//>
                ${shown.length
                    ? html`<${Table} label="Instances" columns=${COLUMNS} rows=${shown.map(rowOf)} />`
                    : html`<${Empty} title="No instance fits."><//>`}`
                : html`<${Empty} title="This host has no instances.">
                    Write /etc/fedora-messaging/NAME.toml, and start one:${" "}
                    <code>systemctl start fm-consumer@NAME</code><//>`)}
        <//>`;
}

const needsLook = (one) => rankOf(one.condition) < 4 || one.quarantined > 0 || isSoon(one.loss);

function Summary({ instances }) {
    const counts = new Map();
    for (const { condition } of instances)
        counts.set(condition, (counts.get(condition) ?? 0) + 1);
    const worstFirst = [...counts].sort(([one], [other]) => rankOf(one) - rankOf(other));
    const quarantined = instances.reduce((sum, one) => sum + (one.quarantined ?? 0), 0);
    return html`
        <p class="fm-summary" role="status">
            <strong>${plural(instances.length, "instance")}</strong>
            ${worstFirst.map(([condition, count]) => html`
                <span key=${condition}>${count} <${Condition} condition=${condition} /></span>`)}
            ${quarantined > 0 && html`<span><strong>${number(quarantined)}</strong> quarantined</span>`}
        </p>`;
}

function rowOf(one) {
    return {
        key: one.name,
        data: { "data-instance": one.name },
        cells: [
            html`<a href=${linkTo([one.name])}><strong>${one.name}</strong></a>`,
            html`<${Condition} condition=${one.condition} />
                ${one.reason && html`<div class="fm-reason">${one.reason}</div>`}`,
            rate(one.rate),
            html`<${Sparkline} values=${historyOf(one.name).rates} />`,
            lagOf(one),
            one.quarantined ? html`<${Quarantined} one=${one} />` : number(one.quarantined),
            one.loss ? html`<${Loss} loss=${one.loss} />` : "",
            age(one.up),
        ],
    };
}

function Quarantined({ one: { name, quarantined } }) {
    return html`<a href=${linkTo([name, "quarantine"])} aria-label=${`${quarantined} quarantined messages of ${name}`}>
        ${number(quarantined)}</a>`;
}

/** Return the lag in messages and in time. */
export function lagOf({ lag, lagSeconds }) {
    return [number(lag), age(lagSeconds)].filter(Boolean).join(" · ");
}

/** Show the time to the next loss of messages, and its subject. */
export function Loss({ loss }) {
    const when = loss.seconds <= 0 ? "now" : duration(loss.seconds);
    return html`<span class=${isSoon(loss) ? "fm-soon" : ""}>${when}</span>
        <div class="fm-reason">${loss.subject}</div>`;
}
