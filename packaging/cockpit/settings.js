// SPDX-License-Identifier: GPL-2.0-or-later
// The view of the settings that are in force.

import { InstanceView } from "./instance.js";
import { usePolled } from "./polled.js";
import { html, useState } from "./view.js";
import { Empty, Notice, Table } from "./widgets.js";

const COLUMNS = [
    { name: "Setting" },
    { name: "Value", wide: true },
    { name: "Default", optional: true },
    { name: "A change takes", optional: true },
];

export function Settings({ instance }) {
    const { data, problem, at } = usePolled("settings", { instance }, 0);
    const [onlyOwn, setOnlyOwn] = useState(false);
    const all = data?.settings ?? [];
    const shown = onlyOwn ? all.filter((one) => !one.is_default) : all;
    return html`
        <${InstanceView} instance=${instance} name="settings" title="Settings" problem=${problem} at=${at} busy=${!data && !problem}>
            ${data && html`
                ${!data.in_force && html`<${Notice} tone="info" title=${`${instance} does not run.`}>
                    <p>These are the settings of its file.</p><//>`}
                <div class="fm-filters"><label class="fm-check"><input type="checkbox" checked=${onlyOwn}
                    onChange=${(event) => setOnlyOwn(event.target.checked)} /> Only those that differ from the default</label></div>
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
            html`<span class="fm-code">${isDefault ? value : html`<strong>${value}</strong>`}</span>`,
            isDefault ? "" : html`<span class="fm-code">${usual}</span>`, takes],
    };
}
