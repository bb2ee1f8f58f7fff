"""The peer of `cpu.py`: vLLM's CPU build, run by the Python of its own environment, in process, with both cores.

    VENV/bin/python bench/cpu_vllm.py CONFIG.json MAX_MODEL_LEN

Random weights of the language part that config.json describes. Then one JSON command a line on standard input, see
`cpu_ours.py`; pictures are not measured, as vLLM's tower is another one.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

CORES = sorted(os.sched_getaffinity(0))
os.environ |= {
    "VLLM_CPU_OMP_THREADS_BIND": f"{CORES[0]}-{CORES[-1]}",  # by default it leaves a core idle
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def text_folder(config_file: Path) -> str:
    """The language part as a checkpoint folder of its own."""
    config = json.loads(config_file.read_text())["language_config"]
    config |= dict(architectures=["DeepseekV2ForCausalLM"], hidden_act="silu", rms_norm_eps=1e-6, rope_theta=10000.0)
    config |= dict(moe_layer_freq=1, scoring_func="softmax", norm_topk_prob=False, routed_scaling_factor=1.0)
    config |= dict(tie_word_embeddings=False, attention_bias=False, model_type="deepseek")
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # vLLM prints
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams
    from vllm.transformers_utils.configs.deepseek_vl2 import DeepseekVLV2TextConfig

    DeepseekVLV2TextConfig.model_type = "deepseek"  # transformers itself refuses one without a latent rank
    AutoConfig.register("deepseek", DeepseekVLV2TextConfig)

    started_s = time.perf_counter()
    llm = LLM(
        text_folder(Path(sys.argv[1])),
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype="bfloat16",
        enable_prefix_caching=False,
        max_model_len=int(sys.argv[2]),
        max_num_seqs=16,
    )
    start_s = time.perf_counter() - started_s
    vocabulary = llm.llm_engine.model_config.get_vocab_size()

    def answer(command: dict) -> dict:
        dice = random.Random(command["seed"])
        prompts = [
            {"prompt_token_ids": [dice.randrange(10, vocabulary) for _ in range(command["prompt_tokens"])]}
            for _ in range(command["streams"])
        ]
        params = SamplingParams(temperature=0, max_tokens=command["tokens"], ignore_eos=True, detokenize=False)
        began_s = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return {"seconds": time.perf_counter() - began_s}

    def status(command: dict) -> dict:
        lines = Path("/proc/self/status").read_text().splitlines()
        resident = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
        return {"resident_bytes": resident}

    commands = {"answer": answer, "status": status}
    print(json.dumps({"ready": start_s}), file=out, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(commands[command["do"]](command)), file=out, flush=True)


if __name__ == "__main__":
    main()
