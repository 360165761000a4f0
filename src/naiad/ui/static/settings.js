// The settings of the shown conversation. The sampler panel is built from the server's own table.

import { samplers } from "./api.js";
import { askText } from "./dialogs.js";
import { byId, h, toast } from "./dom.js";
import { saveInfo } from "./library.js";

const SAVE_MS = 300;
const PRESETS = {
  Precise: { temperature: 0.2, top_p: 0.9, top_k: 40 },
  Balanced: { temperature: 0.7, min_p: 0.05, top_p: 1, top_k: 0 },
  Inventive: { temperature: 1.1, min_p: 0.03, top_p: 1, top_k: 0, dry_multiplier: 0.8 },
  Greedy: { temperature: 0 },
};

const panel = byId("settings");
const opener = byId("open-settings");
/** @type {import("./conversation.js").Conversation} */
let conversation;
/** @type {any[] | null} */
let table = null;
let timer = 0;

/** @param {import("./conversation.js").Conversation} shown */
export function settingsOf(shown) {
  conversation = shown;
  mark();
  if (!panel.hidden) draw();
}

export async function openSettings(isOpen = panel.hidden) {
  panel.hidden = !isOpen;
  document.body.classList.toggle("with-settings", isOpen);
  opener.setAttribute("aria-expanded", String(isOpen));
  if (!isOpen) {
    opener.focus();
    return;
  }
  table ??= await samplers().catch(() => null);
  draw();
  byId("close-settings").focus();
}

/** The button tells when a conversation has settings of its own: a forgotten schema puzzles. */
function mark() {
  const { params, preset: _name, ...texts } = conversation.info.settings;
  const isChanged = Object.keys(params).length > 0 || Object.values(texts).some((text) => text.trim());
  opener.classList.toggle("changed", isChanged);
  opener.title = isChanged ? "Settings: changed in this conversation" : "Settings";
}

function changed() {
  mark();
  clearTimeout(timer);
  const saved = conversation;
  timer = setTimeout(() => {
    saveInfo(saved);
    const { params, preset } = saved.info.settings;
    try {
      localStorage.setItem("naiad.settings", JSON.stringify({ params, preset }));
    } catch { /* new conversations begin with the server's defaults */ }
  }, SAVE_MS);
}

function draw() {
  const close = h("button", {
    type: "button", class: "icon", id: "close-settings", icon: "close", "aria-label": "Close the settings",
    onclick: () => openSettings(false),
  });
  const groups = table ? [presets(), ...samplerGroups(table)]
    : [h("p", { class: "quiet", text: "The server does not say which parameters it has; is it running?" })];
  panel.replaceChildren(
    h("div", { class: "panel-head" }, h("h2", { text: "Settings" }), close),
    h("p", { class: "quiet", text: "They belong to this conversation; new ones start with the same sampling. Grey values are the server's own." }),
    longField("system", "System prompt", "Who the model is and how it answers.", 4, { placeholder: "You are a patient teacher. Answer in two sentences." }),
    longField("prefill", "Answers begin with", "The model goes on from these words.", 1, { placeholder: "Sure, here is" }),
    h("h3", { text: "Sampling" }), ...groups,
    h("h3", { text: "Length" }), numberField(MAX_TOKENS), stringsField(STOP),
    h("h3", { text: "Form" }),
    longField("schema", "JSON schema", "Answers are JSON of this shape.", 4, { ...CODE, isJson: true, placeholder: SCHEMA }),
    longField("grammar", "Grammar (GBNF)", "Answers follow these rules.", 3, { ...CODE, placeholder: 'root ::= "yes" | "no"' }),
    longField("tools", "Tools (JSON)", "Functions the model may ask for, as in OpenAI's API.", 4, { ...CODE, isJson: true, placeholder: TOOLS }),
  );
}

const CODE = { class: "mono", spellcheck: "false" };
const SCHEMA = '{"type": "object",\n "properties": {"name": {"type": "string"}},\n "required": ["name"]}';
const TOOLS = '[{"type": "function", "function":\n  {"name": "get_weather", "parameters":\n    {"type": "object"}}}]';
const MAX_TOKENS = {
  name: "max_tokens", label: "Longest answer, tokens", type: "integer", minimum: 1, maximum: 2147483647,
  default: "no limit", help: "Without one: up to the end of the context.",
};
const STOP = { name: "stop", label: "Stop at", type: "strings", default: [], help: "Texts that end an answer, one a line." };

function longField(name, label, help, rows, { isJson = false, ...attributes } = {}) {
  const area = h("textarea", { rows, id: `set-${name}`, ...attributes });
  const told = h("small", { text: help });
  area.value = conversation.info.settings[name] ?? "";
  const check = () => {
    const wrong = isJson ? jsonError(area.value) : "";
    area.setAttribute("aria-invalid", String(Boolean(wrong)));
    told.textContent = wrong || help;
  };
  area.addEventListener("input", () => {
    conversation.info.settings[name] = area.value; // another tab may have replaced them meanwhile
    area.removeAttribute("aria-invalid"); // half-written JSON is no mistake yet
    changed();
  });
  area.addEventListener("change", check);
  check();
  return h("div", { class: "field" }, h("label", { for: area.id, text: label }), area, told);
}

/** @param {string} text */
function jsonError(text) {
  try {
    if (text.trim()) JSON.parse(text);
    return "";
  } catch (error) {
    return `This is no valid JSON: ${error.message}`;
  }
}

