// Conversations out of this browser and back into it, as one JSON file.

import { h, toast } from "./dom.js";
import { loadInfos } from "./library.js";
import { plainSettings } from "./request.js";
import * as store from "./store.js";
import { tellTabs } from "./tabs.js";
import { newId } from "./text.js";

const FORMAT = "naiad-conversations";

export async function exportAll() {
  const infos = await store.allConversations();
  const conversations = [];
  for (const info of infos) {
    const messages = await store.messagesOf(info.id);
    conversations.push({ ...info, messages: messages.map(({ conv, owner, beat, ...kept }) => kept) });
  }
  const text = JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const day = new Date().toISOString().slice(0, 10);
  h("a", { href: url, download: `naiad-conversations-${day}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** @param {File} file */
export async function importFile(file) {
  let found;
  try {
    found = JSON.parse(await file.text());
  } catch {
    toast(`${file.name} is no JSON file.`, "bad");
    return;
  }
  if (found?.format !== FORMAT || !Array.isArray(found.conversations)) {
    toast(`${file.name} holds no conversations of naiad.`, "bad");
    return;
  }
  const known = new Set((await store.allConversations()).map((info) => info.id));
  let n = 0;
  for (const one of found.conversations) {
    const checked = read(one, known);
    if (!checked) continue;
    await store.putAll(checked.info, checked.messages);
    n += 1;
  }
  tellTabs({ kind: "all" });
  await loadInfos();
  toast(n === 1 ? "One conversation was imported." : `${n} conversations were imported.`);
}

/** Nothing in a file is believed: what is missing or odd is left out. @param {any} one @param {Set<string>} known */
function read(one, known) {
  if (!Array.isArray(one?.messages) || !one.messages.length) return null;
  const isTaken = typeof one.id !== "string" || known.has(one.id);
  const id = isTaken ? newId() : one.id;
  // Ids of messages are one space for all conversations: a copy needs ids of its own.
  const renamed = new Map(one.messages.map((message) => [message.id, isTaken ? newId() : String(message.id)]));
  const messages = one.messages
    .filter((message) => ["user", "assistant", "tool"].includes(message.role) && typeof message.text === "string")
    .map((message, at) => ({
      id: renamed.get(message.id), conv: id, parent: renamed.get(message.parent) ?? null,
      role: message.role, text: message.text, created: Number(message.created) || at,
      state: STATES.has(message.state) ? message.state : "done",
      ...(typeof message.reasoning === "string" && { reasoning: message.reasoning }),
      ...(typeof message.error === "string" && { error: message.error }),
      ...(typeof message.toolCallId === "string" && { toolCallId: message.toolCallId }),
      ...(Array.isArray(message.toolCalls) && { toolCalls: message.toolCalls.filter((call) => call?.function) }),
      ...(Number.isFinite(message.stats?.tokens) && { stats: message.stats }),
    }));
  const info = {
    id, title: String(one.title ?? "Imported").slice(0, 200), created: Number(one.created) || Date.now(),
    updated: Number(one.updated) || Date.now(), leaf: renamed.get(one.leaf) ?? messages[messages.length - 1]?.id ?? null,
    settings: readSettings(one.settings),
  };
  return { info, messages };
}

const STATES = new Set(["done", "stopped", "length", "lost", "cut", "error"]);

/** @param {any} given */
function readSettings(given) {
  const settings = plainSettings();
  for (const name of Object.keys(settings)) {
    if (given && typeof given[name] === typeof settings[name] && given[name] !== null) settings[name] = given[name];
  }
  return settings;
}
