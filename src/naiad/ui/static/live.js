// The body of an answer while it is written. Finished blocks are rendered once; only the unfinished
// rest changes, once per frame at most, so its cost does not grow with the answer.

import { h } from "./dom.js";
import { showMarkdown } from "./markdown.js";
import { tailOf, takeBlocks } from "./text.js";

export class LiveBody {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.settled = 0;
    this.text = "";
    this.before = h("p", { class: "plain tail", hidden: true });
    this.tail = h("p", { class: "plain tail" });
    this.code = h("pre", { class: "tail", hidden: true }, h("code"));
    element.replaceChildren(this.before, this.code, this.tail);
    element.classList.add("live");
    this.frame = 0;
  }

  /** The whole text so far. @param {string} text */
  feed(text) {
    if (text === this.text) return;
    this.text = text;
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = 0;
    const { blocks, next } = takeBlocks(this.text, this.settled);
    for (const block of blocks) {
      const element = h("div", { class: "block" });
      this.before.before(element);
      showMarkdown(element, block);
    }
    this.settled = next;
    const { isCode, text, before } = tailOf(this.text.slice(next));
    setText(this.before, isCode ? before.trimEnd() : "");
    setText(this.tail, isCode ? "" : text.trimStart());
    this.code.hidden = !isCode;
    if (isCode) setText(this.code.firstElementChild, text);
    this.element.dispatchEvent(new CustomEvent("grown", { bubbles: true }));
  }

  /** Show the end now: nothing may be missing while the whole is being rendered. */
  stop() {
    cancelAnimationFrame(this.frame);
    if (this.frame) this.draw();
    this.element.classList.remove("live");
  }
}

/** Only what is new is added to the text node: the browser lays out no more than that. */
function setText(element, text) {
  const node = element.firstChild;
  if (node && text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else element.textContent = text;
  if (element.tagName === "P") element.hidden = !text && element.nextElementSibling !== null;
}
