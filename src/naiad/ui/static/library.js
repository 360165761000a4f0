// The conversations of this browser: loaded, changed, saved, and kept in step with other tabs.

import { Conversation } from "./conversation.js";
import { toast } from "./dom.js";
import { isEditing } from "./edit.js";
import { emit, on } from "./events.js";
import { plainSettings } from "./request.js";
import * as store from "./store.js";
import { SILENCE_MS, tabId, tellTabs } from "./tabs.js";
import { newId } from "./text.js";

/** @type {Map<string, import("./conversation.js").Info>} */
export const infos = new Map();
/** @type {Map<string, Conversation>} */
const loaded = new Map();
/** Ids of the messages this tab is writing. @type {Set<string>} */
export const writing = new Set();
/** When to look again whether a tab still writes a message. @type {Map<string, number>} */
const orphanTimers = new Map();
/** Conversations that were deleted; what another tab still said of them comes too late. @type {Set<string>} */
const deleted = new Set();
let hasWarned = false;

const NOT_KEPT = "This browser does not let the page keep anything: export what you need.";
const NO_ROOM = "This browser has no room left: export what you need, then delete conversations.";

/** @param {Promise<any>} saving */
function kept(saving) {
  return saving.then((value) => {
    hasWarned = false;
    return value;
  }, (error) => {
    if (!hasWarned) toast(error?.name === "QuotaExceededError" ? NO_ROOM : NOT_KEPT, "bad");
    hasWarned = true;
  });
}

export async function loadInfos() {
  const found = await store.allConversations().catch(() => []);
  for (const info of found) infos.set(info.id, info);
  emit("infos");
}

/**
 * Every conversation with its messages, also what this browser refused to keep.
 * @returns {Promise<{info: import("./conversation.js").Info, messages: import("./conversation.js").Message[]}[]>}
 */
export async function everything() {
  const stored = await store.allConversations().catch(() => []);
  const all = new Map([...stored.map((info) => [info.id, info]), ...infos]);
  return Promise.all([...all.values()].map(async (info) => {
    const known = loaded.get(info.id);
    const messages = known ? [...known.messages.values()] : await store.messagesOf(info.id).catch(() => []);
    return { info, messages };
  }));
}

/** A conversation that is not kept until its first message. */
export function draftConversation() {
  const now = Date.now();
  const settings = { ...plainSettings(), ...rememberedSettings() };
  return new Conversation(
    { id: newId(), title: "New conversation", created: now, updated: now, leaf: null, settings },
  );
}

/** @param {string} id @returns {Promise<Conversation | null>} */
export async function open(id) {
  const known = loaded.get(id);
  if (known) return known;
  const info = infos.get(id);
  if (!info) return null;
  const messages = await store.messagesOf(id).catch(() => []);
  const conversation = loaded.get(id) ?? new Conversation(info, messages);
  loaded.set(id, conversation);
  for (const message of messages) settleOrphan(conversation, message);
  return conversation;
}

/** A message that a tab was writing when it went away is cut off, and says so. */
function settleOrphan(conversation, message) {
  if (message.state !== "streaming" || writing.has(message.id)) return;
  const silentFor = Math.abs(Date.now() - (message.beat ?? 0)); // a clock may have been set back
  if (message.owner !== tabId && silentFor < SILENCE_MS) {
    clearTimeout(orphanTimers.get(message.id));
    const look = () => settleOrphan(conversation, message);
    orphanTimers.set(message.id, setTimeout(look, SILENCE_MS - silentFor + 100));
    return;
  }
  orphanTimers.delete(message.id);
  message.state = "cut";
  saveMessage(conversation, message);
  emit("message", { conversation, message });
}

/** @param {Conversation} conversation */
export function saveInfo(conversation) {
  const { info } = conversation;
  info.updated = Date.now();
  if (!conversation.messages.size) return Promise.resolve();
  infos.set(info.id, info);
  loaded.set(info.id, conversation);
  emit("infos");
  tellTabs({ kind: "conversation", info });
  return kept(store.putConversation(info));
}

/** @param {Conversation} conversation @param {import("./conversation.js").Message} message */
export function saveMessage(conversation, message) {
  tellTabs({ kind: "message", message });
  return kept(store.putMessages([message]));
}

/**
 * Put a new message below another and show it.
 * @param {Conversation} conversation @param {Partial<import("./conversation.js").Message>} fields
 */
export function append(conversation, fields) {
  const message = /** @type {import("./conversation.js").Message} */ ({
    id: newId(), conv: conversation.info.id, parent: conversation.info.leaf, text: "",
    created: Date.now(), state: "done", ...fields,
  });
  conversation.add(message);
  conversation.info.leaf = message.id;
  saveMessage(conversation, message);
  saveInfo(conversation);
  return message;
}

/**
 * Take a message away with all below it; resolves when that is on disk.
 * @param {Conversation} conversation @param {string} id
 */
export async function removeMessage(conversation, id) {
  const gone = conversation.remove(id);
  emit("removed", { ids: gone });
  const removed = kept(store.deleteMessages(gone));
  tellTabs({ kind: "removed", conv: conversation.info.id, id });
  await Promise.all([removed, saveInfo(conversation)]);
}

/** @param {string} id */
export async function removeConversation(id) {
  forget(id);
  tellTabs({ kind: "deleted", id }); // first, so that a tab that writes in it stops
  await kept(store.deleteConversation(id));
}

/** @param {string} id */
function forget(id) {
  deleted.add(id);
  infos.delete(id);
  loaded.delete(id);
  emit("infos");
  emit("deleted", { id });
}

/** What new conversations start with: the parameters that were last chosen. */
function rememberedSettings() {
  try {
    return JSON.parse(localStorage.getItem("naiad.settings") ?? "{}");
  } catch {
    return {};
  }
}

on("from-tab", (news) => {
  if (news.kind === "deleted") forget(news.id);
  if (news.kind === "all") loadInfos();
  if (news.kind === "conversation") followInfo(news.info);
  const conversation = loaded.get(news.kind === "message" ? news.message.conv : news.conv);
  if (!conversation) return;
  if (news.kind === "removed") {
    emit("removed", { ids: conversation.remove(news.id) });
    emit("tree", { conversation });
  }
  if (news.kind === "message" && !writing.has(news.message.id)) {
    const isNew = !conversation.messages.has(news.message.id);
    conversation.add(news.message);
    const message = conversation.messages.get(news.message.id);
    emit(isNew ? "tree" : "message", { conversation, message });
    if (message) settleOrphan(conversation, message);
  }
});

/**
 * Another tab changed a title, the settings or the leaf; a tab that is writing, or in which somebody
 * edits, keeps its own leaf.
 */
function followInfo(info) {
  if (deleted.has(info.id)) return;
  const known = infos.get(info.id);
  const isWriting = [...writing].some((id) => loaded.get(info.id)?.messages.has(id));
  const isBusy = isWriting || isEditing(info.id);
  if (known) Object.assign(known, info, isBusy ? { leaf: known.leaf } : {});
  else infos.set(info.id, info);
  emit("infos");
  const conversation = loaded.get(info.id);
  if (conversation) emit("tree", { conversation });
}
