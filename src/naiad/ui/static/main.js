// The page: puts the parts together and says what each action does.

import * as api from "./api.js";
import { focusDraft, suggest, writeTo } from "./composer.js";
import { askKey, askLong, confirm, showShortcuts } from "./dialogs.js";
import { byId, copyText, drawIcons, h, toast } from "./dom.js";
import { editMessage } from "./edit.js";
import { emit, on } from "./events.js";
import { answer, runIn } from "./generate.js";
import * as library from "./library.js";
import { openSettings, settingsOf } from "./settings.js";
import { markCurrent, openSidebar } from "./sidebar.js";
import { look, meter } from "./status.js";
import { splitThinking, titleFrom } from "./text.js";
import { refresh, showConversation, toEnd, viewOf } from "./thread.js";
import { exportAll, importFile } from "./transfer.js";

/** @type {import("./conversation.js").Conversation} */
let shown;

const SUGGESTIONS = [
  "Explain how a tide works, to someone who has never seen the sea.",
  "Write a short program that finds duplicate files, and explain it.",
  "Plan a calm weekend in three lines.",
];

function welcome() {
  const buttons = SUGGESTIONS.map((text) => h("button", { type: "button", text, onclick: () => suggest(text) }));
  return h("div", { class: "welcome" },
    h("img", { src: "/ui/icon.svg", alt: "", width: 56, height: 56 }),
    h("h2", { text: "What is on your mind?" }),
    h("p", { text: "Everything stays here: the model on this server, the conversation in this browser." }),
    h("div", { class: "suggestions" }, ...buttons));
}

const inAddress = () => /^#c=(\w+)$/.exec(location.hash)?.[1] ?? null;
let nOpened = 0;

/**
 * @param {string | null} id
 * @param {boolean} [isStep] whether Back leads to what was shown before
 */
async function open(id, isStep = false) {
  nOpened += 1;
  const mine = nOpened;
  const found = id === null ? null : await library.open(id);
  if (mine !== nOpened) return; // another was chosen while this one was read
  shown = found ?? library.draftConversation();
  const { info } = shown;
  const address = found ? `#c=${info.id}` : location.pathname;
  const isElsewhere = inAddress() !== (found ? info.id : null);
  if (isStep && isElsewhere) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  showTitle();
  showConversation(shown, welcome());
  markCurrent(info.id);
  settingsOf(shown);
  writeTo(info.id);
  showUsed();
  focusDraft();
}

function showTitle() {
  const { info, messages } = shown;
  byId("title").textContent = info.title;
  document.title = messages.size ? `${info.title} · naiad` : "naiad";
}

/** The tokens of the shown branch, as the last answer's usage tells. */
function showUsed() {
  const told = shown.path().reverse().find((message) => message.stats?.prompt !== undefined);
  meter(told ? told.stats.prompt + told.stats.tokens : 0);
}

on("send", (text) => {
  if (!shown.messages.size) {
    shown.info.title = titleFrom(text);
    history.replaceState(null, "", `#c=${shown.info.id}`);
  }
  library.append(shown, { role: "user", text });
  emit("tree", { conversation: shown });
  toEnd();
  markCurrent(shown.info.id);
  answer(shown);
});

/** What the buttons below a message do. */
const ACTIONS = {
  copy: async (message) => {
    await copyText(splitThinking(message.text).answer || message.text);
    toast("Copied.");
  },
  previous: (message) => turn(message, -1),
  next: (message) => turn(message, 1),
  retry: (message) => answer(shown, { parent: message.parent }),
  continue: (message) => answer(shown, { go_on: message }),
  again: tryAgain,
  delete: removeFrom,
  edit: (message) => edit(message),
  "tool-result": async (message, button) => {
    if (isWriting()) return;
    const text = await askLong("The tool's result");
    if (text !== null) giveResult(message, button.dataset.call, text);
  },
};

/** Whether an answer is under way in what is shown; then that is told. */
function isWriting() {
  const run = runIn(shown.info.id);
  if (run) toast("An answer is being written: wait for its end, or stop it.");
  return Boolean(run);
}

/**
 * One result below the other, and an answer once each call has one; a result that is given again
 * begins another branch with the others as they are.
 */
function giveResult(message, call, text) {
  const path = shown.path();
  const below = path.slice(path.indexOf(message) + 1);
  const end = below.findIndex((one) => one.role !== "tool");
  const given = end < 0 ? below : below.slice(0, end);
  const results = new Map(given.map((one) => [one.toolCallId, one.text]));
  const isAgain = end >= 0 || results.has(call);
  results.set(call, text); // in its old place, if it has one
  if (isAgain) shown.info.leaf = message.id;
  for (const [toolCallId, said] of isAgain ? results : [[call, text]]) {
    library.append(shown, { role: "tool", text: said, toolCallId });
  }
  emit("tree", { conversation: shown });
  const left = message.toolCalls.filter((one) => one && !results.has(one.id)).length;
  if (left) toast(left === 1 ? "One more result is wanted." : `${left} more results are wanted.`);
  else answer(shown);
}

