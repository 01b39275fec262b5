// SPDX-License-Identifier: GPL-2.0-or-later
// The library of views: Preact, its hooks, and htm's templates in place of JSX.

import htm from "./vendor/htm/htm.module.js";

const { h } = globalThis.preact;

export const { Component, createContext, render } = globalThis.preact;
export const { useCallback, useContext, useEffect, useLayoutEffect, useRef, useState } =
    globalThis.preactHooks;
export const html = htm.bind(h);
