// Markdown is rendered by the server; here requests for it are gathered, and answers remembered.

import { render } from "./api.js";
import { copyText, h, setRendered } from "./dom.js";

const MAX_TEXTS = 32;
const MAX_CHARS = 200_000;
const REMEMBERED = 600;

/** @type {Map<string, string>} */
const known = new Map();
/** @type {Map<string, ((html: string | null) => void)[]>} */
const waiting = new Map();
let isAsking = false;

/**
 * Show a text as Markdown in an element: as it is at first, rendered as soon as the server answers.
 * @param {any} element @param {string} text
 */
export function showMarkdown(element, text) {
  element.wanted = text;
  const html = known.get(text);
  if (html !== undefined) {
    showRendered(element, html);
    return;
  }
  if (!element.childNodes.length) showPlain(element, text);
  if (!text.trim() || text.length > MAX_CHARS) return;
  element.classList.add("rendering");
  const listeners = waiting.get(text) ?? [];
  listeners.push((answer) => {
    if (element.wanted !== text) return;
    if (answer !== null) showRendered(element, answer);
    else showPlain(element, text);
  });
  waiting.set(text, listeners);
  ask();
}

/** The HTML of a text that will never be asked for again; null when there is none. @param {string} text */
export const renderOnce = (text) => render([text]).then(([html]) => html, () => null);

/** @param {any} element @param {string} text */
export function showPlain(element, text) {
  element.wanted = text;
  element.classList.remove("rendering");
  element.classList.add("plain");
  element.textContent = text;
}

async function ask() {
  if (isAsking) return;
  isAsking = true;
  await Promise.resolve(); // whoever else asks in this turn goes along
  while (waiting.size) {
    const texts = nextTexts();
    const html = await render(texts).catch(() => texts.map(() => null));
    texts.forEach((text, at) => {
      const answer = html[at];
      if (answer !== null) remember(text, answer);
      for (const listener of waiting.get(text) ?? []) listener(answer);
      waiting.delete(text);
    });
  }
  isAsking = false;
}

function nextTexts() {
  const texts = [];
  let chars = 0;
  for (const text of waiting.keys()) {
    if (texts.length === MAX_TEXTS || (texts.length && chars + text.length > MAX_CHARS)) break;
    texts.push(text);
    chars += text.length;
  }
  return texts;
}

/** @param {string} text @param {string} html */
function remember(text, html) {
  known.set(text, html);
  if (known.size > REMEMBERED) known.delete(/** @type {string} */ (known.keys().next().value));
}

/** @param {any} element @param {string} html */
export function showRendered(element, html) {
  element.classList.remove("plain", "rendering");
  setRendered(element, html);
  for (const pre of element.querySelectorAll("pre")) frameCode(pre);
  for (const table of element.querySelectorAll("table")) {
    const frame = h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const link of element.querySelectorAll("a[href]")) tellTarget(link);
  const formulas = element.querySelectorAll(".formula");
  if (formulas.length) requestAnimationFrame(() => formulas.forEach(reachWide));
}

/** A formula wider than the page scrolls by itself, with the keyboard too. @param {any} formula */
function reachWide(formula) {
  if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
}

/** Code gets a bar with its language and a copy button. @param {HTMLElement} pre */
function frameCode(pre) {
  const language = /lang-(\S+)/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "text";
  const copy = h("button", { type: "button", class: "small", icon: "copy", "aria-label": "Copy the code" },
    h("span", { text: "Copy" }));
  copy.addEventListener("click", async () => {
    await copyText(pre.textContent ?? "");
    copy.lastElementChild.textContent = "Copied";
    setTimeout(() => { copy.lastElementChild.textContent = "Copy"; }, 1500);
  });
  const bar = h("div", { class: "code-bar" }, h("span", { text: language }), copy);
  const frame = h("div", { class: "code" }, bar);
  pre.replaceWith(frame);
  pre.tabIndex = 0;
  frame.append(pre);
}

/** A link whose words name another place than it leads to says where it leads. */
function tellTarget(link) {
  link.title = link.href;
  const named = /([a-z0-9-]+\.)+[a-z]{2,}/i.exec(link.textContent ?? "");
  if (named && link.host && !link.host.endsWith(named[0].toLowerCase())) {
    link.after(h("span", { class: "target", text: ` (leads to ${link.host})` }));
  }
}
