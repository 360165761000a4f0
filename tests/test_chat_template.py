"""Chat templates: what model authors write works, what they must not do fails politely."""

from __future__ import annotations

import re

import pytest

from naiad.chat.template import render
from naiad.errors import InvalidRequest, Unsupported

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = """\
{{ bos_token }}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant") }}
    {%- endif -%}
    {{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""
USER = [{"role": "user", "content": "Hi"}]
PREFILLED = [*USER, {"role": "assistant", "content": "Sure, "}]


def test_chatml() -> None:
    assert render(CHATML, USER) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_bos_comes_from_the_model() -> None:
    assert render(GEMMA, USER, bos="<bos>").startswith("<bos><start_of_turn>user\nHi<end")


def test_the_templates_own_refusal_is_the_message() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate user/assistant") as caught:
        render(GEMMA, [*USER, *USER])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("content", ["Sure, ", "", "Hi", "  spaced  ", "<|im_end|>"])
def test_continued_turn_ends_right_after_its_content(content: str) -> None:
    text = render(CHATML, [*USER, {"role": "assistant", "content": content}], continue_final=True)
    assert text == f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{content}"


def test_continued_turn_keeps_trailing_space_that_the_template_trims() -> None:
    assert render(GEMMA, PREFILLED, continue_final=True).endswith("assistant\nSure, ")


def test_content_that_looks_like_the_mark_is_kept() -> None:
    odd = "\ue000continue\ue001"
    text = render(CHATML, [{"role": "assistant", "content": odd}], continue_final=True)
    assert text == f"<|im_start|>assistant\n{odd}"


def test_template_that_hides_the_last_turn_cannot_continue_it() -> None:
    with pytest.raises(Unsupported, match="cannot be continued"):
        render("{{ messages[0].content }}", PREFILLED, continue_final=True)


def test_nothing_to_continue() -> None:
    with pytest.raises(InvalidRequest, match="no message to continue"):
        render(CHATML, [], continue_final=True)


def test_messages_of_the_caller_are_not_changed() -> None:
    render(CHATML, PREFILLED, continue_final=True)
    assert PREFILLED[-1]["content"] == "Sure, "


def test_block_whitespace_is_trimmed_as_authors_expect() -> None:
    source = "  {% if true %}\nyes\n  {% endif %}\nend"
    assert render(source, []) == "yes\nend"


def test_tojson_keeps_unicode_and_takes_indent() -> None:
    assert render("{{ {'a': '你<b>'}|tojson }}", []) == '{"a": "你<b>"}'
    assert render("{{ [1]|tojson(indent=1) }}", []) == "[\n 1\n]"


def test_strftime_now_is_the_date() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", render("{{ strftime_now('%Y-%m-%d') }}", []))


def test_loop_controls_and_generation_blocks() -> None:
    source = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(source, []) == "01"
    assert render("{% generation %}a{{ 1 }}{% endgeneration %}b", []) == "a1b"


def test_kwargs_reach_the_template_but_replace_nothing_of_ours() -> None:
    source = "{{ enable_thinking }} {{ messages|length }} {{ tools is none }}"
    kwargs = {"enable_thinking": False, "messages": [], "tools": [1]}
    assert render(source, USER, kwargs=kwargs) == "False 1 True"


def test_broken_template_names_the_line() -> None:
    with pytest.raises(Unsupported, match="line 2"):
        render("a\n{% if %}", [])


def test_failure_inside_a_template_tells_its_kind_and_no_content() -> None:
    with pytest.raises(InvalidRequest, match="TypeError") as caught:
        render("{{ messages[0].content + 1 }}", [{"role": "user", "content": "secret"}])
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ (messages|attr('pop'))() }}",
        "{% include '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(InvalidRequest, match="failed on these messages"):
        render(source, USER)


def test_output_is_capped() -> None:
    source = "{% for i in range(2000) %}{{ 'x' * 1000 }}{% endfor %}"
    with pytest.raises(InvalidRequest, match="wrote more than 1048"):
        render(source, [])


def test_cap_grows_with_the_conversation() -> None:
    content = "x" * 3_000_000
    assert len(render(CHATML, [{"role": "user", "content": content}])) > 3_000_000


def test_long_refusals_are_cut() -> None:
    with pytest.raises(InvalidRequest) as caught:
        render("{{ raise_exception('x' * 5000) }}", [])
    assert len(caught.value.message) < 300
