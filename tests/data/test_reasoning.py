"""Chains are told from answers, and the answer's code is never lost: cases written by hand."""

from __future__ import annotations

import pytest

from amigo_local.data.answer_blocks import answer_blocks, fenced, strip_preamble
from amigo_local.data.reasoning import split_reasoning, without_reasoning
from amigo_local.data.reasoning_prose import deliberation, is_deliberation

CODE = "```python\ndef add(a, b):\n    return a + b\n```"
BARE = "def add(a, b):\n    return a + b"
THOUGHT = "Okay, the user wants a sum. Wait, what about floats? They add as well."

TAGGED = {
    "think": f"<think>\n{THOUGHT}\n</think>\n\n{CODE}",
    "think on one line": f"<think>{THOUGHT}</think>{CODE}",
    "upper case": f"<THINK>{THOUGHT}</THINK>\n{CODE}",
    "thinking": f"<thinking>{THOUGHT}</thinking>\n{CODE}",
    "reasoning": f"<reasoning>\n{THOUGHT}\n</reasoning>\n{CODE}",
    "thought": f"<thought>\n{THOUGHT}\n</thought>\n{CODE}",
    "with an answer tag": f"<think>{THOUGHT}</think>\n<answer>\n{CODE}\n</answer>",
    "open-thoughts": f"<|begin_of_thought|>\n{THOUGHT}\n<|end_of_thought|>\n\n"
    f"<|begin_of_solution|>\n{CODE}\n<|end_of_solution|>",
    "open-thoughts whose thought isn't ended": f"<|begin_of_thought|>\n{THOUGHT}\n<|begin_of_solution|>\n{CODE}\n",
    "brackets": f"[THOUGHT]\n{THOUGHT}\n[/THOUGHT]\n[ANSWER]\n{CODE}\n[/ANSWER]",
    "brackets without an end": f"[THOUGHT]\n{THOUGHT}\n[ANSWER]\n{CODE}\n[/ANSWER]",
    "no opening tag": f"{THOUGHT}\n</think>\n\n{CODE}",
    "no opening tag, end of a line": f"{THOUGHT} So add them.</think>\n{CODE}",
    "no end, but a whole block at the end": f"<think>\n{THOUGHT}\n\n{CODE}",
    "drafts inside": f"<think>\n{THOUGHT}\n```python\ndef add(a): return a\n```\nNo, two.\n</think>\n{CODE}",
    "an open fence inside": f"<think>\n{THOUGHT}\n```python\ndef add(a):\n</think>\n{CODE}",
    "twice": f"<think>{THOUGHT}</think>\n<think>Once more.</think>\n{CODE}",
    "empty": f"<think>\n\n</think>\n\n{CODE}",
    "speaks of its own tag": f'<think>\n{THOUGHT} I end with "</think>" then.\n</think>\n{CODE}',
}


@pytest.mark.parametrize("text", TAGGED.values(), ids=TAGGED)
def test_a_tagged_chain_is_taken_off_and_the_code_stays(text: str) -> None:
    chain, answer = split_reasoning(text)
    assert answer == CODE
    assert "</" not in chain.replace('"</think>"', "") and "<|" not in chain
    assert ("Wait" in chain) or "<think>\n\n</think>" in text


def test_a_thought_that_was_cut_leaves_no_answer() -> None:
    assert split_reasoning(f"<think>\n{THOUGHT} Then") == (f"{THOUGHT} Then", "")
    cut_in_a_draft = f"<think>\n{THOUGHT}\n```python\ndef add(a"
    assert split_reasoning(cut_in_a_draft)[1] == ""
    assert split_reasoning(f"<think>\n{CODE}\nBut that is a draft, since")[1] == ""


def test_what_stands_before_the_tag_belongs_to_the_answer() -> None:
    assert split_reasoning(f"Sure.\n<think>\n{THOUGHT}\n</think>\n{CODE}") == (THOUGHT, f"Sure.\n\n{CODE}")


