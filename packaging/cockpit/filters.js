// SPDX-License-Identifier: GPL-2.0-or-later
// The controls above a table that choose its rows.

import { html } from "./view.js";

/** A row of controls; with `onSearch`, a form with a button. */
export function Filters({ onSearch, children }) {
    if (!onSearch)
        return html`<div class="fm-filters">${children}</div>`;
    const submitted = (event) => { event.preventDefault(); onSearch(); };
    return html`
        <form class="fm-filters" role="search" onSubmit=${submitted}>
            ${children}
            <button class="pf-v6-c-button pf-m-secondary pf-m-small" type="submit">
                <span class="pf-v6-c-button__text">Search</span></button>
        </form>`;
}

export function TextFilter({ label, value, onValue, example, long }) {
    return html`
        <label>${label}${" "}
            <input class=${`fm-input ${long ? "fm-long" : ""}`} type="search" value=${value} placeholder=${example}
                onInput=${(event) => onValue(event.target.value)} /></label>`;
}

/** @param {Array} choices Pairs of a value and its text. */
export function ChoiceFilter({ label, value, choices, onValue }) {
    return html`
        <label>${label}${" "}
            <select class="fm-input" value=${value} onChange=${(event) => onValue(event.target.value)}>
                ${choices.map(([one, text]) => html`
                    <option key=${one} value=${one} selected=${one === value}>${text}</option>`)}
            </select></label>`;
}

export function CheckFilter({ label, value, onValue }) {
    return html`
        <label class="fm-check">
            <input type="checkbox" checked=${value} onChange=${(event) => onValue(event.target.checked)} /> ${label}
        </label>`;
}
