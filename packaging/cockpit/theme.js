// SPDX-License-Identifier: GPL-2.0-or-later
// Light or dark: Cockpit's own switch where there is one, the browser's wish otherwise.

const DARK = "pf-v6-theme-dark";
const STORED = "shell:style";

/** Follow the theme from now on. */
export function followTheme() {
    const wish = globalThis.matchMedia("(prefers-color-scheme: dark)");
    const apply = (style) => document.documentElement.classList.toggle(DARK,
        style === "dark" || (style !== "light" && wish.matches));
    const stored = () => apply(globalThis.localStorage.getItem(STORED) ?? "auto");
    globalThis.addEventListener("storage", (event) => event.key === STORED && stored());
    globalThis.addEventListener("cockpit-style", (event) => apply(event.detail.style));
    wish.addEventListener("change", stored);
    stored();
}
