// How the server is, in plain words, and how full the context is.

import { health } from "./api.js";
import { byId, count, toast } from "./dom.js";
import { emit, on } from "./events.js";

const WELL_MS = 20_000;
const UNWELL_MS = 2_000;
const WORDS = {
  loading: "The model is being loaded",
  restarting: "The engine stopped and is being restarted; what was said is kept.",
  failed: "The engine could not be started. The server's log says why.",
  down: "The server cannot be reached. Your conversations are kept in this browser; this page tries again by itself.",
};

let state = "";
let timer = 0;
let model = "";
export let contextSize = 0;
let used = 0;
let draftTokens = 0;
let isOver = false;
let drawing = 0;

/** Ask the server now, and again later: soon while something is wrong. */
export async function look() {
  clearTimeout(timer);
  const told = await health();
  const next = told ? told.status : "down";
  if (told?.model) {
    model = told.model;
    contextSize = told.engine.n_ctx;
  }
  show(next, told);
  if (state && state !== "ok" && next === "ok") {
    toast("The server is back.");
    emit("server-back");
  }
  state = next;
  timer = setTimeout(look, next === "ok" ? WELL_MS : UNWELL_MS);
}

function show(next, told) {
  const chip = byId("server");
  chip.className = next === "ok" ? "ok" : "unwell";
  chip.title = next === "ok" ? `${model}: ${count(contextSize)} tokens of context` : WORDS[next] ?? next;
  chip.querySelector(".told").textContent = next === "ok" ? model : { loading: "Loading", restarting: "Restarting", failed: "Failed", down: "No connection" }[next] ?? next;
  const banner = byId("banner");
  const percent = next === "loading" ? ` (${Math.round(100 * told.progress)} %).` : "";
  const words = next === "ok" ? "" : `${WORDS[next] ?? told.reason}${percent}`;
  if (banner.textContent !== words) banner.textContent = words;
  banner.hidden = next === "ok";
  showMeter();
}

/** How many tokens the shown conversation takes; drawn once per frame. @param {number} tokens */
export function meter(tokens) {
  used = tokens;
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    showMeter();
  });
}

function showMeter() {
  const element = byId("meter");
  const total = used + draftTokens;
  element.hidden = !contextSize || !total;
  byId("hint").hidden = !element.hidden;
  if (element.hidden) return;
  const share = Math.min(1, total / contextSize);
  element.querySelector(".bar span").style.width = `${100 * share}%`;
  element.querySelector(".told").textContent = `${count(total)} of ${count(contextSize)} tokens`;
  element.classList.toggle("full", share > 0.9);
  element.title = draftTokens ? `${count(used)} in the conversation, ${count(draftTokens)} in your message` : "Context used";
  if (share === 1 && !isOver) toast("The conversation fills the model's context; a new one, or an earlier branch, has room.", "bad");
  isOver = share === 1;
}

on("draft-tokens", (tokens) => {
  draftTokens = tokens;
  showMeter();
});
on("trouble", (error) => {
  if (error.status === 0 || error.status >= 500) look();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
  else clearTimeout(timer);
});
addEventListener("online", look);
