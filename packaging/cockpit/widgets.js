// SPDX-License-Identifier: GPL-2.0-or-later
// The small parts that the views share.

import { age, moment } from "./format.js";
import { toneOf } from "./instance_state.js";
import { linkTo } from "./router.js";
import { html, useEffect, useRef } from "./view.js";

/**
 * A view: its heading, its problem, and its content.
 *
 * @param {string} name For `data-view`.
 * @param {boolean} busy True until the first answer.
 * @param {Array} trail Pairs of a text and the parts of its route.
 */
export function View({ name, title, badge, trail, actions, problem, at, busy, tabs, children }) {
    const heading = useRef(null);
    useEffect(() => {
        document.title = `${title} · Message consumers`;
        heading.current?.focus({ preventScroll: true });
    }, [title, name]);
    return html`
        <main data-view=${name} aria-busy=${busy ? "true" : "false"}>
            <header class="fm-head">
                ${trail && html`<${Trail} steps=${trail} title=${title} />`}
                <div class="fm-title">
                    <h1 class="pf-v6-c-title pf-m-2xl" tabindex="-1" ref=${heading}>${title}</h1>
                    ${badge}
                    <div class="fm-actions">${actions}</div>
                </div>
                ${tabs}
            </header>
            <section class="fm-content">
                ${problem && html`<${Trouble} problem=${problem} at=${at} />`}
                ${busy ? html`<${Waiting} />` : children}
            </section>
        </main>`;
}

function Trail({ steps, title }) {
    return html`
        <nav class="pf-v6-c-breadcrumb" aria-label="Breadcrumb">
            <ol class="pf-v6-c-breadcrumb__list" role="list">
                ${steps.map(([text, parts]) => html`
                    <li class="pf-v6-c-breadcrumb__item" key=${text}>
                        <a class="pf-v6-c-breadcrumb__link" href=${linkTo(parts)}>${text}</a>
                        <span class="fm-divider" aria-hidden="true">›</span>
                    </li>`)}
                <li class="pf-v6-c-breadcrumb__item"><span aria-current="page">${title}</span></li>
            </ol>
        </nav>`;
}

/** Show that the first answer is under way. */
export function Waiting() {
    return html`<p class="fm-waiting" role="status">
        <span class="pf-v6-c-spinner pf-m-md fm-spinner" aria-hidden="true"></span> Asking the host…
    </p>`;
}

/** Show a problem with its cure, and the time of the facts that are shown below it. */
export function Trouble({ problem, at }) {
    const stale = at ? ` The facts below are those of ${moment(at)}.` : "";
    return html`
        <${Notice} tone="danger" role="alert" title=${problem.message}>
            ${(problem.cure || stale) && html`<p>${problem.cure}${stale}</p>`}
            ${problem.text && html`<pre class="fm-text">${problem.text}</pre>`}
        <//>`;
}

const SIGNS = { danger: "!", warning: "!", success: "✓", info: "i", custom: "i" };

/** Show a notice: a coloured sign, a title and more text. */
export function Notice({ tone, title, children, ...more }) {
    return html`
        <div class=${`pf-v6-c-alert pf-m-inline pf-m-${tone}`} ...${more}>
            <div class="pf-v6-c-alert__icon fm-sign" aria-hidden="true">${SIGNS[tone]}</div>
            <p class="pf-v6-c-alert__title">${title}</p>
            ${children && html`<div class="pf-v6-c-alert__description">${children}</div>`}
        </div>`;
}

/** Show the condition of an instance as a coloured word. */
export function Condition({ condition }) {
    const tone = toneOf(condition);
    const shade = tone === "grey" ? "" : `pf-m-${tone}`;
    return html`<span class=${`pf-v6-c-label ${shade}`} data-condition=${condition}>
        <span class="pf-v6-c-label__content"><span class="pf-v6-c-label__text">${condition}</span></span>
    </span>`;
}

/** A button. `kind`: primary, secondary, danger, link; or two of them, as "secondary danger". */
export function Button({ kind = "secondary", small, children, ...more }) {
    return html`
        <button type="button" class=${classesOf(kind, small)} ...${more}>
            <span class="pf-v6-c-button__text">${children}</span>
        </button>`;
}

function classesOf(kind, small) {
    const modifiers = [...kind.split(" "), ...small ? ["small"] : []].map((one) => `pf-m-${one}`);
    return ["pf-v6-c-button", ...modifiers].join(" ");
}

/** A link that looks like a button. */
export function LinkButton({ href, children }) {
    return html`<a class="pf-v6-c-button pf-m-secondary pf-m-small" href=${href}>
        <span class="pf-v6-c-button__text">${children}</span></a>`;
}

