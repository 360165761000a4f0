// A conversation is a tree of messages; what is shown is the path from its root to one leaf.

/**
 * @typedef {object} Message
 * @property {string} id
 * @property {string} conv
 * @property {string | null} parent
 * @property {"user" | "assistant" | "tool"} role
 * @property {string} text
 * @property {string} [reasoning]
 * @property {any[]} [toolCalls]
 * @property {string} [toolCallId]
 * @property {number} created
 * @property {"done" | "streaming" | "stopped" | "length" | "lost" | "cut" | "error"} state
 * @property {string} [error]
 * @property {any} [stats]
 * @property {string} [owner] the tab that writes it
 * @property {number} [beat] when that tab last said so
 */

/**
 * @typedef {object} Settings
 * @property {string} system
 * @property {Record<string, any>} params
 * @property {string} schema
 * @property {string} grammar
 * @property {string} tools
 * @property {string} prefill
 * @property {string} preset
 */

/**
 * @typedef {object} Info
 * @property {string} id
 * @property {string} title
 * @property {number} created
 * @property {number} updated
 * @property {string | null} leaf
 * @property {Settings} settings
 */

export class Conversation {
  /** @param {Info} info @param {Message[]} [messages] */
  constructor(info, messages = []) {
    this.info = info;
    /** @type {Map<string, Message>} */
    this.messages = new Map();
    /** @type {Map<string | null, string[]>} */
    this.children = new Map();
    for (const message of messages.sort((a, b) => a.created - b.created)) this.add(message);
  }

  /** Add a message, or bring a known one up to date. @param {Message} message */
  add(message) {
    const known = this.messages.get(message.id);
    if (known) {
      Object.assign(known, message);
      return;
    }
    this.messages.set(message.id, message);
    const siblings = this.children.get(message.parent) ?? [];
    siblings.push(message.id);
    this.children.set(message.parent, siblings);
  }

  /** The messages from the first to the leaf. @returns {Message[]} */
  path() {
    const found = [];
    const seen = new Set();
    let at = this.info.leaf === null ? undefined : this.messages.get(this.info.leaf);
    while (at && !seen.has(at.id)) {
      seen.add(at.id);
      found.push(at);
      at = at.parent === null ? undefined : this.messages.get(at.parent);
    }
    return found.reverse();
  }

  /** The messages from the first to this one. @param {string} id @returns {Message[]} */
  upTo(id) {
    const path = this.path();
    return path.slice(0, path.findIndex((message) => message.id === id) + 1);
  }

  /** The messages that stand at the same place, in the order they were made. @param {Message} message */
  siblings(message) {
    return this.children.get(message.parent) ?? [message.id];
  }

  /** The newest leaf below a message. @param {string} id */
  newestLeaf(id) {
    let at = id;
    for (;;) {
      const below = this.children.get(at);
      if (!below?.length) return at;
      at = below[below.length - 1];
    }
  }

  /** Take a message away with all below it. @param {string} id @returns {string[]} what went */
  remove(id) {
    const message = this.messages.get(id);
    if (!message) return [];
    const gone = [];
    const waiting = [id];
    while (waiting.length) {
      const one = /** @type {string} */ (waiting.pop());
      gone.push(one);
      waiting.push(...(this.children.get(one) ?? []));
    }
    const left = this.siblings(message).filter((one) => one !== id);
    this.children.set(message.parent, left);
    for (const one of gone) {
      this.messages.delete(one);
      this.children.delete(one);
    }
    if (this.info.leaf !== null && gone.includes(this.info.leaf)) {
      this.info.leaf = left.length ? this.newestLeaf(left[left.length - 1]) : message.parent;
    }
    return gone;
  }
}
