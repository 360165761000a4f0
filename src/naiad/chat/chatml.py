"""The chat template for models that bring none."""

from __future__ import annotations

#: For models without a template: the format of OpenAI's ChatML, as other servers fall back to.
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