TAGS_IN_CODE = {
    "closing tag in a string": '```python\ndef clean(text):\n    return text.replace("</think>", "")\n```',
    "both in a pattern": '```python\nPATTERN = re.compile(r"<think>.*?</think>")\n```',
    "alone on a line of code": '```python\nTEXT = """\n<think>\nhm\n</think>\n"""\n```',
    "in a sentence": f"This removes `<think>` and `</think>` tags from a text:\n\n{CODE}",
    "bare code": 'def clean(text):\n    return text.split("</think>")[1]',
    "html": "```html\n<answer>\n<p>hi</p>\n</answer>\n```",
}


@pytest.mark.parametrize("text", TAGS_IN_CODE.values(), ids=TAGS_IN_CODE)
def test_a_program_about_tags_keeps_them(text: str) -> None:
    assert split_reasoning(text) == ("", text)


PROSE = {
    "let me think": "Let me think about this. We need to handle an empty list, so what about returning None? "
    "Maybe raising is better. I'll go with None.",
    "okay so": "Okay, so the user wants a function that adds two numbers. I need to decide whether strings count. "
    "Hmm, they said numbers, so no.",
    "wait": "First, I think we should sort the list. Wait, that changes the order that the caller sees. "
    "So we need to copy it.",
    "alternatively": "To solve this, I need to find the longest run. Alternatively, I could use itertools.groupby. "
    "Let's consider an example: [1, 1, 2]. What if the list is empty? Then there is no group at all.",
    "long and winding": "Alright, let's break this down. The problem asks for the k-th smallest element. "
    "I could sort, which is O(n log n). But wait, a heap would do with O(n log k). Let me think about duplicates. "
    "For example, if the input is [1, 1, 1] and k is 2, the answer is 1. That makes sense. So the heap it is.",
    "asks itself": "Hmm. How do I tell an operator from an operand? I could check isdigit, but negative numbers break "
    "that. Maybe try int() and catch the error. Yes, that should work.",
    "actually": "We need to count the words. Splitting on spaces would do. Actually, tabs and newlines count as well, "
    "so split() without arguments is what I want.",
    "approach and doubt": "**Approach**\n\nI need to use two pointers. Should I move the left one first? Let's see: "
    "when the sum is too small, the left moves. Wait, only if the list is sorted, which it is.",
    "no, that's wrong": "I should keep a set of seen numbers and return the first one that is in it. "
    "No, that's the first repeated, and they ask for the most frequent. So a Counter.",
}


@pytest.mark.parametrize("code", [CODE, BARE], ids=["fenced", "bare"])
@pytest.mark.parametrize("thought", PROSE.values(), ids=PROSE)
def test_thinking_aloud_before_code_is_a_chain(thought: str, code: str) -> None:
    chain, answer = split_reasoning(f"{thought}\n\n{code}")
    assert (chain, answer) == (thought, code)


HEADED = {
    "reasoning, solution": f"### Reasoning\n1. Both are numbers.\n2. Add them.\n\n### Solution\n{CODE}",
    "thought process, final answer": f"**Thought process:**\nBoth are numbers.\n\n**Final Answer:**\n\n{CODE}",
    "step by step, code": f"## Step-by-step reasoning\nAdd them.\n\n## Code\n{CODE}",
    "plain words": f"Reasoning:\nAdd them.\n\nFinal answer:\n{CODE}",
    "thinking, implementation": f"# Thinking\nAdd.\n```python\n1 + 1\n```\nGood.\n# Implementation\n{CODE}",
}


@pytest.mark.parametrize("text", HEADED.values(), ids=HEADED)
def test_a_heading_for_the_thought_and_one_for_the_answer_are_evidence_enough(text: str) -> None:
    chain, answer = split_reasoning(text)
    assert answer == CODE
    assert chain and CODE not in chain


