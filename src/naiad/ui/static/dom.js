// Building elements. Text is always set as text; HTML comes from the server's renderer only.

/** @type {{createHTML: (html: string) => any}} */
const policy = window.trustedTypes?.createPolicy("naiad", { createHTML: (html) => html })
  ?? { createHTML: (html) => html };

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/**
 * An element. Attributes: `class`, `text`, `on` + event, booleans, data-*; children after them.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "icon") element.append(icon(value));
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child || child === ""));
  return element;
}

/**
 * Put rendered Markdown into an element. `html` is what POST /api/naiad/render answered.
 * @param {Element} element
 * @param {string} html
 */
export function setRendered(element, html) {
  element.innerHTML = policy.createHTML(html);
}

const PATHS = {
  check: "M5 12.500l4.500 4.500L19 7.500",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v10H9zM5 15V5h10",
  down: "M12 5v14M6 13l6 6 6-6",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  keyboard: "M3 7h18v10H3zM7 10.500h.01M10.500 10.500h.01M14 10.500h.01M17 10.500h.01M8 14h8",
  left: "M14 6l-6 6 6 6",
  menu: "M4 7h16M4 12h16M4 17h10",
  moon: "M19.500 14.500A8 8 0 0 1 9.500 4.500a8 8 0 1 0 10 10z",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  on: "M5 12h13M13 7l5 5-5 5",
  plus: "M12 5v14M5 12h14",
  retry: "M19 12a7 7 0 1 1-2.100-5M19 4v4h-4",
  right: "M10 6l6 6-6 6",
  search: "M10.500 4.500a6 6 0 1 0 0 12 6 6 0 0 0 0-12zM15 15l5 5",
  send: "M12 19V5M6 11l6-6 6 6",
  sliders: "M4 8h9M17 8h3M15 6v4M4 16h3M11 16h9M9 14v4",
  stop: "M8 8h8v8H8z",
  tool: "M14 6a4 4 0 0 0 4 5l-8 8-3-3 8-8a4 4 0 0 0-1-2z",
  trash: "M5 7h14M10 7V4.500h4V7M7 7l1 13h8l1-13",
  upload: "M12 16V5M7 9l5-5 5 5M5 20h14",
};

/** @param {keyof typeof PATHS} name */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Give every element with `data-icon` its icon. */
export function drawIcons() {
  for (const element of document.querySelectorAll("[data-icon]")) {
    element.prepend(icon(/** @type {any} */ (element).dataset.icon));
  }
}

/** Say something to a screen reader. @param {string} told */
export function announce(told) {
  byId("announce").textContent = told;
}

/** @param {string} told @param {"plain" | "bad"} [kind] */
export function toast(told, kind = "plain") {
  const element = h("div", { class: `toast ${kind}`, role: kind === "bad" ? "alert" : "status", text: told });
  byId("toasts").append(element);
  setTimeout(() => element.remove(), 5000);
}

/** Copy a text; also where the page has no secure context. @param {string} text */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "sr" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce("Copied");
}

/** @param {number} value @param {number} [digits] */
export const count = (value, digits = 0) =>
  value.toLocaleString("en", { maximumFractionDigits: digits });
