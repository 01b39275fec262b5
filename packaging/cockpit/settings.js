// SPDX-License-Identifier: GPL-2.0-or-later
// The view of the settings that are in force.

import { CheckFilter, Filters } from "./filters.js";
import { InstanceView } from "./instance.js";
import { usePolled } from "./polled.js";
import { html, useState } from "./view.js";
import { Code, Empty, Notice, Table } from "./widgets.js";

const COLUMNS = [
    { name: "Setting" },
    { name: "Value", wide: true },
    { name: "Default", optional: true },
    { name: "A change takes", optional: true },
];

export function Settings({ instance }) {
    const { data, view } = usePolled("settings", { instance }, 0);
    const [onlyOwn, setOnlyOwn] = useState(false);
    const all = data?.settings ?? [];
    const shown = onlyOwn ? all.filter((one) => !one.is_default) : all;
    return html`
        <${InstanceView} instance=${instance} name="settings" title="Settings" ...${view}>
            ${data && html`
                ${!data.in_force && html`<${Notice} tone="info" title=${`${instance} does not run.`}>
                    <p>These are the settings of its file.</p><//>`}
                <${Filters}>
                    <${CheckFilter} label="Only those that differ from the default"
                        value=${onlyOwn} onValue=${setOnlyOwn} />
                <//>
                ${shown.length
                    ? html`<${Table} label="Settings in force" columns=${COLUMNS} rows=${shown.map(rowOf)} />`
                    : html`<${Empty} title="Every setting has its default."><//>`}`}
        <//>`;
}

// A narrow column breaks a path after its dots only.
const breakable = (path) => path.split(".").map((part, place) => (place ? html`.<wbr />${part}` : part));

function rowOf({ path, value, default: usual, takes, is_default: isDefault }) {
    return {
        key: path,
        data: { "data-setting": path },
        cells: [html`<span class="fm-path">${breakable(path)}</span>`,
            html`<${Code}>${isDefault ? value : html`<strong>${value}</strong>`}<//>`,
            isDefault ? "" : html`<${Code}>${usual}<//>`, takes],
    };
}
