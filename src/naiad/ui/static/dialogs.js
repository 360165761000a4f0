// Questions to the user, in <dialog> elements: the browser keeps focus inside and Escape closes.

import { h } from "./dom.js";

/**
 * @param {string} title @param {Node[]} content @param {{label: string, kind?: string, value: any}[]} choices
 * @param {(value: any, dialog: any) => any} [take] what the dialog resolves to
 * @returns {Promise<any>} null when it was dismissed
 */
function ask(title, content, choices, take = (value) => value) {
  return new Promise((resolve) => {
    let result = null;
    const buttons = choices.map(({ label, kind = "", value }, at) => h("button", {
      type: at === choices.length - 1 ? "submit" : "button", class: `button ${kind}`, text: label,
      onclick: (event) => { event.preventDefault(); finish(value); },
    }));
    const form = h("form", {}, h("h2", { text: title }), ...content, h("div", { class: "choices" }, ...buttons));
    const dialog = h("dialog", { "aria-label": title }, form);
    const finish = (value) => {
      if (value !== null && !form.reportValidity()) return;
      result = value === null ? null : take(value, dialog);
      dialog.close();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      finish(choices[choices.length - 1].value);
    });
    dialog.addEventListener("close", () => { dialog.remove(); resolve(result); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** @param {string} title @param {string} text @param {string} label what is agreed to */
export async function confirm(title, text, label) {
  const choices = [{ label: "Cancel", value: null }, { label, kind: "bad", value: true }];
  return Boolean(await ask(title, [h("p", { text })], choices));
}

/** @param {string} title @param {string} label @param {string} value @returns {Promise<string | null>} */
export function askText(title, label, value = "") {
  const input = h("input", { type: "text", required: true, "aria-label": label, value, maxlength: "200" });
  const choices = [{ label: "Cancel", value: null }, { label: "Save", kind: "main", value: true }];
  return ask(title, [input], choices, () => input.value.trim());
}

/** @param {string} title @returns {Promise<string | null>} */
export function askLong(title) {
  const input = h("textarea", { rows: "6", required: true, "aria-label": title });
  const choices = [{ label: "Cancel", value: null }, { label: "Send", kind: "main", value: true }];
  return ask(title, [input], choices, () => input.value);
}

/** @param {boolean} wasWrong @returns {Promise<string | null>} */
export function askKey(wasWrong) {
  const told = wasWrong
    ? "The server does not know this key. It prints the right one, in a link, when it starts; else ask whoever runs it."
    : "This server asks for a key. It prints one, in a link, when it starts; else ask whoever runs it.";
  const input = h("input", {
    type: "password", required: true, autocomplete: "current-password", "aria-label": "Key", spellcheck: "false",
  });
  const content = [h("p", { text: told }), input, h("p", { class: "quiet", text: "It is kept in this browser only." })];
  return ask("Key", content, [{ label: "Use this key", kind: "main", value: true }], () => input.value);
}

const SHORTCUTS = [
  ["Enter", "send the message"],
  ["Shift + Enter", "start a new line"],
  ["Esc", "stop the answer, or close a panel"],
  ["↑", "in an empty box: edit your last message"],
  ["/", "go to the message box"],
  ["Ctrl + K", "search the conversations"],
  ["Ctrl + Shift + O", "new conversation"],
  ["Ctrl + ,", "settings of this conversation"],
];

/** Each key in a frame of its own. @param {string} keys */
const keysOf = (keys) => keys.split(" + ").flatMap((key, at) => [at ? " " : "", h("kbd", { text: key })]);

export function showShortcuts() {
  const rows = SHORTCUTS.map(([keys, told]) => h("tr", {}, h("td", {}, ...keysOf(keys)), h("td", { text: told })));
  const table = h("table", { class: "keys" }, h("tbody", {}, ...rows));
  return ask("Keyboard shortcuts", [table], [{ label: "Close", value: null }]);
}
