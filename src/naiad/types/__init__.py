"""The internal vocabulary: what a request is once it is parsed, and what a stream can say.

No wire name of any API stands here; dialects translate. Everything is frozen.
"""

from __future__ import annotations

from naiad.types.events import (
    Completion,
    EmbeddedText,
    Finished,
    FinishReason,
    Likely,
    Progress,
    ReasoningDelta,
    Running,
    Started,
    StreamEvent,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from naiad.types.model import CacheCounts, EngineSettings, ModelInfo, Residency
from naiad.types.requests import (
    Caller,
    ChatMessage,
    ChatPrompt,
    GenerateRequest,
    Prompt,
    TextPrompt,
    ThinkingBudget,
    TokenPrompt,
    Tool,
    ToolCall,
)
from naiad.types.sampling import Grammar, ReasoningLimit, SamplingParams, Trim
from naiad.types.stories import SavedStory, SharedTurn

__all__ = [
    "CacheCounts",
    "Caller",
    "ChatMessage",
    "ChatPrompt",
    "Completion",
    "EmbeddedText",
    "EngineSettings",
    "FinishReason",
    "Finished",
    "GenerateRequest",
    "Grammar",
    "Likely",
    "ModelInfo",
    "Progress",
    "Prompt",
    "ReasoningDelta",
    "ReasoningLimit",
    "Residency",
    "Running",
    "SamplingParams",
    "SavedStory",
    "SharedTurn",
    "Started",
    "StreamEvent",
    "TextDelta",
    "TextPrompt",
    "ThinkingBudget",
    "Timings",
    "TokenLogprob",
    "TokenPrompt",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "Trim",
    "Usage",
]
