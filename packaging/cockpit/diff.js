// SPDX-License-Identifier: GPL-2.0-or-later
// The difference of two texts, line by line.

// So many pairs of lines are compared at most; longer texts are shown as removed and added.
const MOST_PAIRS = 4_000_000;

/** Return pairs [sign, line] with the signs " ", "-" and "+". */
export function diff(before, after) {
    const [old, fresh] = [before.split("\n"), after.split("\n")];
    let start = 0;
    while (start < Math.min(old.length, fresh.length) && old[start] === fresh[start])
        start += 1;
    let end = 0;
    while (end < Math.min(old.length, fresh.length) - start && old.at(-1 - end) === fresh.at(-1 - end))
        end += 1;
    const middle = diffOfLines(old.slice(start, old.length - end), fresh.slice(start, fresh.length - end));
    return [...signed(" ", old.slice(0, start)), ...middle, ...signed(" ", old.slice(old.length - end))];
}

const signed = (sign, lines) => lines.map((line) => [sign, line]);

// The longest common subsequence, by the table of the textbook.
function diffOfLines(old, fresh) {
    if (old.length * fresh.length > MOST_PAIRS)
        return [...signed("-", old), ...signed("+", fresh)];
    const common = lengths(old, fresh);
    const lines = [];
    let [i, j] = [0, 0];
    while (i < old.length && j < fresh.length) {
        if (old[i] === fresh[j]) {
            lines.push([" ", old[i]]);
            i += 1;
            j += 1;
        } else if (common[i + 1][j] >= common[i][j + 1]) {
            lines.push(["-", old[i]]);
            i += 1;
        } else {
            lines.push(["+", fresh[j]]);
            j += 1;
        }
    }
    return [...lines, ...signed("-", old.slice(i)), ...signed("+", fresh.slice(j))];
}

function lengths(old, fresh) {
    const table = Array.from({ length: old.length + 1 }, () => new Uint32Array(fresh.length + 1));
    for (let i = old.length - 1; i >= 0; i -= 1)
        for (let j = fresh.length - 1; j >= 0; j -= 1)
            table[i][j] = old[i] === fresh[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    return table;
}

const AROUND = 3;

/** Leave out the lines that are equal and far from a change; "…" stands for them. */
export function shortened(lines) {
    const isNear = lines.map((_, place) =>
        lines.slice(Math.max(0, place - AROUND), place + AROUND + 1).some(([sign]) => sign !== " "));
    return lines.flatMap((line, place) =>
        isNear[place] ? [line] : place === 0 || isNear[place - 1] ? [["…", ""]] : []);
}
