// The message box: grows with its text, keeps an unsent draft, sends with Enter.

import { countTokens } from "./api.js";
import { byId } from "./dom.js";
import { emit, on } from "./events.js";
import { runIn } from "./generate.js";

const COUNT_MS = 500;
/** Stop stands where Send was: the second click of a double click stops nothing. */
const DOUBLE_CLICK_MS = 500;

/** @type {HTMLTextAreaElement} */
const draft = byId("draft");
let conv = "";
let countTimer = 0;
let clickedAt = -Infinity;

/** @param {string} id the conversation that is written to */
export function writeTo(id) {
  conv = id;
  draft.value = remembered();
  grow();
  countSoon();
  showButtons();
}

export const focusDraft = () => draft.focus();

function remembered() {
  try {
    return sessionStorage.getItem(`naiad.draft.${conv}`) ?? "";
  } catch {
    return "";
  }
}

function remember() {
  try {
    if (draft.value) sessionStorage.setItem(`naiad.draft.${conv}`, draft.value);
    else sessionStorage.removeItem(`naiad.draft.${conv}`);
  } catch { /* the draft lives as long as the page */ }
}

function grow() {
  draft.style.height = "auto";
  draft.style.height = `${draft.scrollHeight}px`;
  byId("send").disabled = !draft.value.trim();
}

function showButtons() {
  const isBusy = Boolean(runIn(conv));
  byId("stop").hidden = !isBusy;
  byId("send").hidden = isBusy;
}

function countSoon() {
  clearTimeout(countTimer);
  if (!draft.value.trim()) {
    emit("draft-tokens", 0);
    return;
  }
  countTimer = setTimeout(async () => {
    emit("draft-tokens", await countTokens(draft.value).catch(() => 0));
  }, COUNT_MS);
}

function send() {
  const text = draft.value.trim();
  if (!text || runIn(conv)) return;
  draft.value = "";
  remember();
  grow();
  countSoon();
  emit("send", text);
}

/** Put text into the box, as when a suggestion is taken. @param {string} text */
export function suggest(text) {
  draft.value = text;
  grow();
  draft.focus();
}

draft.addEventListener("input", () => {
  grow();
  remember();
  countSoon();
});
draft.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
  if (event.key === "ArrowUp" && !draft.value) {
    event.preventDefault();
    emit("edit-last");
  }
});
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("composer").addEventListener("click", (event) => {
  if (event.target.closest("button, a, textarea") === null) draft.focus();
});
byId("send").addEventListener("click", () => { clickedAt = performance.now(); });
byId("stop").addEventListener("click", () => {
  if (performance.now() - clickedAt < DOUBLE_CLICK_MS) return;
  runIn(conv)?.stop();
  draft.focus();
});
on("run", showButtons);
on("run-ended", showButtons);
