"""An agent that plans and calls tools, after RecMind (Wang et al. 2023), with the plain client.

The LLM sees tool descriptions; whatever it calls is run here and its text goes back as a message,
until it calls ``recommend`` or the turns are used up. Notebook 08 writes the loop out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import openai

from helpers import answers, llm

Tool = Callable[..., str]
FINAL = "recommend"


def tool(name: str, description: str, **parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a tool's description as the OpenAI API takes it; every parameter is required."""
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    schema |= {"additionalProperties": False}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


@dataclass
class Trace:
    """What an agent did: the messages, the calls by name, and how it ended.

    ``movie_ids`` is what it recommended, in order, if ``ended`` is ``recommended``. Other ends:
    ``turns`` (none left), ``no call`` (it answered in words), or the kind of a failed request (see
    :func:`helpers.llm.ask`). ``faults`` counts calls that could not be run.
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
) -> Trace:
    """Let the LLM call ``functions`` until it calls ``recommend(movie_ids)``.

    A call that cannot be run is answered by one sentence that says why; the LLM may try again.
    Nothing a tool returns can end the loop or call a tool.
    """
    trace = Trace(list(messages))
    for _ in range(max_turns):
        outcome = llm.ask(client, trace.messages, tools=tools)
        if outcome.response is None:
            trace.ended = outcome.kind
            return trace
        message = outcome.response.choices[0].message
        kept = {"role", "content", "tool_calls"}
        trace.messages.append(message.model_dump(exclude_none=True, include=kept))
        calls: list[Any] = message.tool_calls or []
        if not calls:
            trace.ended = "no call"
            return trace
        for call in calls:
            name, text = call.function.name, call.function.arguments or "{}"
            arguments = answers.read(text, {"type": "object"}).value
            trace.calls.append(name)
            if name == FINAL and (ids := _ids(arguments)):
                trace.movie_ids, trace.ended = ids, "recommended"
                return trace
            result = _result(functions.get(name), name, arguments)
            trace.faults += result.startswith("Error: ")
            trace.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return trace


def _ids(arguments: dict[str, Any] | None) -> list[int]:
    """Return the whole numbers in ``movie_ids``, also as text, each once."""
    listed = (arguments or {}).get("movie_ids")
    texts = [str(movie).strip() for movie in listed] if isinstance(listed, list) else []
    return list(dict.fromkeys(int(text) for text in texts if re.fullmatch("[0-9]{1,18}", text)))


def _result(function: Tool | None, name: str, arguments: dict[str, Any] | None) -> str:
    """Return what a tool says, or the sentence that says why it could not be run."""
    if arguments is None:
        return f"Error: the arguments of {name} are not a JSON object."
    if name == FINAL:
        return "Error: movie_ids must be a list with at least one movieId."
    if function is None:
        return f"Error: there is no tool named {name}."
    try:
        return function(**arguments)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        return f"Error: {name} could not be run ({error})."
