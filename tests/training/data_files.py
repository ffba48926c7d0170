"""Data sets in the formats that are known, written to files and read again."""

from __future__ import annotations

import json

from ahn.training.data import DataArguments, prepare

QUESTION, ANSWER = "What does a ring keep?", "The last tokens, " * 20
TALK = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
SHAREGPT = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
OWN = [{"who": "u", "what": QUESTION}, {"who": "a", "what": ANSWER}]
ALPACA = {"instruction": QUESTION, "input": "", "output": ANSWER}
CHATQA = {"question": QUESTION, "answer": [ANSWER, "Another."], "sub-paragraphs": "A ring keeps."}
CHATQA_LONG = {"question": f"User: A ring.\n\n{QUESTION}\n\nAssistant:", "answer": ANSWER}


def written(folder, rows, name="data.jsonl"):
    path = folder / name
    if name.endswith(".parquet"):
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(path)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return str(path)


def rows_of(names, tokenizer, **options):
    options = {"filter_len": 8, "cutoff_len": 512, "template": "qwen2_5", **options}
    return list(prepare(names, DataArguments(**options), tokenizer))
