// SPDX-License-Identifier: GPL-2.0-or-later
// The routes of the page: the part of the address after "#".

import { useEffect, useState } from "./view.js";

/** Return the route { parts, query } of an address such as "#/sample/quarantine/rows?after=41". */
export function routeOf(hash) {
    const [path, query = ""] = hash.replace(/^#/u, "").split("?");
    return {
        parts: path.split("/").filter(Boolean).map(decoded),
        query: Object.fromEntries(new URLSearchParams(query)),
    };
}

function decoded(part) {
    try {
        return decodeURIComponent(part);
    } catch {
        return part;
    }
}

/** Return the address of a route. */
export function linkTo(parts, query = {}) {
    const given = Object.entries(query).filter(([, value]) => value);
    const text = new URLSearchParams(given).toString();
    return `#/${parts.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

/** Go to a route. */
export function go(parts, query) {
    globalThis.location.hash = linkTo(parts, query);
}

/** A hook that returns the route, now and after each change. */
export function useRoute() {
    const [hash, setHash] = useState(globalThis.location.hash);
    useEffect(() => {
        const changed = () => setHash(globalThis.location.hash);
        globalThis.addEventListener("hashchange", changed);
        return () => globalThis.removeEventListener("hashchange", changed);
    }, []);
    return { ...routeOf(hash), hash };
}
