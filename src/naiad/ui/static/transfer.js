// Conversations out of this browser and back into it, as one JSON file.

import { h, toast } from "./dom.js";
import { everything, loadInfos } from "./library.js";
import { plainSettings } from "./request.js";
import * as store from "./store.js";
import { tellTabs } from "./tabs.js";
import { newId } from "./text.js";

const FORMAT = "naiad-conversations";

export async function exportAll() {
  const conversations = (await everything()).map(({ info, messages }) =>
    ({ ...info, messages: messages.map(({ conv, owner, beat, ...kept }) => kept) }));
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
  const readable = found.conversations.map(read).filter(Boolean);
  if (!readable.length) {
    toast(`${file.name} holds no conversation that can be read.`, "bad");
    return;
  }
  let n = 0;
  for (const checked of readable) {
    try {
      await store.putAll(checked.info, checked.messages);
    } catch {
      toast("This browser has no room for all of it.", "bad");
      break;
    }
    n += 1;
  }
  tellTabs({ kind: "all" });
  await loadInfos();
  toast(n === 1 ? "One conversation was imported." : `${n} conversations were imported.`);
}

/**
 * Nothing in a file is believed: what is missing or odd is left out. Its ids are not used either,
 * so that no file can take the place of what is there.
 * @param {any} one
 */
function read(one) {
  if (!Array.isArray(one?.messages)) return null;
  const told = one.messages.filter((message) => ROLES.has(message?.role) && typeof message.text === "string");
  const rooted = withRoots(new Map(told.map((message) => [message.id, message.parent ?? null])));
  const good = told.filter((message) => rooted.get(message.id));
  if (!good.length) return null;
  const id = newId();
  const renamed = new Map(good.map((message) => [message.id, newId()]));
  const messages = good.map((message, at) => ({
    id: renamed.get(message.id), conv: id, parent: renamed.get(message.parent) ?? null,
    role: message.role, text: message.text, created: Number(message.created) || at,
    state: STATES.has(message.state) ? message.state : "done",
    ...(typeof message.reasoning === "string" && { reasoning: message.reasoning }),
    ...(typeof message.error === "string" && { error: message.error }),
    ...(typeof message.toolCallId === "string" && { toolCallId: message.toolCallId }),
    ...(Array.isArray(message.toolCalls) && { toolCalls: message.toolCalls.filter(isCall) }),
    ...(Number.isFinite(message.stats?.tokens) && { stats: pick(message.stats, Number.isFinite) }),
  }));
  const info = {
    id, title: String(one.title ?? "Imported").slice(0, 200), created: Number(one.created) || Date.now(),
    updated: Number(one.updated) || Date.now(), leaf: renamed.get(one.leaf) ?? messages[messages.length - 1].id,
    settings: readSettings(one.settings),
  };
  return { info, messages };
}

/** Of each id, whether its parents lead to a first message and not in a circle. @param {Map<any, any>} parents */
function withRoots(parents) {
  const known = new Map();
  for (const start of parents.keys()) {
    const way = new Set();
    let at = start;
    while (parents.has(at) && !known.has(at) && !way.has(at)) {
      way.add(at);
      at = parents.get(at);
    }
    const isRooted = known.get(at) ?? !way.has(at);
    for (const one of way) known.set(one, isRooted);
  }
  return known;
}

const isCall = (call) => ["name", "arguments"].every((field) => typeof call?.function?.[field] === "string");

/** @param {any} given @param {(value: any) => boolean} isGood */
const pick = (given, isGood) => Object.fromEntries(Object.entries(given).filter(([, value]) => isGood(value)));

const isParam = (value) => Number.isFinite(value) || typeof value === "boolean"
  || (Array.isArray(value) && value.every((one) => typeof one === "string"));

const ROLES = new Set(["user", "assistant", "tool"]);
const STATES = new Set(["done", "stopped", "length", "lost", "cut", "error"]);

/** @param {any} given */
function readSettings(given) {
  const settings = plainSettings();
  for (const name of Object.keys(settings)) {
    if (given && typeof given[name] === typeof settings[name] && given[name] !== null) settings[name] = given[name];
  }
  settings.params = pick(settings.params, isParam);
  if (!Array.isArray(settings.params.stop)) delete settings.params.stop;
  return settings;
}
