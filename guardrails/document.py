"""A YAML document with the line of every field, and what is wrong with it.

Knows YAML; does not know what the document is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a policy file. ``line`` counts from 1."""

    source: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{self.source}:{self.line}: {where}{self.message}"


class PolicyError(ValueError):
    """A policy that is not fit for use."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_document(text: str, source: str) -> tuple[Any, dict[Location, int]]:
    """The document, and the line of every field in it.

    Raises:
        PolicyError: not YAML, no mapping, a key twice, or an alias (which could blow up).
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise PolicyError([Problem(source, 1, "", "a policy is a mapping of fields")])
        lines: dict[Location, int] = {}
        problems = [
            Problem(source, line, ".".join(map(str, location)), message)
            for location, line, message in _walk(node, (), lines, set())
        ]
        if problems:
            raise PolicyError(problems)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PolicyError([Problem(source, line, "", f"not YAML: {error.problem}")]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError([Problem(source, 1, "", "not YAML")]) from None
    finally:
        loader.dispose()


def _walk(
    node: yaml.Node, location: Location, lines: dict[Location, int], seen: set[int]
) -> Iterator[tuple[Location, int, str]]:
    line = node.start_mark.line + 1
    lines[location] = line
    if id(node) in seen:
        yield location, line, "YAML aliases are not supported"
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*location, str(key.value))
            if place in lines:
                yield place, key.start_mark.line + 1, "is there twice"
            yield from _walk(value, place, lines, seen)
            lines[place] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _walk(value, (*location, number), lines, seen)