/** Names and values; a value of null or "" is left out. */
export function Facts({ facts, label }) {
    const shown = facts.filter(([, value]) => value !== null && value !== undefined && value !== "");
    return html`
        <dl class="pf-v6-c-description-list pf-m-horizontal pf-m-compact fm-facts" aria-label=${label}>
            ${shown.map(([name, value]) => html`
                <div class="pf-v6-c-description-list__group" key=${name}>
                    <dt class="pf-v6-c-description-list__term">
                        <span class="pf-v6-c-description-list__text">${name}</span></dt>
                    <dd class="pf-v6-c-description-list__description">
                        <div class="pf-v6-c-description-list__text">${value}</div></dd>
                </div>`)}
        </dl>`;
}

/**
 * A table.
 *
 * @param {Array} columns Each { name, right, optional, hidden }: `optional` columns go first on a small
 *     screen, and `hidden` names are for screen readers only.
 * @param {Array} rows Each { key, data, cells }; `data` are attributes of the row.
 */
export function Table({ label, columns, rows }) {
    const classOf = ({ right, optional, wide }) =>
        [right && "fm-right", optional && "fm-optional", wide && "fm-wide"].filter(Boolean).join(" ");
    return html`
        <div class="fm-scroll" tabindex="0" role="region" aria-label=${label}>
        <table class="pf-v6-c-table pf-m-compact" aria-label=${label}>
            <thead class="pf-v6-c-table__thead">
                <tr class="pf-v6-c-table__tr">
                    ${columns.map((column) => html`
                        <th scope="col" class=${`pf-v6-c-table__th ${classOf(column)}`} key=${column.name}>
                            <span class=${column.hidden ? "fm-hidden" : ""}>${column.name}</span>
                        </th>`)}
                </tr>
            </thead>
            <tbody class="pf-v6-c-table__tbody">
                ${rows.map(({ key, data, cells }) => html`
                    <tr class="pf-v6-c-table__tr" key=${key} ...${data}>
                        ${cells.map((cell, place) => html`
                            <td class=${`pf-v6-c-table__td ${classOf(columns[place])}`}
                                data-label=${columns[place].name} key=${columns[place].name}>${cell}</td>`)}
                    </tr>`)}
            </tbody>
        </table>
        </div>`;
}

/** Show that there is nothing, and why that is fine or how to change it. */
export function Empty({ title, children }) {
    return html`
        <div class="pf-v6-c-empty-state pf-m-sm">
            <div class="pf-v6-c-empty-state__content">
                <h2 class="pf-v6-c-empty-state__title-text">${title}</h2>
                ${children && html`<div class="pf-v6-c-empty-state__body">${children}</div>`}
            </div>
        </div>`;
}

/** A word of machines: a topic, an id, a path. */
export const Code = ({ children }) => html`<span class="fm-code">${children}</span>`;

/** A text that may be long, such as that of an error; it wraps anywhere. */
export const Wrapped = ({ children }) => html`<span class="fm-error">${children}</span>`;

/** A text of several lines, as it is. */
export function Text({ title, children }) {
    return html`<section class="fm-part"><h2>${title}</h2>
        <pre class="fm-pre" tabindex="0" aria-label=${title}>${children}</pre></section>`;
}

/** Show the age of a moment, with the moment as its title. */
export function Age({ at }) {
    if (at === null || at === undefined)
        return null;
    const date = new Date(at * 1000).toISOString();
    return html`<time datetime=${date} title=${moment(at)}>${age(Date.now() / 1000 - at)}</time>`;
}

/** A labelled field of a form: a text, or a list of choices [value, text]. */
export function Field({ id, label, help, choices, onValue, value }) {
    const described = help ? `${id}-help` : undefined;
    const given = { id, value, "aria-describedby": described };
    return html`
        <div class="pf-v6-c-form__group">
            <label class="pf-v6-c-form__label" for=${id}>
                <span class="pf-v6-c-form__label-text">${label}</span></label>
            <div class="pf-v6-c-form__group-control">
                <span class="pf-v6-c-form-control">
                    ${choices
                        ? html`<${Select} choices=${choices} onValue=${onValue} ...${given} />`
                        : html`<input type="text" autocomplete="off" ...${given}
                            onInput=${(event) => onValue(event.target.value)} />`}
                </span>
                ${help && html`<p class="fm-help" id=${described}>${help}</p>`}
            </div>
        </div>`;
}

function Select({ choices, value, onValue, ...more }) {
    return html`
        <select value=${value} onChange=${(event) => onValue(event.target.value)} ...${more}>
            ${choices.map(([one, text]) => html`
                <option key=${one} value=${one} selected=${one === value}>${text}</option>`)}
        </select>`;
}