function presets() {
  const { settings } = conversation.info;
  const all = { ...PRESETS, ...ownPresets() };
  const option = (name, label = name) => h("option", { value: name, text: label, selected: settings.preset === name });
  const select = h("select", { "aria-label": "Preset" }, option("", "The server's defaults"), ...Object.keys(all).map((name) => option(name)));
  if (settings.preset === "*") select.append(option("*", "Changed"));
  select.addEventListener("change", () => {
    const { settings } = conversation.info;
    settings.preset = select.value;
    const { max_tokens, stop } = settings.params;
    settings.params = { ...(all[select.value] ?? {}), ...(max_tokens && { max_tokens }), ...(stop && { stop }) };
    changed();
    draw();
    panel.querySelector("select").focus();
  });
  const save = h("button", { type: "button", class: "small", text: "Save as…", onclick: savePreset });
  const drop = settings.preset in ownPresets()
    && h("button", { type: "button", class: "small", text: "Delete", onclick: deletePreset });
  return h("div", { class: "presets" }, select, save, drop);
}

function ownPresets() {
  try {
    return JSON.parse(localStorage.getItem("naiad.presets") ?? "{}");
  } catch {
    return {};
  }
}

function keepPresets(own) {
  try {
    localStorage.setItem("naiad.presets", JSON.stringify(own));
  } catch {
    toast("This browser does not let the page keep presets.", "bad");
  }
}

async function savePreset() {
  const name = await askText("Save as a preset", "Name");
  if (!name) return;
  const { max_tokens, stop, ...params } = conversation.info.settings.params;
  keepPresets({ ...ownPresets(), [name]: params });
  conversation.info.settings.preset = name;
  changed();
  draw();
}

function deletePreset() {
  const { [conversation.info.settings.preset]: _gone, ...left } = ownPresets();
  keepPresets(left);
  conversation.info.settings.preset = "*";
  changed();
  draw();
}

function samplerGroups(all) {
  const groups = new Map();
  for (const one of all) groups.set(one.group, [...(groups.get(one.group) ?? []), one]);
  return [...groups].map(([name, fields], at) => {
    const used = fields.filter((field) => field.name in conversation.info.settings.params).length;
    const told = used && at ? `${name} · ${used} set` : name;
    return h("details", { class: "group", open: at === 0 }, h("summary", { text: told }), ...fields.map(field));
  });
}

function field(spec) {
  if (spec.type === "boolean") return switchField(spec);
  return spec.type === "strings" ? stringsField(spec) : numberField(spec);
}

function setParam(name, value) {
  const { settings } = conversation.info;
  if (value === undefined) delete settings.params[name];
  else settings.params[name] = value;
  if (name !== "max_tokens" && name !== "stop") settings.preset = Object.keys(settings.params).length ? "*" : "";
  changed();
}

function numberField(spec) {
  const value = conversation.info.settings.params[spec.name];
  const id = `set-${spec.name}`;
  const input = h("input", {
    type: "number", id, step: spec.type === "integer" ? 1 : "any", min: spec.minimum, max: spec.maximum,
    placeholder: spec.default, value: value ?? "", inputmode: "decimal",
  });
  const slider = spec.slider && h("input", {
    type: "range", min: spec.slider[0], max: spec.slider[1], step: spec.slider[2], "aria-label": `${spec.label}, slider`,
  });
  const help = h("small", { text: spec.help });
  const take = () => {
    const isGood = input.checkValidity();
    input.setAttribute("aria-invalid", String(!isGood));
    help.textContent = isGood ? spec.help : `From ${spec.minimum} to ${spec.maximum}.`;
    if (isGood) setParam(spec.name, input.value === "" ? undefined : Number(input.value));
    if (slider) slider.value = input.value === "" ? spec.default : input.value;
  };
  if (slider) slider.value = value ?? spec.default;
  input.addEventListener("input", take);
  slider?.addEventListener("input", () => {
    input.value = slider.value;
    take();
  });
  return h("div", { class: `field number ${slider ? "" : "bare"}` },
    h("label", { for: id, text: spec.label }), input, slider, help);
}

function stringsField(spec) {
  const area = h("textarea", { rows: 2, id: `set-${spec.name}`, class: "mono", spellcheck: "false" });
  const given = conversation.info.settings.params[spec.name];
  area.value = (Array.isArray(given) ? given : []).map(escapeLine).join("\n");
  area.placeholder = spec.default.map(escapeLine).join("\n");
  area.addEventListener("input", () => {
    const lines = area.value.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n"));
    setParam(spec.name, lines.length ? lines : undefined);
  });
  return h("div", { class: "field" }, h("label", { for: area.id, text: spec.label }), area, h("small", { text: spec.help }));
}

const escapeLine = (text) => text.replaceAll("\n", "\\n");

function switchField(spec) {
  const input = h("input", { type: "checkbox", id: `set-${spec.name}` });
  input.checked = conversation.info.settings.params[spec.name] ?? spec.default;
  input.addEventListener("change", () => setParam(spec.name, input.checked === spec.default ? undefined : input.checked));
  return h("div", { class: "field switch" }, input, h("label", { for: input.id, text: spec.label }), h("small", { text: spec.help }));
}

opener.addEventListener("click", () => openSettings());
