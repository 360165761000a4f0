// The list of conversations, by age, with search through titles and everything that was said.

import { confirm, askText } from "./dialogs.js";
import { byId, h } from "./dom.js";
import { emit, on } from "./events.js";
import * as library from "./library.js";
import { searchMessages } from "./store.js";
import { snippet } from "./text.js";

const DAY = 24 * 3600 * 1000;
const SHOWN = 200;
const SEARCH_MS = 120;

let current = "";
let found = new Map();
let timer = 0;
let drawing = 0;

/** @param {string} id */
export function markCurrent(id) {
  current = id;
  drawSoon();
}

export function openSidebar(isOpen = true) {
  document.body.classList.toggle("with-sidebar", isOpen);
  if (isOpen) byId("search").focus();
}

function drawSoon() {
  drawing ||= requestAnimationFrame(draw);
}

function draw() {
  drawing = 0;
  const query = byId("search").value.trim().toLowerCase();
  const all = [...library.infos.values()].sort((a, b) => b.updated - a.updated);
  const hits = all.filter((info) => !query || info.title.toLowerCase().includes(query) || found.has(info.id));
  const nav = byId("conversations");
  const focused = nav.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
  const groups = new Map();
  for (const info of hits.slice(0, SHOWN)) {
    const age = ageOf(info.updated);
    if (!groups.has(age)) groups.set(age, []);
    groups.get(age).push(item(info, query));
  }
  nav.replaceChildren(...[...groups].map(([age, items]) =>
    h("section", {}, h("h2", { text: age }), h("ul", {}, ...items))));
  if (hits.length > SHOWN) nav.append(h("p", { class: "quiet", text: `${hits.length - SHOWN} more; search finds them.` }));
  if (!hits.length) nav.append(h("p", { class: "quiet", text: query ? "Nothing found." : "Your conversations will be listed here. They stay in this browser." }));
  if (focused) nav.querySelector(`[data-id="${focused}"] button`)?.focus();
}

function item(info, query) {
  const said = query ? snippet(found.get(info.id) ?? "", query) : "";
  const open = h("button", {
    type: "button", class: "entry", "aria-current": info.id === current ? "page" : undefined,
    onclick: () => { emit("open", info.id); openSidebar(false); },
  }, h("span", { text: info.title }), said && h("small", { text: said }));
  const act = (name, label, run) => h("button", {
    type: "button", class: "icon", "aria-label": `${label}: ${info.title}`, title: label, icon: name, onclick: run,
  });
  return h("li", { "data-id": info.id }, open,
    h("span", { class: "more" }, act("edit", "Rename", () => rename(info)), act("trash", "Delete", () => remove(info))));
}

async function rename(info) {
  const title = await askText("Rename the conversation", "Title", info.title);
  const conversation = title && await library.open(info.id);
  if (!conversation) return;
  conversation.info.title = title;
  library.saveInfo(conversation);
}

async function remove(info) {
  const text = `“${info.title}” goes for good; nothing of it is kept anywhere else.`;
  if (await confirm("Delete the conversation?", text, "Delete")) library.removeConversation(info.id);
}

function ageOf(when) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (when >= midnight) return "Today";
  if (when >= midnight - DAY) return "Yesterday";
  return when >= midnight - 7 * DAY ? "The last seven days" : "Older";
}

byId("search").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    const query = byId("search").value.trim();
    found = query ? await searchMessages(query).catch(() => new Map()) : new Map();
    drawSoon();
  }, SEARCH_MS);
});
byId("open-sidebar").addEventListener("click", () => openSidebar(!document.body.classList.contains("with-sidebar")));
byId("close-sidebar").addEventListener("click", () => openSidebar(false));
byId("new-chat").addEventListener("click", () => { emit("open", null); openSidebar(false); });
on("infos", drawSoon);
