// Codex, headless: two turns, judged on the protocol, not on what a small model says.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [url, model] = process.argv.slice(2);
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
const env = { PATH: process.env.PATH, HOME: process.env.HOME, NO_PROXY: "127.0.0.1" };

async function turn(...given) {
  const options = { cwd: work, env, stdio: ["ignore", "pipe", "ignore"] };
  const child = spawn(program, ["exec", "--json", "--skip-git-repo-check", ...given], options);
  let told = "";
  child.stdout.on("data", (data) => (told += data));
  await new Promise((done) => child.on("close", done));
  const events = told.trim().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(events.filter((one) => one.type === "error"), []); // it tells of each new try
  assert.equal(events.at(-1).type, "turn.completed", told);
  return events.at(-1).usage;
}

const first = await turn("Say hi.");
const second = await turn("resume", "--last", "And again.");
assert.ok(
  second.cached_input_tokens > 0.9 * first.input_tokens,
  `the second turn reused ${second.cached_input_tokens} of ${first.input_tokens} tokens`,
);
