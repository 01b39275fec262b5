// SPDX-License-Identifier: GPL-2.0-or-later
// Plots: uPlot for one instance, and lines of some pixels for a table.

import { clock } from "./format.js";
import { html, useEffect, useRef } from "./view.js";
import uPlot from "./vendor/uplot/uPlot.esm.js";

const HEIGHT = 160;
// Seconds: a plot of less would be empty at first.
const LEAST_SPAN = 60;
// Numbers of messages are whole, so their axis is, too.
const WHOLE = Array.from({ length: 9 }, (_, power) => [1, 2, 5].map((first) => first * 10 ** power)).flat();
const TOKENS = {
    line: "--pf-t--global--color--brand--default",
    text: "--pf-t--global--text--color--regular",
    grid: "--pf-t--global--border--color--default",
};

/**
 * A plot of values over time.
 *
 * @param {number[]} times Seconds since the epoch.
 * @param {Array<number|null>} values As many as times.
 * @param {function(number): string} format Shows a value.
 * @param {boolean} whole True if values are whole numbers.
 */
export function Plot({ label, times, values, format, whole }) {
    const place = useRef(null);
    const plot = useRef(null);
    // uPlot draws no axis for a single time.
    const data = times.length === 1 ? [[times[0] - LEAST_SPAN, times[0]], [null, values[0]]] : [times, values];
    useEffect(() => {
        plot.current = new uPlot(optionsOf(place.current, { label, format, whole }), data, place.current);
        const observer = new ResizeObserver(() =>
            plot.current.setSize({ width: place.current.clientWidth, height: HEIGHT }));
        observer.observe(place.current);
        return () => { observer.disconnect(); plot.current.destroy(); };
    }, [label]);
    useEffect(() => plot.current?.setData(data), [times.at(-1)]);
    const latest = values.at(-1);
    return html`
        <figure class="fm-plot">
            <figcaption>${label}: <strong>${format(latest) || "not known"}</strong></figcaption>
            <div ref=${place} role="img" aria-label=${`${label} since the page was opened`}></div>
        </figure>`;
}

function optionsOf(place, { label, format, whole }) {
    // Read at each drawing: the theme may change.
    const colour = (token) => () =>
        getComputedStyle(document.documentElement).getPropertyValue(TOKENS[token]).trim() || "currentColor";
    const axis = { stroke: colour("text"), grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false } };
    return {
        width: place.clientWidth || 300,
        height: HEIGHT,
        legend: { show: false },
        cursor: { y: false },
        scales: {
            x: { range: (_plot, first, last) => [Math.min(first, last - LEAST_SPAN), last] },
            y: { range: (_plot, _least, most) => [0, Math.max(1, (most ?? 0) * 1.1)] },
        },
        series: [{}, { label, stroke: colour("line"), width: 2, points: { show: false } }],
        axes: [
            { ...axis, values: (_plot, ticks) => ticks.map(clock), space: 90 },
            { ...axis, values: (_plot, ticks) => ticks.map(format), size: 70, ...whole && { incrs: WHOLE } },
        ],
    };
}

const WIDE = 72;
const HIGH = 20;
const SHOWN = 36;

/** A line of some pixels: the shape of the latest values, without axes. */
export function Sparkline({ values }) {
    const shown = values.slice(-SHOWN).map((value) => value ?? 0);
    if (shown.length < 2)
        return null;
    const most = Math.max(...shown, 1e-9);
    const points = shown.map((value, place) =>
        `${(place * WIDE / (SHOWN - 1)).toFixed(1)},${(HIGH - 1 - value / most * (HIGH - 2)).toFixed(1)}`);
    return html`<svg class="fm-spark" width=${WIDE} height=${HIGH} aria-hidden="true">
        <polyline points=${points.join(" ")} /></svg>`;
}
