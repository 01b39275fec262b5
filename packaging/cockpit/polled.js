// SPDX-License-Identifier: GPL-2.0-or-later
// A hook that asks again and again, and rests while nobody sees the page.

import { ask } from "./calls.js";
import { useCallback, useEffect, useState } from "./view.js";

// A call rests for so many times its own duration: the host has other work than this page.
const REST = 4;
const NOTHING = { data: null, problem: null, at: null };

/**
 * Return { data, at, view, refresh }: the latest document of a call with its time, and the latest problem.
 *
 * `view` has the attributes of a View that tell of the call: its problem, its time, and if it has no answer yet.
 * A problem keeps the document before it: old facts with their time are better than none.
 *
 * @param {number} seconds Between an answer and the next question; 0 asks once.
 */
export function usePolled(name, values, seconds) {
    const [state, setState] = useState(NOTHING);
    const [turn, setTurn] = useState(0);
    const key = JSON.stringify(values);
    useEffect(() => poll(name, JSON.parse(key), seconds, setState), [name, key, seconds, turn]);
    const refresh = useCallback(() => setTurn((before) => before + 1), []);
    const { data, problem, at } = state;
    return { data, at, refresh, view: { problem, at, busy: !data && !problem } };
}

function poll(name, values, seconds, setState) {
    const ended = new AbortController();
    const { signal } = ended;
    (async () => {
        do {
            const begin = performance.now();
            const change = await answerOf(name, values, signal);
            const took = (performance.now() - begin) / 1000;
            if (!signal.aborted)
                setState((before) => ({ ...before, ...change }));
            await rest(seconds && Math.max(seconds, took * REST), signal);
        } while (seconds && !signal.aborted);
    })();
    return () => ended.abort();
}

async function answerOf(name, values, signal) {
    try {
        return { data: await ask(name, values, { signal }), problem: null, at: Date.now() / 1000 };
    } catch (problem) {
        return { problem };
    }
}

async function rest(seconds, signal) {
    await happens((wake) => {
        const timer = setTimeout(wake, seconds * 1000);
        signal.addEventListener("abort", () => { clearTimeout(timer); wake(); }, { once: true });
    });
    if (document.hidden && !signal.aborted)
        await happens((wake) => {
            document.addEventListener("visibilitychange", wake, { once: true, signal });
            signal.addEventListener("abort", wake, { once: true });
        });
}

function happens(arrange) {
    return new Promise((resolve) => arrange(resolve));
}
