// SPDX-License-Identifier: GPL-2.0-or-later
// The state of an instance in words, from the JSON of `fm-consumer status`.
//
// Fields that an older command does not print are null here, and the views leave them out.

// How bad a condition is (0 is worst), and the colour of its label. Words that are unknown here are in the middle.
const CONDITIONS = {
    failed: [0, "danger"],
    stuck: [0, "danger"],
    "not answering": [0, "danger"],
    failing: [0, "danger"],
    restarting: [0, "danger"],
    paused: [1, "warning"],
    retrying: [1, "warning"],
    lagging: [1, "warning"],
    slow: [1, "warning"],
    unknown: [2, "warning"],
    draining: [3, "info"],
    starting: [3, "info"],
    building: [3, "info"],
    connecting: [3, "info"],
    subscribing: [3, "info"],
    stopped: [4, "grey"],
    consuming: [5, "success"],
    idle: [5, "success"],
};
const UNKNOWN = [2, "warning"];

/** Return the colour of a condition's label. */
export const toneOf = (condition) => (CONDITIONS[condition] ?? UNKNOWN)[1];

/** Return how bad a condition is; 0 is worst. */
export const rankOf = (condition) => (CONDITIONS[condition] ?? UNKNOWN)[0];

/** Return the instances of a status document as the views need them. */
export function instancesOf(document) {
    return (document?.groups ?? []).flatMap((group) =>
        group.instances.map((one) => instanceOf(one, group)));
}

function instanceOf(one, group) {
    const report = one.report ?? {};
    const condition = conditionOf(one);
    return {
        name: one.name,
        group: group.name,
        workers: group.instances.map((each) => each.name),
        isActive: one.active,
        hasUnit: Boolean(one.unit),
        condition,
        reason: reasonOf(one, condition),
        status: report.status ?? one.unit?.text ?? "",
        remarks: report.remarks ?? [],
        rate: report.rate ?? null,
        lag: report.lag ?? null,
        lagSeconds: report.lag_seconds ?? null,
        loss: report.loss?.subject ? report.loss : null,
        quarantined: one.quarantined,
        deferred: one.deferred,
        nextDue: one.next_due ?? null,
        held: report.held ?? null,
        up: report.up ?? null,
        pid: report.pid || one.unit?.pid || null,
        broker: report.broker ?? "",
        queues: report.queues ?? [],
        counts: report.counts ?? null,
        outbox: report.outbox ?? null,
        restarts: one.unit?.restarts ?? null,
    };
}

function conditionOf(one) {
    const { report, unit } = one;
    if (report)
        return report.condition || report.state || "unknown";
    if (unit?.active === "failed")
        return "failed";
    if (unit?.sub === "auto-restart")
        return "restarting";
    if (!one.active)
        return "stopped";
    return one.problem ? "unknown" : "not answering";
}

const REASONS = {
    restarting: ({ unit }) =>
        `the last process ended with ${unit.exit_status}; systemd starts it again, and the log has the reason`,
    stopped: ({ should_run: shouldRun }) => (shouldRun ? "it is enabled, and starts again with the host" : ""),
    failed: ({ unit }) => `the last process ended with ${unit?.exit_status ?? "an error"}; the log has the reason`,
    "not answering": () => "its event loop is blocked, or it is only starting; its log may tell more",
};

function reasonOf(one, condition) {
    return one.report?.reason || one.report?.trouble || one.problem || (REASONS[condition]?.(one) ?? "");
}

const DAY = 86400;

/** Tell whether messages will be lost so soon that somebody should act. */
export const isSoon = (loss) => loss !== null && loss.seconds < DAY;

const urgencyOf = ({ condition, loss }) => Math.min(rankOf(condition), isSoon(loss) ? 1 : Infinity);

/** Order instances: trouble first, then by name. */
export function byTrouble(one, other) {
    return urgencyOf(one) - urgencyOf(other) ||
        one.name.localeCompare(other.name, "en", { numeric: true });
}
