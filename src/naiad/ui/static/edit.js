// Editing a message in its place.

import { h } from "./dom.js";

/** @type {{conv: string, element: HTMLElement} | null} */
let latest = null;

/** Whether a message of this conversation is being edited in this tab. @param {string} conv */
export const isEditing = (conv) =>
  latest?.conv === conv && latest.element.isConnected && latest.element.classList.contains("editing");

/**
 * Turn a message into a text box; `done` gets the new text, unless it is left as it was, and says
 * whether it took it: if not, the box stays.
 * @param {HTMLElement} element @param {import("./conversation.js").Message} message
 * @param {(text: string, goesOn: boolean) => boolean} done
 */
export function editMessage(element, message, done) {
  if (element.classList.contains("editing")) return;
  latest = { conv: message.conv, element };
  const area = h("textarea", { "aria-label": "Edit the message" });
  area.value = message.text;
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + 2}px`;
  };
  const close = () => {
    box.remove();
    element.classList.remove("editing");
  };
  const save = (goesOn) => {
    const text = area.value;
    if (!text.trim()) return;
    const isWanted = text !== message.text || message.role === "user" || goesOn;
    if (!isWanted || done(text, goesOn)) close();
  };
  const isAnswer = message.role === "assistant";
  const box = h("div", { class: "edit" }, area, h("div", { class: "choices" },
    h("button", { type: "button", class: "button", text: "Cancel", onclick: close }),
    isAnswer && h("button", { type: "button", class: "button", text: "Save and continue", onclick: () => save(true) }),
    h("button", { type: "button", class: "button main", text: isAnswer ? "Save" : "Send", onclick: () => save(false) })));
  area.addEventListener("input", fit);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    }
    if (event.key === "Enter" && (isAnswer ? event.ctrlKey : !event.shiftKey) && !event.isComposing) {
      event.preventDefault();
      save(false);
    }
  });
  element.classList.add("editing");
  element.append(box);
  fit();
  area.focus({ preventScroll: true });
  box.scrollIntoView({ block: "nearest" });
}
