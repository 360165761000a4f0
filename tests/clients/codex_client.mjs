// Codex, headless: two turns, judged on the protocol, not on what a small model says.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [url, model, option] = process.argv.slice(2);
const program = join(import.meta.dirname, "node_modules", ".bin", "codex");
const work = mkdtempSync(join(process.env.HOME, "work-"));
mkdirSync(join(process.env.HOME, ".codex"));
writeFileSync(join(process.env.HOME, ".codex", "config.toml"), `
model = "${model}"
model_provider = "naiad"
[model_providers.naiad]
name = "naiad"
base_url = "${url}/v1"
wire_api = "responses"
`);
const schema = join(process.env.HOME, "schema.json");
writeFileSync(schema, JSON.stringify({
  type: "object", properties: { word: { enum: ["hi", "hello"] } }, required: ["word"], additionalProperties: false,
}));
const formed = option === "--output-schema" ? [option, schema] : [];
const env = { PATH: process.env.PATH, HOME: process.env.HOME, NO_PROXY: "127.0.0.1" };

async function turn(...given) {
  const options = { cwd: work, env, stdio: ["ignore", "pipe", "ignore"] };
  const child = spawn(program, ["exec", "--json", "--skip-git-repo-check", ...formed, ...given], options);
  let told = "";
  child.stdout.on("data", (data) => (told += data));
  await new Promise((done) => child.on("close", done));
  const events = told.trim().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(events.filter((one) => one.type === "error"), []); // it tells of each new try
  assert.equal(events.at(-1).type, "turn.completed", told);
  const said = events.filter((one) => one.item?.type === "agent_message").at(-1).item.text;
  assert.ok(formed.length === 0 ? said : ["hi", "hello"].includes(JSON.parse(said).word), told);
  return events.at(-1).usage;
}

// The second turn's usage is that of both.
const first = await turn("Say hi.");
const both = await turn("resume", "--last", "And again.");
const reused = both.cached_input_tokens - first.cached_input_tokens;
assert.ok(reused > 0.9 * first.input_tokens, `the second turn reused ${reused} of ${first.input_tokens} tokens`);
console.log(`the second turn reused ${reused} tokens of its ${both.input_tokens - first.input_tokens}`);
