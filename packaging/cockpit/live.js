// SPDX-License-Identifier: GPL-2.0-or-later
// The views of a running instance: messages in flight, events, and lines of the journal.

import { follow } from "./calls.js";
import { useOrders } from "./dialogs.js";
import { ChoiceFilter, Filters, TextFilter } from "./filters.js";
import { clock, duration, moment, plural } from "./format.js";
import { InstanceView } from "./instance.js";
import { logLevel } from "./instance_orders.js";
import { usePolled } from "./polled.js";
import { linkTo } from "./router.js";
import { html, useEffect, useState } from "./view.js";
import { Button, Code, Empty, Table, Wrapped } from "./widgets.js";

const SECONDS = 2;
const MOST_LINES = 500;

const FLIGHT_COLUMNS = [
    { name: "Running for", right: true },
    { name: "Topic", wide: true },
    { name: "Message" },
    { name: "In", wide: true },
    { name: "Slot", optional: true },
    { name: "Run", right: true },
];

/** The messages that the handlers of an instance have now, the longest first. */
export function InFlight({ instance }) {
    const { data, view } = usePolled("in-flight", { instance }, SECONDS);
    const found = data?.messages ?? [];
    return html`
        <${InstanceView} instance=${instance} name="in-flight" title="In flight" ...${view}>
            ${data && (found.length
                ? html`<${Table} label="Messages in flight" columns=${FLIGHT_COLUMNS}
                    rows=${found.map((one) => flightRow(instance, one))} />`
                : html`<${Empty} title="No handler runs.">
                    The messages that handlers have are shown here, with their ages.<//>`)}
        <//>`;
}

function flightRow(instance, { message_id: id, row, topic, age, slot, attempt, place }) {
    const name = html`<${Code}>${id || `row ${row}`}<//>`;
    return {
        key: `${id} ${row} ${slot}`,
        cells: [duration(age), html`<${Code}>${topic}<//>`,
            row ? html`<a href=${linkTo([instance, "quarantine", String(row)])}>${name}</a>` : name,
            html`<${Code}>${place}<//>`, slot, attempt],
    };
}

/**
 * A hook that follows a call which prints lines for ever: { lines, problem, isOpen }, the latest line last.
 *
 * @param {boolean} isOn False ends the call, and keeps its lines.
 */
function useLines(name, values, isOn) {
    const [state, setState] = useState({ lines: [], problem: null, isOpen: false });
    const key = JSON.stringify(values);
    useEffect(() => (isOn ? followLines(name, JSON.parse(key), setState) : undefined), [name, key, isOn]);
    return state;
}

function followLines(name, values, setState) {
    const ended = new AbortController();
    let waiting = [];
    let count = 0;
    // One drawing for all lines of a moment: a busy instance has thousands in a second.
    const show = () => {
        const added = waiting;
        waiting = [];
        if (added.length && !ended.signal.aborted)
            setState((before) => ({ ...before, lines: [...before.lines, ...added].slice(-MOST_LINES) }));
    };
    const onLine = (line) => {
        count += 1;
        waiting.push({ ...line, number: count });
        if (waiting.length > MOST_LINES)
            waiting.shift();
    };
    const timer = setInterval(show, 250);
    setState({ lines: [], problem: null, isOpen: true });
    follow(name, values, { signal: ended.signal, onLine })
        .then(() => null, (problem) => problem)
        .then((problem) => {
            show();
            clearInterval(timer);
            if (!ended.signal.aborted)
                setState((before) => ({ ...before, problem, isOpen: false }));
        });
    return () => { ended.abort(); clearInterval(timer); };
}

const EVENT_COLUMNS = [
    { name: "Time" },
    { name: "Event" },
    { name: "Topic", wide: true },
    { name: "Message" },
    { name: "Reason", wide: true },
];

