// What is kept in this browser: conversations, and their messages one by one, in IndexedDB.
// Tabs append to the same trees without overwriting each other, since every message is a record.

/** @type {Promise<IDBDatabase> | null} */
let opened = null;

/** @returns {Promise<IDBDatabase>} */
function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("naiad", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conv", "conv");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/**
 * Run something in one transaction; resolves when it is on disk.
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(conversations: IDBObjectStore, messages: IDBObjectStore) => IDBRequest<T> | void} work
 * @returns {Promise<T>}
 */
async function transact(mode, work) {
  const db = await database();
  return new Promise((resolve, reject) => {
    const transaction = db.transaction(["conversations", "messages"], mode);
    const request = work(transaction.objectStore("conversations"), transaction.objectStore("messages"));
    transaction.oncomplete = () => resolve(/** @type {any} */ (request ? request.result : undefined));
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });
}

export const allConversations = () =>
  transact("readonly", (conversations) => conversations.getAll());

/** @param {string} id */
export const messagesOf = (id) =>
  transact("readonly", (_, messages) => messages.index("conv").getAll(id));

/** @param {any} conversation */
export const putConversation = (conversation) =>
  transact("readwrite", (conversations) => conversations.put(conversation));

/** @param {any[]} messages */
export const putMessages = (messages) =>
  transact("readwrite", (_, store) => {
    for (const message of messages) store.put(message);
  });

/** @param {any} conversation @param {any[]} messages */
export const putAll = (conversation, messages) =>
  transact("readwrite", (conversations, store) => {
    conversations.put(conversation);
    for (const message of messages) store.put(message);
  });

/** @param {string[]} ids */
export const deleteMessages = (ids) =>
  transact("readwrite", (_, messages) => {
    for (const id of ids) messages.delete(id);
  });

/** @param {string} id */
export const deleteConversation = (id) =>
  transact("readwrite", (conversations, messages) => {
    conversations.delete(id);
    const cursor = messages.index("conv").openKeyCursor(id);
    cursor.onsuccess = () => {
      if (!cursor.result) return;
      messages.delete(cursor.result.primaryKey);
      cursor.result.continue();
    };
  });

/**
 * The conversations whose messages hold a text, each with the first such text.
 * @param {string} query
 * @returns {Promise<Map<string, string>>}
 */
export async function searchMessages(query) {
  const wanted = query.toLowerCase();
  const found = new Map();
  await transact("readonly", (_, messages) => {
    const cursor = messages.openCursor();
    cursor.onsuccess = () => {
      if (!cursor.result) return;
      const { conv, text } = cursor.result.value;
      if (!found.has(conv) && text.toLowerCase().includes(wanted)) found.set(conv, text);
      cursor.result.continue();
    };
  });
  return found;
}
