// SPDX-License-Identifier: GPL-2.0-or-later
// The page: chooses a view for the route.
//
//   router.js → a view → polled.js → calls.js → transport.js → fm-consumer … --json
//                  └→ dialogs.js (orders) ──↗
//
// Views show the JSON of commands and keep no facts of their own. Every order is a command, too.

import { Instance } from "./instance.js";
import { Instances } from "./instances.js";
import { Events, InFlight, Log } from "./live.js";
import { Message } from "./message.js";
import { Outbox, OutboxMessage } from "./outbox.js";
import { Causes, Rows } from "./quarantine.js";
import { useRoute } from "./router.js";
import { Settings } from "./settings.js";
import { followTheme } from "./theme.js";
import { Component, html, render } from "./view.js";
import { Empty, Notice, View } from "./widgets.js";

// A pattern of the route's parts: ":instance" and ":row" take any part.
const ROUTES = [
    ["", Instances],
    [":instance", Instance],
    [":instance/in-flight", InFlight],
    [":instance/events", Events],
    [":instance/log", Log],
    [":instance/settings", Settings],
    [":instance/quarantine", Causes],
    [":instance/quarantine/rows", Rows],
    [":instance/quarantine/:row", Message],
    [":instance/outbox", Outbox],
    [":instance/outbox/:row", OutboxMessage],
];

function found(parts) {
    for (const [pattern, view] of ROUTES) {
        const names = pattern.split("/").filter(Boolean);
        const fits = names.length === parts.length &&
            names.every((name, place) => name.startsWith(":") || name === parts[place]);
        if (fits)
            return [view, Object.fromEntries(names.map((name, place) => [name.replace(":", ""), parts[place]]))];
    }
    return [Nowhere, {}];
}

function Nowhere() {
    return html`<${View} name="nowhere" title="There is no such page">
        <${Empty} title="The address is wrong."><a href="#/">All instances</a><//><//>`;
}

/** Shows a defect of the page in its place: a blank page tells nobody anything. */
class Guard extends Component {
    state = { error: null };

    componentDidCatch(error) {
        this.setState({ error });
    }

    render({ children }, { error }) {
        if (!error)
            return children;
        return html`<${View} name="defect" title="The page has a defect">
            <${Notice} tone="danger" role="alert" title=${error.message}>
                <p>Load it again. If that does not help, use the command line, and report this text.</p>
                <pre class="fm-text">${error.stack}</pre><//><//>`;
    }
}

function Page() {
    const { parts, query, hash } = useRoute();
    const [Shown, names] = found(parts);
    // The key makes a fresh view for another address, so that no view shows the facts of the one before.
    return html`<${Guard} key=${hash}><${Shown} ...${names} query=${query} /><//>`;
}

followTheme();
render(html`<${Page} />`, document.getElementById("page"));
