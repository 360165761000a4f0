// Reading a streamed chat answer: server-sent events of POST /v1/chat/completions.

import { ApiError, call } from "./api.js";

/**
 * The JSON of each event until the end marker.
 * @param {any} body
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>}
 */
export async function* chatEvents(body, signal) {
  const response = await call("/v1/chat/completions", body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await read(reader, signal);
    if (done) throw new ApiError("The connection to the server was lost.", 0);
    const lines = (rest + value).split("\n");
    rest = /** @type {string} */ (lines.pop());
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue; // comments keep the connection alive
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new ApiError(event.error.message, 500);
      yield event;
    }
  }
}

/** @param {ReadableStreamDefaultReader<string>} reader @param {AbortSignal} signal */
async function read(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError("The connection to the server was lost.", 0);
  }
}

/**
 * What one event says, whichever names it uses.
 * @param {any} event
 * @returns {{text: string, reasoning: string, toolCalls: any[], finish: string | null, usage: any, progress: any, queue: any, load: any}}
 */
export function partsOf(event) {
  const choice = event.choices?.[0] ?? {};
  const delta = choice.delta ?? {};
  return {
    text: delta.content ?? "",
    reasoning: delta.reasoning_content ?? delta.reasoning ?? "",
    toolCalls: delta.tool_calls ?? [],
    finish: choice.finish_reason ?? null,
    usage: event.usage ?? null,
    progress: event.prompt_progress ?? null,
    queue: event.queue ?? null,
    load: event.model_load ?? null,
  };
}

/**
 * Tool calls come in pieces: name and id once, arguments bit by bit.
 * @param {any[]} calls @param {any[]} pieces
 */
export function mergeToolCalls(calls, pieces) {
  for (const piece of pieces) {
    const at = piece.index ?? calls.length;
    calls[at] ??= { id: "", type: "function", function: { name: "", arguments: "" } };
    calls[at].id ||= piece.id ?? "";
    calls[at].function.name ||= piece.function?.name ?? "";
    calls[at].function.arguments += piece.function?.arguments ?? "";
  }
}
