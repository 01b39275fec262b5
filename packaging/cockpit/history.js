// SPDX-License-Identifier: GPL-2.0-or-later
// Rates and lags of instances since the page was opened, for the plots.

const MOST = 720;
const samples = new Map();

/** Keep the values that instances have now. */
export function remember(instances, at) {
    for (const { name, rate, lag } of instances.filter((one) => one.rate !== null)) {
        const kept = samples.get(name) ?? { times: [], rates: [], lags: [] };
        samples.set(name, kept);
        if (kept.times.at(-1) >= at)
            continue;
        kept.times.push(at);
        kept.rates.push(rate);
        kept.lags.push(lag);
        if (kept.times.length > MOST)
            Object.values(kept).forEach((values) => values.shift());
    }
}

/** Return { times, rates, lags } of an instance, the oldest first. */
export function historyOf(name) {
    return samples.get(name) ?? { times: [], rates: [], lags: [] };
}
