// Anthropic's package for JavaScript: whole, streamed, together, counts, errors.

import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const [url, model] = process.argv.slice(2);
const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const given = { model, max_tokens: 24, temperature: 0 };
const ask = (content) => [{ role: "user", content }];

const told = await client.messages.create({ ...given, messages: ask("Name a colour.") });
assert.ok(told.content[0].text);
assert.ok(["end_turn", "max_tokens"].includes(told.stop_reason));

async function streamed(content) {
  const stream = client.messages.stream({ ...given, messages: ask(content) });
  let text = "";
  stream.on("text", (piece) => (text += piece));
  assert.equal(await stream.finalText(), text);
  return text;
}
for (let turn = 0; turn < 3; turn++) assert.ok(await streamed("Name a colour."));
const together = await Promise.all([0, 1, 2, 3].map((n) => streamed(`Name a colour (${n}).`)));
assert.ok(together.every(Boolean));

const tool = {
  name: "get_weather",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const called = await client.messages.create({
  ...given, max_tokens: 64, messages: ask("Weather in Rome?"), tools: [tool], tool_choice: { type: "any" },
});
assert.equal(called.content.find((block) => block.type === "tool_use").name, "get_weather");

const counted = await client.messages.countTokens({ model, messages: ask("Name a colour.") });
assert.equal(counted.input_tokens, told.usage.input_tokens + told.usage.cache_read_input_tokens);

await assert.rejects(
  client.messages.create({ ...given, messages: ask("word ".repeat(20000)) }),
  (error) => error instanceof Anthropic.BadRequestError && /prompt is too long/.test(error.message),
);
