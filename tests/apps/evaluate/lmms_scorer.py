"""Score answers with lmms-eval's own functions: run by a Python that has lmms-eval, JSON in and JSON out.

python lmms_scorer.py < {"task": ..., "rows": [...], "answers": [...]}
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from importlib import import_module
from statistics import mean
from typing import Any

SHORT = {"pre_prompt": "", "post_prompt": "\nAnswer the question using a single word or phrase."}
LETTER = {"pre_prompt": "", "post_prompt": "\nAnswer with the option's letter from the given choices directly."}
LETTER_CN = {"pre_prompt": "", "post_prompt": "\n请直接使用所提供的选项字母作为答案回答。"}


def score(task: str, rows: list[dict[str, Any]], answers: list[str]) -> dict[str, Any]:
    """Return lmms-eval's figures and prompts."""
    name = {"mmbench": "mmbench.en_utils", "mmbench_cn": "mmbench.cn_utils"}.get(task, f"{task}.utils")
    utils = import_module(f"lmms_eval.tasks.{name}")
    pairs = list(zip(deepcopy(rows), answers, strict=True))
    if task in ("vqav2", "textvqa"):
        process = utils.vqav2_process_results_val if task == "vqav2" else utils.textvqa_process_results
        ask = utils.vqav2_doc_to_text if task == "vqav2" else utils.textvqa_doc_to_text
        figures = {"accuracy": mean(process(row, [answer])["exact_match"] for row, answer in pairs)}
        return {"figures": figures, "prompts": [ask(row, SHORT) for row in rows]}
    if task == "gqa":
        match = import_module("lmms_eval.api.metrics").exact_match_hf_evaluate
        worth = (match([a], [row["answer"]], ignore_case=True, ignore_punctuation=True) for row, a in pairs)
        figures = {"accuracy": float(mean(float(one["exact_match"]) for one in worth))}
        return {"figures": figures, "prompts": [utils.gqa_doc_to_text(row, SHORT) for row in rows]}
    if task == "scienceqa":
        figures = {"accuracy": mean(utils.sqa_process_results(row, [answer])["exact_match"] for row, answer in pairs)}
        return {
            "figures": figures,
            "prompts": [utils.sqa_doc_to_text(row, {**LETTER, "format": "default"}) for row in rows],
        }
    if task == "pope":
        done = [utils.pope_process_results(row, [answer]) for row, answer in pairs]
        kinds = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "f1_score"}
        figures = {
            ours: getattr(utils, f"pope_aggregate_{theirs}")([one[f"pope_{theirs}"] for one in done])
            for ours, theirs in kinds.items()
        }
        return {"figures": figures, "prompts": [utils.pope_doc_to_text(row, SHORT) for row in rows]}
    if task == "mme":
        done = [utils.mme_process_results(row, [answer]) for row, answer in pairs]
        figures = {
            kind: utils.mme_aggregate_results([one[f"mme_{kind}_score"] for one in done if f"mme_{kind}_score" in one])
            for kind in ("perception", "cognition")
        }
        return {"figures": figures, "prompts": [utils.mme_doc_to_text(row, SHORT) for row in rows]}
    done = [utils.mmbench_process_results(row, [answer])["gpt_eval_score"] for row, answer in pairs]
    accuracy = utils.mmbench_evaluator.eval_result(done, "static")[0]
    ask = LETTER if task == "mmbench" else LETTER_CN
    return {"figures": {"accuracy": float(accuracy)}, "prompts": [utils.mmbench_doc_to_text(row, ask) for row in rows]}


def normalise(texts: list[str]) -> list[list[str]]:
    """Return texts as lmms-eval compares them for VQA-v2 and TextVQA."""
    processor = import_module("lmms_eval.tasks._task_utils.vqa_eval_metric").EvalAIAnswerProcessor()
    plain = [" ".join(text.replace("\n", " ").replace("\t", " ").split(" ")).strip() for text in texts]
    return [
        [processor.process_digit_article(processor.process_punctuation(one)), processor(text)]
        for one, text in zip(plain, texts, strict=True)
    ]


def choices(cases: list[dict[str, Any]]) -> list[str]:
    """Return the letters that lmms-eval reads from answers to MMBench."""
    module = import_module("lmms_eval.tasks.mmbench.mmbench_evals")
    extract = import_module("lmms_eval.tasks._task_utils.mcq_extract").extract_mcq_answer
    evaluator = module.MMBench_Evaluator()
    found = []
    for case in cases:
        options = dict(case["options"])
        letter = evaluator.can_infer(case["answer"], dict(options)) or extract(case["answer"], choices=sorted(options))
        found.append(letter or "")
    return found


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    real, sys.stdout = sys.stdout, sys.stderr  # the library prints
    if "normalise" in request:
        result: Any = normalise(request["normalise"])
    elif "choices" in request:
        result = choices(request["choices"])
    else:
        result = {name: score(name, one["rows"], one["answers"]) for name, one in request.items()}
    json.dump(result, real)


if __name__ == "__main__":
    main()
