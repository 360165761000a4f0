"""KoboldAI's API and KoboldCpp's additions to it, as SillyTavern and KoboldAI Lite use them."""

from __future__ import annotations

from naiad.dialects.base import Access, Dialect, Handle, Operation, Parse
from naiad.dialects.kobold import queries, stories
from naiad.dialects.kobold.errors import error_body
from naiad.dialects.kobold.requests import parse_basic, parse_stream, parse_whole


def _generate(path: str, parse: Parse) -> Operation:
    return Operation("POST", path, Access.USER, parse=parse)


def _query(method: str, path: str, handle: Handle, access: Access = Access.USER) -> Operation:
    return Operation(method, path, access, handle=handle)


def _classic(prefix: str) -> tuple[Operation, ...]:
    # What clients ask before they know of a key is public; it tells nothing of what is run.
    public = Access.PUBLIC
    return (
        _generate(f"{prefix}/generate", parse_whole),
        _query("GET", f"{prefix}/model", queries.show_model),
        _query("GET", f"{prefix}/info/version", queries.show_api_version, public),
        _query("GET", f"{prefix}/config/max_length", queries.show_max_length, public),
        _query("GET", f"{prefix}/config/max_context_length", queries.show_context_length, public),
        _query("GET", f"{prefix}/config/soft_prompt", queries.show_soft_prompt, public),
        _query("GET", f"{prefix}/config/soft_prompts_list", queries.list_soft_prompts, public),
    )


def _extra(prefix: str) -> tuple[Operation, ...]:
    public = Access.PUBLIC
    return (
        _generate(f"{prefix}/generate/stream", parse_stream),
        _query("GET", f"{prefix}/generate/check", queries.check_generation),
        _query("POST", f"{prefix}/generate/check", queries.check_generation),
        _query("GET", f"{prefix}/last_logprobs", queries.show_logprobs),
        _query("POST", f"{prefix}/last_logprobs", queries.show_logprobs),
        _query("POST", f"{prefix}/abort", queries.abort_generation),
        _query("POST", f"{prefix}/tokencount", queries.count_tokens),
        _query("POST", f"{prefix}/tokenize", queries.count_tokens),
        _query("POST", f"{prefix}/detokenize", queries.detokenize),
        _query("POST", f"{prefix}/json_to_grammar", queries.convert_schema),
        Operation("POST", f"{prefix}/embeddings", Access.USER, handle=queries.embed, is_long=True),
        _query("GET", f"{prefix}/version", queries.show_version, public),
        _query("GET", f"{prefix}/true_max_context_length", queries.show_context_length, public),
        _query("GET", f"{prefix}/perf", queries.show_perf),
        *_stories(prefix),
    )


def _stories(prefix: str) -> tuple[Operation, ...]:
    return (
        _query("GET", f"{prefix}/preloadstory", stories.show_preloaded),
        _query("POST", f"{prefix}/data/list", stories.list_saved),
        _query("POST", f"{prefix}/data/load", stories.load_saved),
        _query("POST", f"{prefix}/data/save", stories.save),
        _query("POST", f"{prefix}/multiplayer/status", stories.show_turn),
        _query("POST", f"{prefix}/multiplayer/getstory", stories.show_shared),
        _query("POST", f"{prefix}/multiplayer/setstory", stories.take_turn),
    )


DIALECT = Dialect(
    name="kobold",
    operations=(
        *_classic("/api/v1"),
        *_classic("/api/latest"),
        *_extra("/api/extra"),
        _generate("/request", parse_basic),
        _query("GET", "/.well-known/serviceinfo", queries.show_service, Access.PUBLIC),
    ),
    error_body=error_body,
    prefixes=("/api/", "/request"),
)
