// Ollama's package for JavaScript: whole, streamed, together, formats, models, errors.

import assert from "node:assert/strict";
import { Ollama } from "ollama";

const [url, model] = process.argv.slice(2);
const client = new Ollama({ host: url });
const given = { model, options: { temperature: 0, seed: 1, num_predict: 24 } };
const ask = (content) => [{ role: "user", content }];

const told = await client.chat({ ...given, messages: ask("Name a colour.") });
assert.ok(told.message.content);
assert.ok(told.total_duration > 0 && told.eval_count > 0);

async function streamed(content) {
  let text = "";
  let last;
  for await (const part of await client.chat({ ...given, messages: ask(content), stream: true })) {
    text += part.message.content;
    last = part;
  }
  assert.equal(last.done, true);
  return text;
}
for (let turn = 0; turn < 3; turn++) assert.ok(await streamed("Name a colour."));
// One client object aborts all its streams together, so each has its own.
assert.ok((await Promise.all([0, 1, 2].map((n) => streamed(`Name a colour (${n}).`)))).every(Boolean));

const schema = {
  type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"],
};
const formed = await client.chat({
  ...given, options: { temperature: 0, num_predict: 64 }, messages: ask("I live in Rome."), format: schema,
});
assert.equal(typeof JSON.parse(formed.message.content).city, "string");

const first = await client.generate({ ...given, prompt: "Name a colour." });
const second = await client.generate({ ...given, prompt: "And another.", context: first.context });
assert.ok(second.context.length > first.context.length);

const names = (await client.list()).models.map((one) => one.model);
assert.ok((await client.show({ model: names[0] })).model_info["general.architecture"]);
assert.equal((await client.generate({ model: names[0], prompt: "", keep_alive: 0 })).done_reason, "unload");
assert.deepEqual((await client.ps()).models, []);
assert.ok(await streamed("Name a colour."));
assert.equal((await client.ps()).models.length, 1);

await assert.rejects(client.pull({ model: "llama3" }), (error) => error.status_code === 400);
await assert.rejects(
  client.chat({ ...given, messages: [{ role: "user", content: "?", images: ["aGk="] }] }),
  /reads text only/,
);
