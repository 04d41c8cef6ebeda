"""Rejects with one cause are one line, with the first of them and how many more."""

from __future__ import annotations

from tasks.ingest.groups import Groups


def test_problems_that_differ_in_numbers_and_excerpts_are_one_group() -> None:
    """What stands in a row does not make its problem another one; the column does."""
    groups = Groups()
    for i in range(5):
        problem = (
            f"holds </s>, a special token of the tokenizer (in 'the coat number {i}'): remove it"
        )
        groups.add(problem, f"data.jsonl:{i} {problem}")
    for column in ("text", "summary", "summary"):
        groups.add(f'"{column}" is blank', f'data.jsonl:9 "{column}" is blank')
    first, second, third = groups.lines()
    assert first.startswith("data.jsonl:0 holds </s>")
    assert first.endswith("(and 4 more like it)")
    assert second == 'data.jsonl:9 "summary" is blank (and 1 more like it)'
    assert third == 'data.jsonl:9 "text" is blank'
