// Pure functions over text: what was thought and what was said, where a block of Markdown ends.

const OPEN = /^\s*<(think|thinking|reasoning)>/;
const CLOSE = /<\/(think|thinking|reasoning)>/;

/**
 * Reasoning that a model writes between tags at the start of its answer, apart from the answer.
 * Some templates write the opening tag themselves, so a closing tag alone counts too.
 * @param {string} text
 * @returns {{thinking: string, answer: string, isThinking: boolean}}
 */
export function splitThinking(text) {
  const open = OPEN.exec(text);
  const start = open ? open[0].length : 0;
  const close = CLOSE.exec(text);
  if (!close) {
    if (open) return { thinking: text.slice(start), answer: "", isThinking: true };
    return { thinking: "", answer: text, isThinking: false };
  }
  // Inside code, or far into an answer that never opened one, a tag is only being talked about.
  if (!open && text.slice(0, close.index).includes("`")) {
    return { thinking: "", answer: text, isThinking: false };
  }
  const answer = text.slice(close.index + close[0].length).replace(/^\s+/, "");
  return { thinking: text.slice(start, close.index), answer, isThinking: false };
}

const FENCE = /^ {0,3}(`{3,}|~{3,})/;

/**
 * The blocks of Markdown after `from` that can no longer change, for an answer that still grows.
 * A block ends at a blank line outside code, when the line after it is not indented.
 * @param {string} text
 * @param {number} from
 * @returns {{blocks: string[], next: number}} next: where the unfinished rest begins
 */
export function takeBlocks(text, from) {
  const blocks = [];
  let next = from;
  let fence = "";
  let isBlank = false;
  for (let at = from; ;) {
    const end = text.indexOf("\n", at);
    if (end < 0) {
      // The rest of a line: it ends the block before it as soon as it is seen not to be indented.
      if (isBlank && !fence && at < text.length && !/^\s/.test(text.slice(at))) {
        blocks.push(text.slice(next, at));
        next = at;
      }
      return { blocks, next };
    }
    const line = text.slice(at, end);
    if (isBlank && !fence && line.trim() && !/^\s/.test(line)) {
      blocks.push(text.slice(next, at));
      next = at;
    }
    const found = FENCE.exec(line);
    if (fence) {
      if (found && found[1].startsWith(fence) && line.trim() === found[1]) fence = "";
    } else if (found) fence = found[1];
    isBlank = !line.trim();
    at = end + 1;
  }
}

/**
 * The unfinished rest as it is shown meanwhile: code looks like code from its first line on.
 * @param {string} rest
 * @returns {{isCode: boolean, text: string, before: string}}
 */
export function tailOf(rest) {
  let fence = "";
  let start = 0;
  let opened = 0;
  for (let at = 0; at < rest.length;) {
    const end = rest.indexOf("\n", at) < 0 ? rest.length : rest.indexOf("\n", at);
    const line = rest.slice(at, end);
    const found = FENCE.exec(line);
    if (fence && found && found[1].startsWith(fence) && line.trim() === found[1]) fence = "";
    else if (!fence && found && end < rest.length) {
      fence = found[1];
      opened = at;
      start = end + 1;
    }
    at = end + 1;
  }
  if (!fence) return { isCode: false, text: rest, before: "" };
  return { isCode: true, text: rest.slice(start), before: rest.slice(0, opened) };
}

/** Marks of emphasis and code, which stand at the edges of words; `snake_case` and 2*3 have none. */
const MARKS = /(?<=^|[\s(])[*_`]+(?=\S)|(?<=\S)[*_`]+(?=[\s).,:;!?]|$)/g;

/** A conversation's title from its first message. @param {string} text */
export function titleFrom(text) {
  const line = text.trim().split("\n").find((one) => one.trim()) ?? "";
  const words = line.replace(/^[#>\s]+/, "").replace(MARKS, "").trim();
  if (words.length <= 60) return words || "New conversation";
  return `${words.slice(0, 60).replace(/\s+\S{0,24}$/, "")}…`;
}

/** A failure's words as a sentence: servers begin and end theirs as they like. @param {string | undefined} words */
export function asSentence(words) {
  const text = (words ?? "").trim() || "Something went wrong";
  const isWord = /^[a-z]+[ ,]/.test(text); // a field's name stays as it is
  const begun = isWord ? text[0].toUpperCase() + text.slice(1) : text;
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

/** The words around the first place where a text holds `query`. @param {string} text @param {string} query */
export function snippet(text, query) {
  const at = text.toLowerCase().indexOf(query.toLowerCase());
  if (at < 0) return "";
  const from = Math.max(0, at - 24);
  const cut = text.slice(from, at + query.length + 48).replace(/\s+/g, " ");
  return `${from ? "…" : ""}${cut}`;
}

/** An id nobody else has; works without a secure context too. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
