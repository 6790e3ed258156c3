from __future__ import annotations

import pytest

from amigo_local.data.evaluation_names import holds_evaluation_ids, is_evaluation_set


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("openai/openai_humaneval", "HumanEval"),
        ("HumanEval.jsonl.gz", "HumanEval"),
        ("human-eval-v2.jsonl", "HumanEval"),
        ("evalplus/humanevalplus", "HumanEval"),
        ("evalplus/mbppplus", "MBPP"),
        ("bigcode/humanevalpack", "HumanEvalPack"),
        ("google-research-datasets/mbpp", "MBPP"),
        ("sanitized-mbpp.json", "MBPP"),
        ("openai/gsm8k", "GSM8K"),
        ("livecodebench/code_generation_lite", "LiveCodeBench"),
        ("bigcode/bigcodebench-hard", "BigCodeBench"),
        ("nuprl/MultiPL-E", "MultiPL-E"),
        ("princeton-nlp/SWE-bench_Verified", "SWE-bench"),
        ("HuggingFaceH4/MATH-500", "MATH-500"),
        ("cais/mmlu", "MMLU"),
        ("bigcode/commitpackft", ""),
        ("bigcode/self-oss-instruct-sc2-exec-filter-50k", ""),
        ("m-a-p/CodeFeedback-Filtered-Instruction", ""),
        ("Rtian/DebugBench", ""),
        ("someone/multiple-choice-code", ""),
        ("open-r1/OpenR1-Math-220k", ""),
        ("rows.jsonl", ""),
        ("", ""),
    ],
)
def test_a_set_is_known_by_its_name(name: str, called: str) -> None:
    assert is_evaluation_set(name) == called


@pytest.mark.parametrize(
    ("row", "called"),
    [
        ({"task_id": "HumanEval/12", "prompt": "x"}, "HumanEval"),
        ({"task_id": "Python/3"}, "HumanEvalPack"),
        ({"task_id": "CPP/163"}, "HumanEvalPack"),
        ({"task_id": 11, "text": "x", "test_list": ["assert f() == 1"]}, "MBPP"),
        ({"task_id": "Mbpp/2"}, "MBPP"),
        ({"name": "HumanEval_0_has_close_elements"}, "HumanEval"),
        ({"name": "mbpp_3_is_not_prime"}, "MBPP"),
        ({"task_id": "BigCodeBench/7"}, "BigCodeBench"),
        ({"question_id": "a", "public_test_cases": "[]", "private_test_cases": ""}, "LiveCodeBench"),
        ({"task_id": "task/12"}, ""),
        ({"task_id": 11, "prompt": "x"}, ""),
        ({"name": "add", "id": 3}, ""),
        ({"text": "HumanEval/12 is a problem"}, ""),
        ({}, ""),
    ],
)
def test_a_table_is_known_by_its_ids(row: dict[str, object], called: str) -> None:
    assert holds_evaluation_ids([{"id": "a"}, row]) == called
