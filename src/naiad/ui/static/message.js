// One message of a conversation as an element.

import { count, h } from "./dom.js";
import { runOf } from "./generate.js";
import { LiveBody } from "./live.js";
import { showMarkdown, showPlain } from "./markdown.js";
import { asSentence, splitThinking } from "./text.js";

/** What is said is folded beyond that. */
const LONG_CHARS = 1800;
const LONG_LINES = 24;

const NAMES = { user: "You", assistant: "Model", tool: "Tool result" };

/** What went other than planned, said below the answer. */
const NOTES = {
  stopped: "Stopped.",
  length: "The answer reached its length limit.",
  lost: "The connection to the server was lost; what arrived is kept.",
  cut: "This answer was cut off when its page was closed; what arrived is kept.",
};

export class MessageView {
  /** @param {import("./conversation.js").Message} message */
  constructor(message) {
    this.message = message;
    this.live = null;
    this.shown = "";
    this.key = ""; // what was last drawn: a long history is brought up to date often
    this.thoughts = null;
    this.body = h("div", { class: "body", dir: "auto" });
    this.tools = h("div", { class: "tools" });
    this.note = h("div", { class: "note", hidden: true });
    this.wait = h("div", { class: "wait", hidden: true });
    this.actions = h("div", { class: "actions" });
    this.stats = h("span", { class: "stats" });
    const foot = h("div", { class: "foot" }, this.actions, this.stats);
    this.element = h("article", {
      class: `message ${message.role}`, "data-id": message.id, "aria-label": NAMES[message.role],
    }, this.wait, this.body, this.tools, this.note, foot);
  }

  /** @param {{place: number, of: number, isLast: boolean, isBusy: boolean}} where */
  update(where) {
    const { message } = this;
    const isLive = message.state === "streaming";
    const key = JSON.stringify([where, message.state, message.text.length, message.toolCalls?.length]);
    if (key === this.key && !isLive) return;
    this.key = key;
    this.element.classList.toggle("streaming", isLive);
    this.element.setAttribute("aria-busy", String(isLive));
    this.grow();
    const note = message.state === "error" ? asSentence(message.error) : NOTES[message.state];
    this.note.hidden = !note;
    this.note.replaceChildren(note ?? "", ...(canRetry(message, where) ? [retryButton(message)] : []));
    this.note.classList.toggle("bad", ["error", "lost", "cut"].includes(message.state));
    this.actions.replaceChildren(...buttons(message, where));
    this.showTools();
  }

  /** Show what the message holds now; cheap enough for every piece of an answer. */
  grow() {
    const { message } = this;
    const isLive = message.state === "streaming";
    const { thinking, answer, isThinking } = message.role === "assistant"
      ? splitThinking(message.text) : { thinking: "", answer: message.text, isThinking: false };
    this.showThoughts(message.reasoning || thinking, isThinking || (isLive && !answer));
    if (isLive) {
      this.live ??= new LiveBody(this.body);
      this.live.feed(answer);
      this.shown = "";
    } else {
      this.live?.feed(answer);
      this.live?.stop();
      this.live = null;
      if (this.shown !== answer.trim() || !answer) this.showWhole(answer.trim());
    }
    this.showRun();
  }

  /** Try again to render what could not be rendered while the server was away. */
  again() {
    if (this.message.role !== "assistant") return; // these are never rendered
    if (this.live || !this.shown || !this.body.classList.contains("plain")) return;
    this.showWhole(this.shown);
  }

  /** @param {string} text */
  showWhole(text) {
    this.shown = text;
    if (this.message.role === "assistant") showMarkdown(this.body, text);
    else {
      showPlain(this.body, text);
      this.foldLong(text);
    }
  }

  /** A pasted book is not what one wants to scroll past. @param {string} text */
  foldLong(text) {
    const isLong = text.length > LONG_CHARS || text.split("\n", LONG_LINES + 1).length > LONG_LINES;
    this.element.classList.toggle("long", isLong);
    this.element.querySelector(".fold")?.remove();
    if (!isLong) return;
    const button = h("button", { type: "button", class: "small fold", "aria-expanded": "false", text: "Show all of it" });
    const show = (/** @type {boolean} */ isOpen) => {
      this.element.classList.toggle("unfolded", isOpen);
      button.setAttribute("aria-expanded", String(isOpen));
      button.textContent = isOpen ? "Show less" : "Show all of it";
    };
    button.addEventListener("click", () => show(!this.element.classList.contains("unfolded")));
    this.body.onscroll = () => { // only a search in the page scrolls what is folded
      const top = this.body.scrollTop;
      if (!top || this.element.classList.contains("unfolded")) return;
      show(true);
      const thread = this.element.closest("#thread");
      if (thread) thread.scrollTop += top; // what was found stays where it was
    };
    this.body.after(button);
  }

