"""What a request runs with, under llama-server's names."""

from __future__ import annotations

from typing import Any

from naiad.types import SamplingParams

#: Its name -> the field of SamplingParams.
_NAMES = {
    "seed": "seed",
    "temperature": "temperature",
    "dynatemp_range": "dynatemp_range",
    "dynatemp_exponent": "dynatemp_exponent",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "top_n_sigma": "top_n_sigma",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "typical_p": "typical_p",
    "repeat_last_n": "penalty_last_n",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "dry_multiplier": "dry_multiplier",
    "dry_base": "dry_base",
    "dry_allowed_length": "dry_allowed_length",
    "dry_penalty_last_n": "dry_last_n",
    "dry_sequence_breakers": "dry_breakers",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "ignore_eos": "ignore_eos",
}


def settings_of(
    sampling: SamplingParams,
    *,
    n_predict: int | None = None,
    stop: tuple[str, ...] = (),
    stream: bool = False,
    grammar: str = "",
) -> dict[str, Any]:
    """The settings as JSON values. n_predict: None for no limit but the context's, told as -1."""
    limit = -1 if n_predict is None else n_predict
    return {
        **{name: getattr(sampling, field) for name, field in _NAMES.items()},
        "n_probs": max(0, sampling.n_logprobs),
        "post_sampling_probs": sampling.logprobs_after,
        "samplers": list(sampling.order),
        "stop": list(stop),
        "n_predict": limit,
        "max_tokens": limit,
        "stream": stream,
        "grammar": grammar,
    }
