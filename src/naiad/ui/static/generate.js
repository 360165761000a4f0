// Running answers: one controller each, saved while they grow, whatever becomes of them.

import { announce } from "./dom.js";
import { emit, on } from "./events.js";
import { append, saveInfo, saveMessage, writing } from "./library.js";
import { chatBody } from "./request.js";
import { chatEvents, mergeToolCalls, partsOf } from "./stream.js";
import { SILENCE_MS, tabId } from "./tabs.js";
import { asSentence } from "./text.js";

const SAVE_MS = 400;

/** @type {Map<string, Run>} */
const runs = new Map();

/** The run that writes a message, if any. @param {string} id */
export const runOf = (id) => runs.get(id);

/** The run that goes on in a conversation, if any. @param {string} conv */
export const runIn = (conv) => [...runs.values()].find((run) => run.conversation.info.id === conv);

class Run {
  /** @param {import("./conversation.js").Conversation} conversation @param {import("./conversation.js").Message} message */
  constructor(conversation, message) {
    this.conversation = conversation;
    this.message = message;
    this.control = new AbortController();
    this.begun = performance.now();
    this.first = 0;
    this.nPieces = 0;
    /** @type {any} */
    this.progress = null;
    this.nPrompt = 0;
    this.saveTimer = 0;
    this.isDropped = false;
  }

  stop() {
    this.control.abort();
  }

  /** Its message was deleted, here or in another tab: saving it would bring it back. */
  drop() {
    this.isDropped = true;
    this.stop();
  }

  /** Tokens of the context so far: an estimate, until the server tells how long the prompt is. */
  get used() {
    return this.nPrompt + this.nPieces;
  }

  /** Pieces per second so far: one piece is a token, or several when the page falls behind. */
  get rate() {
    const seconds = (performance.now() - this.first) / 1000;
    return this.nPieces > 1 && seconds > 0.2 ? (this.nPieces - 1) / seconds : 0;
  }

  /** @param {any} event */
  take(event) {
    const { message } = this;
    const parts = partsOf(event);
    if (parts.progress || parts.queue || parts.load) this.progress = parts;
    this.nPrompt = parts.progress?.total ?? this.nPrompt;
    if (parts.text || parts.reasoning || parts.toolCalls.length) this.count();
    message.text += parts.text;
    if (parts.reasoning) message.reasoning = (message.reasoning ?? "") + parts.reasoning;
    if (parts.toolCalls.length) mergeToolCalls(message.toolCalls ??= [], parts.toolCalls);
    if (parts.finish) message.state = parts.finish === "length" ? "length" : "done";
    if (parts.usage) this.account(parts.usage);
    this.saveSoon();
    emit("progress", this);
  }

  count() {
    this.progress = null;
    this.first ||= performance.now();
    this.nPieces += 1;
  }

  /** @param {any} usage */
  account(usage) {
    const seconds = (performance.now() - this.first) / 1000;
    const tokens = usage.completion_tokens;
    this.message.stats = {
      ...this.message.stats,
      prompt: usage.prompt_tokens,
      cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
      tokens,
      rate: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : 0,
    };
  }

  /** At once where the last time is long ago: a hidden tab's timers may wait for a minute. */
  saveSoon() {
    if (Date.now() - (this.message.beat ?? 0) >= SAVE_MS) this.save();
    else this.saveTimer ||= setTimeout(() => this.save(), SAVE_MS);
  }

  save() {
    clearTimeout(this.saveTimer);
    this.saveTimer = 0;
    if (this.isDropped) return Promise.resolve();
    this.message.beat = Date.now();
    return saveMessage(this.conversation, this.message);
  }

  /** @param {any} body */
  async go(body) {
    const { message } = this;
    let hasEnded = false;
    const pulse = setInterval(() => this.save(), SILENCE_MS / 4); // while nothing comes, too
    try {
      for await (const event of chatEvents(body, this.control.signal)) {
        this.take(event);
        hasEnded ||= message.state !== "streaming";
      }
    } catch (error) {
      if (!hasEnded) this.fail(error);
    }
    clearInterval(pulse);
    if (message.state === "streaming") message.state = "done";
    if (this.first) {
      const ttft = (this.first - this.begun) / 1000;
      const seconds = (performance.now() - this.first) / 1000;
      message.stats ??= { tokens: this.nPieces, rate: (this.nPieces - 1) / Math.max(seconds, 0.001) };
      message.stats.ttft = ttft;
    }
  }

  /** @param {any} error */
  fail(error) {
    const { message } = this;
    if (this.control.signal.aborted) {
      message.state = "stopped";
      return;
    }
    const isLost = error.status === 0 && this.nPieces > 0;
    message.state = isLost ? "lost" : "error";
    message.error = [asSentence(error.message), ADVICE[error.code]].filter(Boolean).join(" ");
    emit("trouble", error);
  }
}

/**
 * Have the model answer at the leaf of a conversation, or go on with an answer.
 * @param {import("./conversation.js").Conversation} conversation
 * @param {{parent?: string, go_on?: import("./conversation.js").Message}} [how]
 */
export async function answer(conversation, how = {}) {
  const { info } = conversation;
  if (runIn(info.id)) return;
  const known = how.go_on;
  if (how.parent) info.leaf = how.parent;
  const path = known ? conversation.upTo(known.id).slice(0, -1) : conversation.path();
  const start = known ? known.text : info.settings.prefill;
  const fields = { state: "streaming", owner: tabId, beat: Date.now(), error: undefined };
  const message = known
    ? Object.assign(known, fields)
    : append(conversation, { role: "assistant", ...fields, text: start });
  const run = new Run(conversation, message);
  run.nPrompt = aboutTokens(path) + aboutTokens([{ text: start }]);
  runs.set(message.id, run);
  writing.add(message.id);
  emit("run", run);
  announce("The model is answering.");
  try {
    await run.go(chatBody(path, info.settings, start));
  } catch (error) { // a setting that is no JSON: nothing was sent
    run.fail(error);
  }
  runs.delete(message.id);
  writing.delete(message.id);
  await run.save();
  if (!run.isDropped) saveInfo(conversation);
  announce(ENDINGS[message.state] ?? "");
  emit("run-ended", run);
}

/** What the last answer's usage tells, and four letters a token since then. @param {any[]} path */
function aboutTokens(path) {
  let nChars = 0;
  for (const { stats, text } of [...path].reverse()) {
    if (stats?.prompt) return stats.prompt + stats.tokens + Math.ceil(nChars / 4);
    nChars += text.length;
  }
  return Math.ceil(nChars / 4);
}

/** What one can do about what the server refuses. */
const ADVICE = {
  context_length_exceeded: "Begin a new conversation, or delete what is no longer needed of this one.",
};

const ENDINGS = {
  done: "The answer is finished.",
  stopped: "The answer was stopped.",
  length: "The answer reached its length limit.",
  lost: "The connection was lost.",
  error: "The answer failed.",
};

on("deleted", ({ id }) => runIn(id)?.drop());
on("removed", ({ ids }) => ids.forEach((id) => runs.get(id)?.drop()));
addEventListener("pagehide", () => {
  for (const run of runs.values()) run.save();
});
