"""An agent that plans and calls tools, after RecMind (Wang et al. 2023), with the plain client.

The LLM sees tool descriptions; whatever it calls is run here and its text goes back as a message,
until it calls ``recommend`` or the turns are used up. Notebook 08 writes the loop out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import openai

from helpers import answers, llm

Tool = Callable[..., str]
FINAL = "recommend"


def tool(name: str, description: str, **parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a tool's description as the OpenAI API takes it; every parameter is required."""
    schema = {
        "type": "object",
        "properties": parameters,
        "required": list(parameters),
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


@dataclass
class Trace:
    """What an agent did: the messages, the calls by name, and how it ended.

    ``movie_ids`` is what it recommended, in order, empty unless ``ended`` is ``recommended``.
    Other ends: ``turns`` (none left), ``no call`` (it answered in words), or the kind of a failed
    request (see :func:`helpers.llm.ask`). ``faults`` counts calls that could not be run.
    """

    messages: list[dict[str, Any]]
    calls: list[str] = field(default_factory=list)
    movie_ids: list[int] = field(default_factory=list)
    ended: str = "turns"
    faults: int = 0


def run(
    client: openai.OpenAI,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    functions: Mapping[str, Tool],
    *,
    max_turns: int = 6,
    **options: Any,
) -> Trace:
    """Let the LLM call ``functions`` until it calls ``recommend(movie_ids)``.

    A tool that is unknown, or called with arguments it cannot take, answers with one sentence that
    says so; the LLM may try again. Nothing a tool returns can end the loop or call a tool.
    """
    trace = Trace(list(messages))
    for _ in range(max_turns):
        outcome = llm.ask(client, trace.messages, tools=tools, **options)
        if outcome.response is None:
            trace.ended = outcome.kind
            return trace
        message = outcome.response.choices[0].message
        said = message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})
        trace.messages.append(said)
        if not message.tool_calls:
            trace.ended = "no call"
            return trace
        for call in message.tool_calls:
            name, given = call.function.name, _arguments(call.function.arguments)
            trace.calls.append(name)
            if name == FINAL and (ids := _ids(given)):
                trace.movie_ids, trace.ended = ids, "recommended"
                return trace
            text = _run(functions.get(name), name, given)
            trace.faults += text.startswith("Error: ")
            trace.messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
    return trace


def _arguments(text: str | None) -> dict[str, Any] | None:
    return answers.read(text or "{}", {"type": "object"}).value


def _ids(given: dict[str, Any] | None) -> list[int]:
    listed = (given or {}).get("movie_ids")
    if not isinstance(listed, list):
        return []
    whole = [int(i) for i in listed if _is_whole(i)]
    return list(dict.fromkeys(whole))


def _is_whole(value: object) -> bool:
    if isinstance(value, str):
        return value.strip().isascii() and value.strip().isdigit() and len(value) < 19
    return isinstance(value, int) and not isinstance(value, bool)


def _run(function: Tool | None, name: str, given: dict[str, Any] | None) -> str:
    if given is None:
        return f"Error: the arguments of {name} are not a JSON object."
    if name == FINAL:
        return "Error: movie_ids must be a list with at least one movieId."
    if function is None:
        return f"Error: there is no tool named {name}."
    try:
        return function(**given)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        return f"Error: {name} could not be run ({error})."
