// From a conversation to the body of a chat request.

import { splitThinking } from "./text.js";

/** @returns {import("./conversation.js").Settings} */
export const plainSettings = () =>
  ({ system: "", params: {}, schema: "", grammar: "", tools: "", prefill: "", preset: "" });

/**
 * The body for an answer that follows a path. Throws Error in words for a setting that is no JSON.
 * @param {import("./conversation.js").Message[]} path ends before the answer
 * @param {import("./conversation.js").Settings} settings
 * @param {string} start the text the answer begins with; the model goes on with it
 */
export function chatBody(path, settings, start) {
  const messages = path.map(wireMessage);
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
  if (start) messages.push({ role: "assistant", content: start });
  /** @type {any} */
  const body = {
    ...settings.params,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
  };
  if (start) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  if (settings.schema.trim()) {
    const schema = parse(settings.schema, "The JSON schema");
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  if (settings.grammar.trim()) body.grammar = settings.grammar;
  if (settings.tools.trim()) body.tools = parse(settings.tools, "The list of tools");
  return body;
}

/** @param {import("./conversation.js").Message} message */
function wireMessage(message) {
  if (message.role === "tool") {
    return { role: "tool", content: message.text, tool_call_id: message.toolCallId };
  }
  if (message.role === "user") return { role: "user", content: message.text };
  /** @type {any} */
  const wire = { role: "assistant", content: splitThinking(message.text).answer };
  if (message.toolCalls?.length) wire.tool_calls = message.toolCalls;
  return wire;
}

/** @param {string} text @param {string} what */
function parse(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${what} in the settings is no valid JSON: ${error.message}.`);
  }
}
