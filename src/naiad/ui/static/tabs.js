// Several tabs of one browser: what one changes, the others show.

import { emit } from "./events.js";
import { newId } from "./text.js";

/** This tab's name; it survives a reload, so that a tab knows what it was writing before. */
export const tabId = (() => {
  try {
    const known = sessionStorage.getItem("naiad.tab") ?? newId();
    sessionStorage.setItem("naiad.tab", known);
    return known;
  } catch {
    return newId();
  }
})();

/** A tab that has not said for so long that it is still writing has gone away. */
export const SILENCE_MS = 6000;

const channel = new BroadcastChannel("naiad");
channel.onmessage = (event) => emit("from-tab", event.data);

/** @param {{kind: "conversation" | "message" | "removed" | "deleted" | "all", [more: string]: any}} news */
export const tellTabs = (news) => channel.postMessage(news);