/** An answer that never began leaves no empty version behind. */
function tryAgain(message) {
  library.removeMessage(shown, message.id);
  answer(shown, { parent: message.parent });
}

/** Show the version before or after this one. */
function turn(message, by) {
  const siblings = shown.siblings(message);
  const other = siblings[siblings.indexOf(message.id) + by];
  if (!other) return;
  shown.info.leaf = shown.newestLeaf(other);
  library.saveInfo(shown);
  refresh();
  showUsed();
  const name = by < 0 ? "previous" : "next";
  viewOf(other)?.element.querySelector(`[data-act=${name}]`)?.focus();
}

async function removeFrom(message) {
  const path = shown.path();
  const n = path.length - path.indexOf(message);
  const text = n === 1 ? "This message goes for good." : `This message and the ${n - 1} after it go for good.`;
  if (!await confirm("Delete from here on?", text, "Delete")) return;
  const conversation = shown;
  await library.removeMessage(conversation, message.id); // what the page shows as gone is gone
  if (shown !== conversation) return;
  if (shown.messages.size) refresh();
  else showConversation(shown, welcome());
  showUsed();
  focusDraft();
}

/** An edited message is a new version beside the old one. */
function edit(message) {
  const view = viewOf(message.id);
  if (!view || runIn(shown.info.id)) return;
  editMessage(view.element, message, (text, goesOn) => {
    if (isWriting()) return false;
    shown.info.leaf = message.parent;
    const role = message.role;
    const made = library.append(shown, { role, text, toolCallId: message.toolCallId, state: "done" });
    emit("tree", { conversation: shown });
    if (role !== "assistant") answer(shown);
    else if (goesOn) answer(shown, { go_on: made });
    focusDraft();
    return true;
  });
}

byId("thread").addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  const id = button?.closest("article")?.dataset.id;
  const message = id && shown.messages.get(id);
  if (message) ACTIONS[button.dataset.act](message, button);
});
on("edit-last", () => {
  const last = shown.path().reverse().find((message) => message.role === "user");
  if (last) edit(last);
});
on("open", (id) => open(id, true));
on("deleted", ({ id }) => id === shown?.info.id && open(null));
on("run-ended", ({ conversation }) => conversation === shown && showUsed());
on("progress", (run) => run.conversation === shown && meter(run.used));
on("trouble", (error) => error.status === 401 && haveKey(true));
on("tree", ({ conversation }) => conversation === shown && showTitle());
on("infos", () => shown && showTitle());

document.addEventListener("keydown", (event) => {
  const isCommand = event.ctrlKey || event.metaKey;
  const isTyping = event.target.matches("input, textarea, select");
  if (isCommand && event.key === "k") openSidebar();
  else if (isCommand && event.shiftKey && event.key.toLowerCase() === "o") open(null, true);
  else if (isCommand && event.key === ",") openSettings();
  else if (event.key === "/" && !isTyping) focusDraft();
  else if (event.key === "Escape" && !document.querySelector("dialog[open]")) escape();
  else return;
  event.preventDefault();
});

function escape() {
  const run = runIn(shown.info.id);
  if (run) run.stop();
  else if (!byId("settings").hidden) openSettings(false);
  else if (document.body.classList.contains("with-sidebar")) openSidebar(false);
}

byId("export").addEventListener("click", exportAll);
byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file) await importFile(file);
  event.target.value = "";
});
byId("help").addEventListener("click", showShortcuts);
byId("theme").addEventListener("click", () => {
  const isDark = getComputedStyle(document.documentElement).colorScheme.trim() === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
  try {
    localStorage.setItem("naiad.theme", isDark ? "light" : "dark");
  } catch { /* until the page is closed */ }
});
document.querySelector(".scrim").addEventListener("click", () => {
  openSidebar(false);
  if (!byId("settings").hidden) openSettings(false);
});

addEventListener("hashchange", () => {
  document.querySelector("dialog[open]")?.close(); // it asked about what was shown before
  const wanted = inAddress();
  if (wanted) open(wanted);
  else if (location.hash) api.takeKey();
  else open(null);
});

let isAsking = false;
/** Ask for the key until it is the right one. */
async function haveKey(wasWrong = false) {
  if (isAsking) return;
  isAsking = true;
  for (let isWrong = wasWrong; ; isWrong = true) {
    const key = await askKey(isWrong);
    if (key === null) break;
    api.keepKey(key);
    const error = await api.checkKey().then(() => null, (failure) => failure);
    if (error?.status !== 401) {
      emit("server-back"); // what could not be rendered without the key
      break;
    }
  }
  isAsking = false;
}

async function start() {
  drawIcons();
  const wanted = inAddress();
  const key = api.takeKey();
  await library.loadInfos();
  await open(wanted);
  document.documentElement.dataset.ready = "yes";
  performance.mark("ready");
  await look();
  if (!key && await api.isProtected().catch(() => false)) await haveKey();
}

start();
