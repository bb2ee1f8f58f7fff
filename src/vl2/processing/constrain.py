"""`Grammar` → llguidance's own form, checked before a request queues; grounding has an automaton of its own.

What is wrong with a schema or an expression is found here, on the CPU, with a vocabulary of bytes: it does not depend
on the model's. The engine builds the same text again with the real one.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from vl2.core.errors import InvalidRequest
from vl2.core.types import Grammar, Prompt
from vl2.processing.grounding_grammar import state_after_prompt
from vl2.processing.tokenizer import Tokenizer

LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
MAX_SPEC_CHARS = 200_000
WHITESPACE = " "
"""Between the parts of JSON there may be this: compact answers, as small models do not find out of longer runs."""


def to_llguidance(grammar: Grammar) -> str:
    """Raises: InvalidRequest when a schema is no JSON object."""
    match grammar.kind, grammar.spec:
        case "choice", tuple(texts):
            return LLMatcher.grammar_from_regex("|".join(map(_literal, texts)))
        case "regex", str(expression):
            return LLMatcher.grammar_from_regex(expression)
        case "json_object", _:
            return _json('{"type": "object"}')
        case "json_schema", str(schema):
            return _json(schema)
        case "text_or_json", str(schema):
            return LLMatcher.grammar_from_lark(_TEXT_OR_JSON + json.dumps(_compact(schema)))
    raise AssertionError(f"a {grammar.kind} grammar is not llguidance's")


_TEXT_OR_JSON = r"""
start: TEXT | SPACE? value
TEXT: /[ \n\r\t]*([^{ \n\r\t](.|\n)*)?/
SPACE: /[ \n]/
value: %json """


def _compact(schema: str) -> dict[str, Any]:
    """A schema inside another grammar, whose white space cannot be set from outside."""
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise InvalidRequest("the schema must be a JSON object", param="grammar")
    return {"x-guidance": {"whitespace_pattern": WHITESPACE}} | parsed


def _json(schema: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITESPACE})
    except ValueError as error:
        raise InvalidRequest(f"the schema must be a JSON object: {_reason(str(error))}", param="grammar") from None


def _literal(text: str) -> str:
    """An expression that matches `text` and nothing else."""
    return "".join(
        char if char.isascii() and char.isalnum() else "\\x{" + format(ord(char), "x") + "}" for char in text
    )


def check_grammar(grammar: Grammar) -> None:
    """Raises: InvalidRequest that says what is wrong, with `param` "grammar"."""
    num_chars = len(grammar.spec) if isinstance(grammar.spec, str) else sum(map(len, grammar.spec))
    if num_chars > MAX_SPEC_CHARS:
        raise InvalidRequest(
            f"the {grammar.kind} grammar has {num_chars} characters; the most is {MAX_SPEC_CHARS}", param="grammar"
        )
    if grammar.kind == "grounding":
        return
    matcher = LLMatcher(_byte_tokenizer(), to_llguidance(grammar), log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # finds what is sound in itself but has no text
    if matcher.is_error():
        name = {"json_schema": "the schema", "text_or_json": "the schema", "regex": "the expression"}.get(
            grammar.kind, f"the {grammar.kind} grammar"
        )
        raise InvalidRequest(f"{name} cannot be used: {_reason(matcher.get_error())}", param="grammar")


def check_prompt(grammar: Grammar, prompt: Prompt, tokenizer: Tokenizer) -> None:
    """Whether an answer to this prompt can keep to the grammar. Raises: InvalidRequest."""
    if grammar.kind != "grounding":
        return
    if not prompt.spans:
        raise InvalidRequest("grounding marks objects in a picture, but none was sent", param="grammar")
    if state_after_prompt(prompt.token_ids, tokenizer) is None:
        raise InvalidRequest(
            "the last message begins an answer whose boxes are not well-formed, so grounding cannot go on from it",
            param="messages",
        )


def _reason(error: str) -> str:
    """One line of llguidance's report."""
    if error.startswith("NoExtension"):
        return "no text can satisfy it"
    explained = re.findall(r"^error: (.+)$", error, re.MULTILINE)  # of an expression, below a drawing of it
    line = explained[0] if explained else re.sub(r"^(at )?\d+\(\d+\): ", "", error.strip().partition("\n")[0])
    return line if len(line) <= 160 else line[:159] + "…"


class _Bytes:
    """A vocabulary of the 256 bytes and an EOS."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<eos>")
    special_token_ids = (256,)

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


@functools.cache
def _byte_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()))