  /** @param {string} thinking @param {boolean} isThinking */
  showThoughts(thinking, isThinking) {
    if (!thinking.trim()) {
      this.thoughts?.remove();
      this.thoughts = null;
      return;
    }
    if (!this.thoughts) {
      this.thoughts = h("details", { class: "thoughts" }, h("summary"), h("div", { class: "plain" }));
      this.body.before(this.thoughts);
    }
    const words = isThinking ? "Thinking…" : `Reasoning, ${count(thinking.trim().split(/\s+/).length)} words`;
    if (this.thoughts.firstChild.textContent !== words) this.thoughts.firstChild.textContent = words;
    this.thoughts.classList.toggle("open-ended", isThinking);
    const target = this.thoughts.lastChild;
    const text = thinking.trimStart();
    if (target.firstChild && text.startsWith(target.textContent)) {
      target.firstChild.appendData(text.slice(target.textContent.length));
    } else target.textContent = text;
  }

  showTools() {
    const calls = this.message.toolCalls ?? [];
    this.tools.replaceChildren(...calls.filter(Boolean).map((call) => h("details", { class: "call", open: true },
      h("summary", { icon: "tool" }, h("span", { text: `Wants to call ${call.function.name || "a tool"}` })),
      h("pre", { tabindex: "0", text: pretty(call.function.arguments) }),
      h("button", {
        type: "button", class: "small framed", "data-act": "tool-result", "data-call": call.id, text: "Give the result",
      }))));
  }

  /** What is going on while there is no text yet, and how fast it comes then. */
  showRun() {
    const run = runOf(this.message.id);
    const told = run ? waitingWords(run) : null;
    this.wait.hidden = !told;
    if (told) {
      const bar = told.share === undefined ? "" : h("progress", { max: "1", value: told.share, "aria-label": told.words });
      this.wait.replaceChildren(h("span", { class: "drops" }, h("i"), h("i"), h("i")), h("span", { text: told.words }), bar);
    }
    this.stats.textContent = run ? liveStats(run) : endStats(this.message);
  }
}

/** Whether what went wrong at the end of a conversation may go well the next time. */
const canRetry = (message, { isLast, isBusy }) =>
  isLast && !isBusy && message.role === "assistant" && ["error", "lost", "cut"].includes(message.state);

/** @param {import("./conversation.js").Message} message */
const retryButton = ({ text }) => h("button", {
  type: "button", class: "small framed", "data-act": text ? "continue" : "again", icon: text ? "on" : "retry",
}, h("span", { text: text ? "Continue" : "Try again" }));

/** @param {any} run */
export function waitingWords(run) {
  if (run.first) return null;
  const { queue, progress, load } = run.progress ?? {};
  if (load) return { words: `Loading the model: ${Math.round(100 * load.progress)} %`, share: load.progress };
  if (queue) {
    const soon = queue.eta_s === null ? "" : `, about ${Math.max(1, Math.round(queue.eta_s))} s`;
    return { words: `Waiting in line: number ${queue.position}${soon}` };
  }
  if (progress?.total) {
    const words = `Reading: ${count(progress.processed)} of ${count(progress.total)} tokens`;
    return { words, share: progress.processed / progress.total };
  }
  return { words: "Reading your message" };
}

/** @param {any} run */
function liveStats(run) {
  if (!run.first) return "";
  const first = `first word after ${count((run.first - run.begun) / 1000, 2)} s`;
  return run.rate ? `${count(run.rate, 1)} tokens/s · ${first}` : first;
}

/** @param {import("./conversation.js").Message} message */
function endStats({ stats, role }) {
  if (role !== "assistant" || !stats) return "";
  const told = [stats.tokens === 1 ? "1 token" : `${count(stats.tokens)} tokens`];
  if (stats.rate > 0 && stats.tokens / stats.rate > 0.02) told.push(`${count(stats.rate, 1)} tokens/s`);
  if (stats.ttft !== undefined) told.push(`first word after ${count(stats.ttft, 2)} s`);
  return told.join(" · ");
}

/** @param {string} text */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** @param {import("./conversation.js").Message} message @param {any} where */
function buttons(message, { place, of, isLast, isBusy }) {
  const found = [];
  const act = (name, icon, label) =>
    h("button", { type: "button", class: "icon", "data-act": name, "aria-label": label, title: label, icon });
  if (of > 1) {
    found.push(h("span", { class: "branches", role: "group", "aria-label": `Version ${place + 1} of ${of}` },
      act("previous", "left", "Previous version"), h("span", { text: `${place + 1}/${of}` }),
      act("next", "right", "Next version")));
  }
  if (message.text) found.push(act("copy", "copy", "Copy"));
  if (isBusy) return found;
  found.push(act("edit", "edit", "Edit"));
  if (message.role === "assistant") {
    found.push(act("retry", "retry", "Answer again"));
    if (isLast && message.text) found.push(act("continue", "on", "Continue this answer"));
  }
  found.push(act("delete", "trash", "Delete from here on"));
  return found;
}
