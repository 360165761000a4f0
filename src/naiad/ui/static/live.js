// The body of an answer while it is written. Finished blocks are rendered once; of the unfinished rest
// the whole lines are, now and then, so that a list or a table is one from its first lines on, and what
// comes after them is plain text. Its cost does not grow with the answer.

import { h } from "./dom.js";
import { renderOnce, showRendered, showMarkdown } from "./markdown.js";
import { tailOf, takeBlocks } from "./text.js";

/** Between two renderings of lines that may still change, and how many characters these may have. */
const PAUSE_MS = 150;
const MOST_CHARS = 20_000;

export class LiveBody {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.settled = 0;
    this.failed = -1; // where a block began that cannot be rendered
    this.text = "";
    this.lines = h("div", { class: "block lines" });
    this.nLines = 0; // characters of the rest that these show
    this.isAsking = false;
    this.before = h("p", { class: "plain tail", hidden: true });
    this.tail = h("p", { class: "plain tail" });
    this.code = h("pre", { class: "tail", hidden: true }, h("code"));
    element.replaceChildren(this.lines, this.before, this.code, this.tail);
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
      if (this.nLines) this.settleLines(element, block);
      this.lines.before(element);
      showMarkdown(element, block);
    }
    this.settled = next;
    const { isCode, text, before } = tailOf(this.text.slice(next));
    const prose = isCode ? before : text;
    this.renderLines(prose.slice(0, prose.lastIndexOf("\n") + 1));
    const rest = prose.slice(this.nLines);
    setText(this.before, isCode ? rest.trimEnd() : "");
    setText(this.tail, isCode ? "" : rest.trimStart());
    this.code.hidden = !isCode;
    if (isCode) setText(this.code.firstElementChild, text);
    this.element.dispatchEvent(new CustomEvent("grown", { bubbles: true }));
  }

  /** @param {string} html @param {number} nChars */
  showLines(html, nChars) {
    this.nLines = nChars;
    showRendered(this.lines, html);
  }

  /** A finished block begins as what is shown of it: nothing goes back to plain text meanwhile. */
  settleLines(element, block) {
    element.append(...this.lines.childNodes, h("p", { class: "plain", text: block.slice(this.nLines).trim() }));
    this.nLines = 0;
  }

  /** Have the whole lines of the rest rendered, unless that goes on or is done. @param {string} text */
  async renderLines(text) {
    if (this.isAsking || text.length <= this.nLines || text.length > MOST_CHARS || !text.trim()) return;
    if (this.failed === this.settled) return; // a longer text of the same block is no easier
    this.isAsking = true;
    const from = this.settled;
    const html = await renderOnce(text);
    if (html === null) this.failed = from;
    if (html !== null && from === this.settled && this.element.classList.contains("live")) {
      this.showLines(html, text.length);
      this.draw();
    }
    setTimeout(() => { this.isAsking = false; }, PAUSE_MS);
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