NO_CHAIN = {
    "code alone": CODE,
    "bare code": BARE,
    "a preamble": f"Sure! Here's a Python function that adds two numbers:\n\n{CODE}",
    "a preamble that announces": f"I'll write a function `add(a, b)` that returns their sum. Here it is:\n\n{CODE}",
    "let me know": f"Here is the function. Let me know if you need anything else, I can also add type hints:\n\n{CODE}",
    "an explanation in steps": "To add two numbers we define a function. First, it takes both as arguments. Then it "
    f"adds them with the plus operator. Finally, it returns the result to the caller.\n\n{CODE}",
    "a description with options": "The function below uses a hash map, which makes each look-up O(1). The whole run is "
    f"therefore O(n) in time and O(n) in space, where n is the length of the list.\n\n{CODE}",
    "an explanation afterwards": f"{CODE}\n\nWait, why does this work? Let me think it through. I need to show that "
    "the sum is right. What if a is negative? Then the sum is smaller. That makes sense.",
    "a diagnosis": f"`<=` must be `<`: the loop reads one element past the end, so it raises IndexError.\n\n{CODE}",
    "wait for": f"This function will wait for the lock and actually release it afterwards, as you say.\n\n{CODE}",
    "a code comment": "```python\n# Wait, let me think: okay, so maybe this is wrong? What if a is None\n"
    "def add(a, b):\n    return a + b\n```",
    "no code": "Let me think. Wait, I need to know more. What should the function return? Maybe you can tell me that.",
    "code words in backquotes": f"You may use `wait`, `hmm`, `maybe` and `let me think` as names "
    f"of your own choice, if you like.\n\n{CODE}",
    "a README": "# Approach\n\nThe module keeps a list of handlers. Each handler is called in turn.\n\n## Usage\n\n"
    f"{CODE}\n\n## Notes\n\nHandlers must not raise.",
    "two pieces of code": f"Here is the function:\n\n{CODE}\n\nCall it:\n\n```python\nadd(1, 2)\n```",
    "one question": f"Do you want the sum of two numbers? This function returns it, for integers and floats.\n\n{CODE}",
}


@pytest.mark.parametrize("text", NO_CHAIN.values(), ids=NO_CHAIN)
def test_what_is_no_chain_is_left_alone(text: str) -> None:
    assert split_reasoning(text) == ("", text)


def test_drafts_before_a_change_of_mind_belong_to_the_chain() -> None:
    text = (
        "Okay, I need to add two numbers. Let me start:\n\n```python\ndef add(a, b):\n    return a - b\n```\n\n"
        f"Wait, that's wrong, it subtracts. I should add:\n\n{CODE}\n\nCall it as `add(1, 2)`."
    )
    chain, answer = split_reasoning(text)
    assert answer == f"{CODE}\n\nCall it as `add(1, 2)`."
    assert "return a - b" in chain


def test_an_example_after_second_thoughts_does_not_cost_the_function() -> None:
    text = (
        f"Okay, so I need to add two numbers. Hmm, what about strings? I guess they add too.\n\n{CODE}\n\n"
        "Wait, I should show how to call it:\n\n```python\nadd(1, 2)\n```"
    )
    assert split_reasoning(text)[1].startswith(CODE)
    assert split_reasoning(text)[1].endswith("add(1, 2)\n```")


@pytest.mark.parametrize("text", [*TAGGED.values(), *HEADED.values(), *NO_CHAIN.values(), *TAGS_IN_CODE.values()])
def test_what_is_left_has_no_chain(text: str) -> None:
    answer = without_reasoning(text)
    assert split_reasoning(answer) == ("", answer)


def test_one_kind_of_marker_is_no_evidence_however_often() -> None:
    assert not is_deliberation("We need to add. " * 12)
    assert deliberation("Wait, maybe not. `wait, maybe`") == {"changes its mind": 1, "weighs": 1}


def test_a_preamble_is_stripped_around_one_whole_block_only() -> None:
    assert strip_preamble(f"Sure, here it is:\n\n{CODE}\n\nIt adds.") == CODE
    assert strip_preamble(CODE) == CODE
    for text in (
        f"One:\n{CODE}\nTwo:\n{CODE}",
        "Here:\n```python\ndef add(a",
        "No code at all.",
        "Nothing:\n```\n\n```",
    ):
        assert strip_preamble(text) == text


def test_blocks_are_found_as_commonmark_does() -> None:
    text = "a\n````md\n```python\nx\n```\n````\nb `` c ``\n   ```\ny\n   ```\n~~~\n    ```\n"
    assert [(block.code, block.language, block.is_closed) for block in answer_blocks(text)] == [
        ("```python\nx\n```", "md", True),
        ("y", "", True),
    ]
    assert text[answer_blocks(text)[0].start :].startswith("````md")
    assert answer_blocks("```py\nx = 1")[0] == (0, 11, "x = 1", "py", False)
    assert answer_blocks(fenced("a = '''\n```\n'''"))[0].code == "a = '''\n```\n'''"
