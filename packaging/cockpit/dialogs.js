// SPDX-License-Identifier: GPL-2.0-or-later
// Orders: a dialog that asks first, shows the progress, and then the result.

import { ask, follow, Problem } from "./calls.js";
import { number } from "./format.js";
import { html, useEffect, useRef, useState } from "./view.js";
import { Button, Field, Notice } from "./widgets.js";

/** A modal dialog: the browser keeps the focus in it, and Escape closes it. */
export function Dialog({ title, onClose, footer, children }) {
    const element = useRef(null);
    useEffect(() => {
        const before = document.activeElement;
        const dialog = element.current;
        dialog.showModal();
        return () => {
            // Nothing outside a modal dialog takes the focus.
            dialog.close();
            before?.focus?.();
        };
    }, []);
    const cancelled = (event) => { event.preventDefault(); onClose(); };
    return html`
        <dialog class="pf-v6-c-modal-box pf-m-sm fm-dialog" aria-labelledby="fm-dialog-title"
            ref=${element} onCancel=${cancelled}>
            <header class="pf-v6-c-modal-box__header">
                <h2 class="pf-v6-c-modal-box__title" id="fm-dialog-title">${title}</h2>
            </header>
            <div class="pf-v6-c-modal-box__body">${children}</div>
            <footer class="pf-v6-c-modal-box__footer">${footer}</footer>
        </dialog>`;
}

/**
 * An order to the host.
 *
 * @param {object} order
 *     title, verb: the question, and the word on its button.
 *     danger: true if it cannot be undone.
 *     expects: a number that the operator types first; null for none.
 *     fields: function(values, set) that shows the choices; `defaults` are their first values.
 *     call(values): { name, values, input } of calls.json.
 *     lines: true if the call prints a line for each step.
 *     total(values): the number of those steps, for the bar.
 *     doneOf(lines), noteOf(lines): the number of steps that are done, and a note on them.
 *     resultOf(answer): { tone, title, text, detail, result, next }; the answer is a document, or the list of
 *         lines. `next` is an order that the result offers; null for none.
 * @param {function} onClose Called at its end with its result, none if it was not given, and the next order, if any.
 */
export function Order({ order, onClose }) {
    const [values, setValues] = useState(order.defaults ?? {});
    const [typed, setTyped] = useState("");
    const [state, setState] = useState({ phase: "asking", lines: [] });
    const stopper = useRef(null);
    useEffect(() => () => stopper.current?.abort(), []);
    const set = (key, value) => setValues((before) => ({ ...before, [key]: value }));
    const isReady = !order.expects || typed.replace(/[,\s]/gu, "") === String(order.expects);
    const carryOut = () => {
        stopper.current = new AbortController();
        runOrder(order, values, stopper.current.signal, setState);
    };
    const submitted = (event) => {
        event.preventDefault();
        if (isReady)
            carryOut();
    };
    const close = () => state.phase !== "running" && onClose(state.result);
    return html`
        <${Dialog} title=${state.phase === "asking" ? order.title : order.title.replace("?", "")} onClose=${close}
            footer=${html`<${Footer} order=${order} phase=${state.phase} isReady=${isReady} onYes=${carryOut}
                next=${state.result?.next} onNext=${() => onClose(state.result, state.result.next)}
                onStop=${() => stopper.current.abort()} onClose=${close} />`}>
            ${state.phase === "asking" && html`
                ${order.text && html`<div class="pf-v6-c-content">${order.text}</div>`}
                <form class="pf-v6-c-form fm-form" onSubmit=${submitted}>
                    ${order.fields?.(values, set)}
                    ${order.expects && html`<${Expected} order=${order} typed=${typed} onTyped=${setTyped} />`}
                </form>`}
            ${state.phase === "running" && html`
                <${Progress} lines=${state.lines} total=${order.total?.(values)} order=${order} />`}
            ${state.phase === "ended" && html`<${Result} result=${state.result} />`}
        <//>`;
}

function Expected({ order: { expects, verb }, typed, onTyped }) {
    return html`
        <${Field} id="fm-expected"
            label=${`Type ${expects} to ${verb.toLowerCase()}`} value=${typed} onValue=${onTyped} />`;
}

function Footer({ order, phase, isReady, next, onYes, onNext, onStop, onClose }) {
    const kind = order.danger ? "danger" : "primary";
    if (phase === "running")
        return order.lines
            ? html`<${Button} onClick=${onStop}>Stop after this message<//>`
            : html`<span role="status">Under way…</span>`;
    if (phase === "ended")
        return html`
            <${Button} kind="primary" onClick=${onClose} ref=${focus}>Close<//>
            ${next && html`<${Button} onClick=${onNext}>${next.verb}<//>`}`;
    // Cancel comes first, so that Enter in a hurry does no harm.
    return html`
        <${Button} kind="link" onClick=${onClose}>Cancel<//>
        <${Button} kind=${kind} disabled=${!isReady} onClick=${onYes}>${order.verb}<//>`;
}

// The button of the order is gone, and the focus with it.
const focus = (button) => button?.base?.focus?.();

async function runOrder(order, values, signal, setState) {
    const lines = [];
    setState({ phase: "running", lines });
    const onLine = (line) => {
        lines.push(line);
        setState({ phase: "running", lines: [...lines] });
    };
    const result = await resultOf(order, values, { signal, onLine }, lines);
    setState({ phase: "ended", lines, result });
}

async function resultOf(order, values, { signal, onLine }, lines) {
    try {
        const { name, values: given, input } = order.call(values);
        if (!order.lines)
            return order.resultOf(await ask(name, given, { input }));
        await follow(name, given, { input, signal, onLine });
        return order.resultOf(lines, signal.aborted);
    } catch (problem) {
        if (!(problem instanceof Problem))
            throw problem;
        return { tone: "danger", title: problem.message, text: problem.cure, detail: problem.text, result: "failed" };
    }
}

function Result({ result: { tone, title, text, detail, result } }) {
    return html`
        <${Notice} tone=${tone} title=${title} role="status" data-result=${result}>
            ${text && html`<p>${text}</p>`}
            ${detail && html`<pre class="fm-text">${detail}</pre>`}
        <//>`;
}

function Progress({ lines, total, order: { title, lines: hasSteps, doneOf, noteOf } }) {
    if (!hasSteps)
        return html`<progress class="fm-progress" aria-label=${title}></progress>`;
    const done = doneOf(lines);
    return html`
        <p role="status">${number(done)} of ${number(total)} done${noteOf(lines)}</p>
        <progress class="fm-progress" max=${total} value=${done} aria-label=${title}></progress>`;
}

/**
 * A hook for views with orders: [dialog or null, function that opens an order].
 *
 * @param {function(object)} onEnd Called with the result of each order that was given.
 */
export function useOrders(onEnd) {
    const [order, setOrder] = useState(null);
    const close = (result, next = null) => {
        setOrder(next);
        if (result)
            onEnd(result);
    };
    // The key makes a fresh dialog for an order that follows another.
    return [order && html`<${Order} key=${order.title} order=${order} onClose=${close} />`, setOrder];
}
