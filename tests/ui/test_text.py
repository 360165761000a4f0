"""The page's pure functions over text, run where they run: in the browser."""

from __future__ import annotations

from typing import Any

from ui.page import Chat

MARKDOWN = """# Title

One paragraph
of two lines.

- a list

  with a paragraph inside
- and more

```python
x = 1

y = 2
```

After the code.

~~~
``` inside

~~~
The end"""

CUTS = """async text => {
    const { takeBlocks, tailOf } = await import('/ui/text.js');
    const whole = takeBlocks(text, 0);
    const found = [];
    let next = 0;
    let taken = [];
    for (let end = 0; end <= text.length; end += 1) {
        const step = takeBlocks(text.slice(0, end), next);
        taken = [...taken, ...step.blocks];
        next = step.next;
        tailOf(text.slice(next, end));
        if (taken.join('') + text.slice(next, end) !== text.slice(0, end)) found.push(end);
    }
    return { found, taken, whole: whole.blocks };
}"""

SPLIT = "async text => (await import('/ui/text.js')).splitThinking(text)"
TITLE = "async text => (await import('/ui/text.js')).titleFrom(text)"


def test_blocks_are_the_same_however_the_text_arrives(chat: Chat) -> None:
    told: Any = chat.page.evaluate(CUTS, MARKDOWN)
    assert told["found"] == []
    assert told["taken"] == told["whole"]
    assert told["whole"][0] == "# Title\n\n"
    assert any(block.startswith("```python") and "y = 2" in block for block in told["whole"])
    assert any("with a paragraph inside" in block for block in told["whole"])


THOUGHTS = [
    ("plain", "", "plain", False),
    ("<think>a", "a", "", True),
    ("<think>a</think>\n\nb", "a", "b", False),
    ("a</think>b", "a", "b", False),
    ("<thinking>a</thinking>b", "a", "b", False),
    ("write `</think>` here", "", "write `</think>` here", False),
    ("b <think> c", "", "b <think> c", False),
]


def test_thinking_is_told_from_the_answer(chat: Chat) -> None:
    for text, thinking, answer, is_thinking in THOUGHTS:
        told: Any = chat.page.evaluate(SPLIT, text)
        assert told == {"thinking": thinking, "answer": answer, "isThinking": is_thinking}, text


def test_titles_are_short_and_plain(chat: Chat) -> None:
    def title(text: str) -> str:
        return str(chat.page.evaluate(TITLE, text))

    assert title("\n# Hello *there*\nmore") == "Hello there"
    assert title("> **Why** is `snake_case` not _camel_?") == "Why is snake_case not camel?"
    assert title("What is 2*3 + 4*5?") == "What is 2*3 + 4*5?"
    assert title("   ") == "New conversation"
    assert title("word " * 40) == "word " * 11 + "word…"
