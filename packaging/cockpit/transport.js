// SPDX-License-Identifier: GPL-2.0-or-later
// Runs programs on the host, by Cockpit's bridge or by `fm-consumer web`.
//
// Both ways have one promise: `run` calls `onText` with the standard output as it comes, and
// returns { exit, err } when the program has ended. It raises TransportError where the program
// could not be started or its host is gone.

import { runInCockpit } from "./by_cockpit.js";
import { runByServer } from "./by_server.js";

export const isCockpit = "cockpit" in globalThis;

/**
 * Run a call.
 *
 * @param {{name: string, argv: string[], values: object, live: object}} call As calls.js made it.
 * @param {{input: string, onText: function(string), signal: AbortSignal}} options The signal ends the program.
 */
export const run = isCockpit ? runInCockpit : runByServer;