/** Events of an instance as they happen. */
export function Events({ instance }) {
    const [isOn, setIsOn] = useState(true);
    const { lines, problem, isOpen } = useLines("events", { instance }, isOn);
    const shown = lines.filter((line) => line.event || line.missed);
    return html`
        <${InstanceView} instance=${instance} name="events" title="Events" problem=${problem}
            busy=${false} actions=${html`<${Follow} isOn=${isOn} onChange=${setIsOn} />`}>
            ${shown.length
                ? html`<${Table} label="Events, the latest first" columns=${EVENT_COLUMNS}
                    rows=${shown.map(eventRow).reverse()} />`
                : !problem && html`<${Empty} title=${isOpen ? "Waiting for an event…" : "No event was shown."}>
                    Each message that is handled, retried or set aside is a line here.<//>`}
        <//>`;
}

function Follow({ isOn, onChange }) {
    return html`
        <${Button} aria-pressed=${String(isOn)} onClick=${() => onChange(!isOn)}>${isOn ? "Hold" : "Follow"}<//>`;
}

const BAD = new Set(["failed", "quarantine", "reject", "failing", "undecodable"]);

function eventRow(line) {
    const { number: key, at, event, result, topic, message_id: id, reason, attempt } = line;
    const run = event === "ran" && attempt > 1 ? `, run ${attempt}` : "";
    return {
        key,
        data: { "data-event": event ?? "missed" },
        cells: line.missed
            ? ["", html`<span class="fm-doubtful">${plural(line.missed, "event")} came too quickly</span>`, "", "", ""]
            : [clock(at), html`${event}: <span class=${BAD.has(result) ? "fm-bad" : ""}>${result}</span>${run}`,
                html`<${Code}>${topic}<//>`, html`<${Code}>${id}<//>`,
                html`<${Wrapped}>${reason}<//>`],
    };
}

const LINES = 200;
const LOG_COLUMNS = [{ name: "Time" }, { name: "Level" }, { name: "Text", wide: true }];
const PRIORITIES = [["", "all"], ["warning", "warning and worse"], ["err", "error and worse"]];
const LEVELS = ["emergency", "alert", "critical", "error", "warning", "notice", "info", "debug"];
const TONES = { error: "fm-bad", critical: "fm-bad", alert: "fm-bad", emergency: "fm-bad", warning: "fm-doubtful" };

/** The latest lines of an instance in systemd's journal. */
export function Log({ instance }) {
    const [isOn, setIsOn] = useState(true);
    const [priority, setPriority] = useState("");
    const [typed, setTyped] = useState("");
    const [grep, setGrep] = useState("");
    const asked = { instance, number: String(LINES), priority, grep, follow: true };
    const { lines, problem, isOpen } = useLines("log", asked, isOn);
    const [dialog, order] = useOrders(() => null);
    return html`
        <${InstanceView} instance=${instance} name="log" title="Log" problem=${problem}
            busy=${false} actions=${html`
                <${Button} onClick=${() => order(logLevel(instance))}>Log level<//>
                <${Follow} isOn=${isOn} onChange=${setIsOn} />`}>
            <${Filters} onSearch=${() => setGrep(typed)}>
                <${ChoiceFilter} label="Level" value=${priority} choices=${PRIORITIES} onValue=${setPriority} />
                <${TextFilter} label="Text" value=${typed} onValue=${setTyped} />
            <//>
            ${lines.length
                ? html`<${Table} label="Lines of the log, the latest first" columns=${LOG_COLUMNS}
                    rows=${lines.map(logRow).reverse()} />`
                : !problem && html`<${Empty} title=${isOpen ? "Waiting for a line…" : "No line fits."}><//>`}
            ${dialog}
        <//>`;
}

function logRow(line) {
    const level = LEVELS[Number(line.PRIORITY ?? 6)] ?? "info";
    const at = Number(line.__REALTIME_TIMESTAMP) / 1e6;
    return {
        key: line.number,
        cells: [
            html`<span class="fm-nowrap">${moment(at)}</span>`,
            html`<span class=${TONES[level] ?? ""}>${level}</span>`,
            html`<span class="fm-text">${textOf(line.MESSAGE)}</span>`,
        ],
    };
}

// A text that is not valid in the journal's eyes is a list of its bytes: systemd.journal-fields(7).
function textOf(message) {
    return typeof message === "string" ? message : new TextDecoder().decode(Uint8Array.from(message ?? []));
}
