// The list of messages. Only the newest are in the page; older ones come as one scrolls up to them,
// so a conversation of thousands of turns opens as fast as a short one.

import { byId, h } from "./dom.js";
import { on } from "./events.js";
import { runIn } from "./generate.js";
import { MessageView } from "./message.js";

const PAGE = 24;
const NEAR_PX = 80;

/** @type {any} */
const box = byId("thread");
const older = h("div", { class: "older" });
const list = h("div", { class: "list" });
/** @type {Map<string, MessageView>} */
const views = new Map();
/** @type {import("./conversation.js").Conversation | null} */
let shown = null;
/** @type {import("./conversation.js").Message[]} */
let path = [];
let from = 0;
let follows = true;

/** @param {import("./conversation.js").Conversation} conversation @param {Node} welcome */
export function showConversation(conversation, welcome) {
  shown = conversation;
  views.clear();
  list.replaceChildren();
  path = conversation.path();
  from = Math.max(0, path.length - PAGE);
  follows = true;
  box.replaceChildren(...(path.length ? [older, list] : [welcome]));
  drawFrom(from);
  toEnd();
}

/** The shown conversation changed: keep what still stands, replace the rest. */
export function refresh() {
  if (!shown) return;
  path = shown.path();
  if (path.length && !list.isConnected) box.replaceChildren(older, list);
  const ids = new Set(path.map((message) => message.id));
  for (const [id, view] of views) {
    if (ids.has(id)) continue;
    view.element.remove();
    views.delete(id);
  }
  const first = path.findIndex((message) => views.has(message.id));
  from = first >= 0 ? first : Math.max(0, path.length - PAGE);
  drawFrom(from);
  keepUp();
}

function drawFrom(start) {
  const isBusy = shown !== null && Boolean(runIn(shown.info.id));
  /** @type {Element | null} */
  let before = null;
  for (let at = path.length - 1; at >= start; at -= 1) {
    const message = path[at];
    let view = views.get(message.id);
    if (!view) {
      view = new MessageView(message);
      views.set(message.id, view);
      list.insertBefore(view.element, before);
    }
    before = view.element;
    const siblings = shown.siblings(message);
    view.update({
      place: siblings.indexOf(message.id), of: siblings.length, isLast: at === path.length - 1, isBusy,
    });
  }
  older.hidden = from === 0;
}

new IntersectionObserver(([seen]) => {
  if (!seen.isIntersecting || from === 0) return;
  const height = box.scrollHeight;
  const top = box.scrollTop;
  from = Math.max(0, from - PAGE);
  drawFrom(from);
  box.scrollTop = top + box.scrollHeight - height;
}, { root: box, rootMargin: "600px 0px 0px" }).observe(older);

box.addEventListener("scroll", () => {
  const below = box.scrollHeight - box.scrollTop - box.clientHeight;
  follows = below < NEAR_PX;
  byId("to-end").hidden = below < 3 * NEAR_PX;
}, { passive: true });

/** Stay at the end while an answer grows, unless somebody has scrolled away from it. */
function keepUp() {
  if (follows && !list.querySelector(".editing")) box.scrollTop = box.scrollHeight;
}

export function toEnd() {
  follows = true;
  box.scrollTop = box.scrollHeight;
}

new ResizeObserver(keepUp).observe(list);
box.addEventListener("grown", keepUp);
byId("to-end").addEventListener("click", toEnd);

/** @param {string} id */
export const viewOf = (id) => views.get(id);

let dirty = new Set();
/** However many pieces arrive, each view is brought up to date once per frame. */
function growSoon(id) {
  if (!dirty.size) {
    requestAnimationFrame(() => {
      for (const one of dirty) views.get(one)?.grow();
      dirty = new Set();
    });
  }
  dirty.add(id);
}

on("progress", (run) => growSoon(run.message.id));
on("message", ({ conversation, message }) => {
  if (conversation !== shown || !views.has(message.id)) return;
  if (message.state === "streaming") growSoon(message.id);
  else refresh();
});
for (const name of ["run", "run-ended", "tree"]) {
  on(name, ({ conversation }) => conversation === shown && refresh());
}
on("server-back", () => {
  for (const view of views.values()) view.again();
});
