// The server's public API, as this page uses it; every failure becomes words for a person.

/** A failure told in plain words. */
export class ApiError extends Error {
  /** @param {string} message @param {number} status 0: the server was not reached @param {string} [code] */
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const KEY = "naiad.key";
let key = "";

/** The key from the link's fragment, which leaves the address bar, or the one kept earlier. */
export function takeKey() {
  const found = /^#key=(.+)$/.exec(location.hash);
  if (found) {
    keepKey(decodeURIComponent(found[1]));
    history.replaceState(null, "", location.pathname);
  } else {
    try {
      key = localStorage.getItem(KEY) ?? "";
    } catch { /* storage is forbidden: the key is asked for */ }
  }
  return key;
}

/** @param {string} value */
export function keepKey(value) {
  key = value.trim();
  try {
    localStorage.setItem(KEY, key);
  } catch { /* kept for as long as this page is open */ }
}

/** @param {string} path @param {any} [body] @param {AbortSignal} [signal] @returns {Promise<Response>} */
export async function call(path, body, signal) {
  /** @type {Record<string, string>} */
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached.", 0);
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const message = told?.error?.message ?? `The server answered ${response.status}.`;
  throw new ApiError(message, response.status, told?.error?.code);
}

/** @param {string} path @param {any} [body] @returns {Promise<any>} */
const json = async (path, body) => (await call(path, body)).json();

/** How the server is; also when it answers that it is not ready. @returns {Promise<any>} */
export async function health() {
  try {
    const response = await fetch("/health", { cache: "no-store" });
    return await response.json();
  } catch {
    return null;
  }
}

/** Whether the server wants a key. */
export const isProtected = async () => Boolean((await json("/api/extra/version")).protected);

/** Throws ApiError 401 when the key is not the right one. */
export const checkKey = () => json("/v1/models");

/** The table of sampling parameters. @returns {Promise<any[]>} */
export const samplers = async () => (await json("/api/naiad/samplers")).samplers;

/** @param {string[]} texts @returns {Promise<(string | null)[]>} */
export const render = async (texts) => (await json("/api/naiad/render", { texts })).html;

/** How many tokens a text has. @param {string} prompt @returns {Promise<number>} */
export const countTokens = async (prompt) =>
  (await json("/api/extra/tokencount", { prompt })).value;
