// SPDX-License-Identifier: GPL-2.0-or-later
// Numbers, times and sizes as people read them.

const STEPS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

/** Return a length of time in its two largest units: "3 d 4 h", "12 s"; "" for null. */
export function duration(seconds) {
    if (seconds === null || seconds === undefined)
        return "";
    const whole = Math.max(0, Math.round(seconds));
    const first = STEPS.findIndex(([size]) => whole >= size);
    if (first < 0)
        return "0 s";
    const [size, unit] = STEPS[first];
    const [nextSize, nextUnit] = STEPS[first + 1] ?? [1, ""];
    const rest = Math.floor((whole % size) / nextSize);
    return `${Math.floor(whole / size)} ${unit}${rest && nextUnit && first < 3 ? ` ${rest} ${nextUnit}` : ""}`;
}

/** Return a length of time in its largest unit, for tables: "3 d", "12 s"; "" for null. */
export function age(seconds) {
    if (seconds === null || seconds === undefined)
        return "";
    const [size, unit] = STEPS.find(([each]) => seconds >= each) ?? STEPS.at(-1);
    return `${Math.floor(Math.max(0, seconds) / size)} ${unit}`;
}

/** Return a whole number with its thousands apart: "41,200"; "" for null. */
export function number(value) {
    return value === null || value === undefined ? "" : Math.round(value).toLocaleString("en");
}

/** Return a rate: "118/s", "2/min", "0/s"; "" for null. */
export function rate(perSecond) {
    if (perSecond === null || perSecond === undefined)
        return "";
    if (perSecond === 0 || perSecond >= 9.95)
        return `${number(perSecond)}/s`;
    return perSecond >= 1 ? `${perSecond.toFixed(1)}/s` : `${(perSecond * 60).toPrecision(2).replace(/\.0$/u, "")}/min`;
}

/** Return a size in bytes: "1.2 KiB". */
export function bytes(value) {
    const units = ["B", "KiB", "MiB", "GiB"];
    const power = Math.min(3, Math.max(0, Math.floor(Math.log2(Math.max(1, value)) / 10)));
    const amount = value / 1024 ** power;
    return `${power && amount < 100 ? amount.toFixed(1) : Math.round(amount)} ${units[power]}`;
}

/** Return a time in seconds since the epoch as "2026-11-27 20:04:35", in the browser's zone. */
export function moment(seconds) {
    const date = new Date(seconds * 1000);
    const local = new Date(date.getTime() - date.getTimezoneOffset() * 60000);
    return local.toISOString().slice(0, 19).replace("T", " ");
}

/** Return the time of day of a moment: "20:04:35". */
export function clock(seconds) {
    return moment(seconds).slice(11);
}

/** Return "1 message", "2 messages". */
export function plural(count, noun) {
    return `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
}
