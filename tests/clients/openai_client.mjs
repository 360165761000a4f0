// OpenAI's package for JavaScript: whole, streamed, together, tools, schemas, errors.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const given = { model, temperature: 0, seed: 1, max_tokens: 24 };
const ask = (content) => [{ role: "user", content }];

const told = await client.chat.completions.create({ ...given, messages: ask("Name a colour.") });
assert.ok(told.choices[0].message.content);
assert.ok(told.usage.total_tokens > 0);

async function streamed(content) {
  const stream = client.chat.completions.stream({ ...given, messages: ask(content) });
  let text = "";
  stream.on("content", (piece) => (text += piece));
  assert.equal(await stream.finalContent(), text);
  return text;
}
for (let turn = 0; turn < 3; turn++) assert.ok(await streamed("Name a colour."));
const together = await Promise.all([0, 1, 2, 3].map((n) => streamed(`Name a colour (${n}).`)));
assert.ok(together.every(Boolean));

const tool = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const called = await client.chat.completions.create({
  ...given, max_tokens: 64, messages: ask("Weather in Rome?"), tools: [tool], tool_choice: "required",
});
assert.equal(called.choices[0].message.tool_calls[0].function.name, "get_weather");

const schema = {
  type: "object", properties: { city: { type: "string", maxLength: 20 } },
  required: ["city"], additionalProperties: false,
};
const formed = await client.chat.completions.create({
  ...given, max_tokens: 64, messages: ask("I live in Rome."),
  response_format: { type: "json_schema", json_schema: { name: "place", schema, strict: true } },
});
assert.equal(typeof JSON.parse(formed.choices[0].message.content).city, "string");

const spoken = client.responses.stream({ model, input: "Name a colour.", max_output_tokens: 24, temperature: 0 });
let heard = "";
spoken.on("response.output_text.delta", (event) => (heard += event.delta));
assert.equal((await spoken.finalResponse()).output_text, heard);
assert.ok(heard);

const vectors = await client.embeddings.create({ model, input: ["red", "a long way home"] });
assert.equal(vectors.data.length, 2);
assert.ok(vectors.data[0].embedding.length > 100);

await assert.rejects(
  client.chat.completions.create({ ...given, messages: ask("word ".repeat(20000)) }),
  (error) => error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded",
);
await assert.rejects(client.models.retrieve("no-such-model"), OpenAI.NotFoundError);
