// Claude Code, headless: two turns, judged on the protocol, not on what a small model says.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import { join } from "node:path";

const [url, model] = process.argv.slice(2);
const program = join(import.meta.dirname, "node_modules", ".bin", "claude");
const work = mkdtempSync(join(process.env.HOME, "work-"));
const log = join(process.env.HOME, "debug.log");
const env = {
  PATH: process.env.PATH, HOME: process.env.HOME, NO_PROXY: "127.0.0.1",
  ANTHROPIC_BASE_URL: url, ANTHROPIC_AUTH_TOKEN: "none",
  ANTHROPIC_MODEL: model, ANTHROPIC_SMALL_FAST_MODEL: model,
  CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1", DISABLE_TELEMETRY: "1",
  API_TIMEOUT_MS: "3600000", // of a whole request; it sends whole requests when streams fail
  CLAUDE_CODE_MAX_OUTPUT_TOKENS: "48",
};

async function turn(...more) {
  const given = ["--output-format", "json", "--debug-file", log, ...more];
  const child = spawn(program, given, { cwd: work, env, stdio: ["ignore", "pipe", "inherit"] });
  let told = "";
  child.stdout.on("data", (data) => (told += data));
  await new Promise((done) => child.on("close", done));
  return JSON.parse(told);
}

async function counters() {
  const text = await (await fetch(`${url}/metrics`)).text();
  return (name) => Number(text.split("\n").find((line) => line.startsWith(name + " ")).split(" ")[1]);
}

// A model that does not know when to end is cut off, which Claude Code calls an error of its own.
const isFine = (told) => !told.is_error || /output token maximum/.test(told.result);

const before = await counters();
const first = await turn("-p", "Say hi.");
assert.ok(isFine(first), JSON.stringify(first));
const between = await counters();
const second = await turn("-p", "--continue", "And again.");
assert.ok(isFine(second), JSON.stringify(second));
const after = await counters();

const failures = readFileSync(log, "utf8").split("\n").filter((line) =>
  /API error|Streaming idle|falling back|Error in API request|Error streaming/.test(line));
assert.deepEqual(failures, []);
const requests = (end) => `naiad_requests_total{outcome="${end}"}`;
for (const end of ["failed", "cancelled"]) {
  assert.equal(after(requests(end)), before(requests(end)), `requests ${end}`);
}
const length = between("llamacpp:prompt_tokens_total") - before("llamacpp:prompt_tokens_total");
const reused = after("naiad_prompt_tokens_cached_total") - between("naiad_prompt_tokens_cached_total");
assert.ok(reused > 0.9 * length, `the second turn reused ${reused} of some ${length} tokens`);
assert.equal(second.usage.cache_read_input_tokens, reused);
console.log(`${after(requests("completed")) - before(requests("completed"))} requests; ` +
  `the second turn reused ${reused} tokens of its ${reused + second.usage.input_tokens}`);
