"""The peer of `cpu.py`: vLLM's CPU build, run by the Python of its own environment, in process, with both cores.

    VENV/bin/python bench/cpu_vllm.py FOLDER MAX_MODEL_LEN [whole]

Random weights of the language part that FOLDER/config.json describes, or of the whole model: only where the tower is
the official one, as vLLM has no other; that environment needs `timm` and `torchvision` (`--no-deps`) too. Then one
JSON command a line on standard input, see `cpu_ours.py`.
"""

from __future__ import annotations

import importlib
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

NMS = """from torch import library as operators
for name in ("nms", "qnms"):
    operators.define("torchvision::" + name, "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
"""
SIDE = 384  # of a picture; random pixels, so that none is in a cache


def declare_nms() -> None:
    """torchvision's operators, which its build for another torch does not bring; here, and in vLLM's own processes."""
    folder = Path(tempfile.mkdtemp())
    (folder / "sitecustomize.py").write_text(NMS)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path.insert(0, str(folder))
    sys.modules.pop("sitecustomize", None)
    importlib.import_module("sitecustomize")


def text_folder(folder: Path) -> str:
    """The language part as a checkpoint folder of its own."""
    config = json.loads((folder / "config.json").read_text())["language_config"]
    config |= dict(architectures=["DeepseekV2ForCausalLM"], hidden_act="silu", rms_norm_eps=1e-6, rope_theta=10000.0)
    config |= dict(moe_layer_freq=1, scoring_func="softmax", norm_topk_prob=False, routed_scaling_factor=1.0)
    config |= dict(tie_word_embeddings=False, attention_bias=False, model_type="deepseek")
    text = Path(tempfile.mkdtemp())
    (text / "config.json").write_text(json.dumps(config))
    return str(text)


def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # vLLM prints
    folder, is_whole = Path(sys.argv[1]), sys.argv[3:] == ["whole"]
    declare_nms()
    from PIL import Image
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams
    from vllm.transformers_utils.configs.deepseek_vl2 import DeepseekVLV2TextConfig

    DeepseekVLV2TextConfig.model_type = "deepseek"  # transformers itself refuses one without a latent rank
    AutoConfig.register("deepseek", DeepseekVLV2TextConfig)

    started_s = time.perf_counter()
    of_part = (
        dict(
            model=str(folder),
            hf_overrides={"architectures": ["DeepseekVLV2ForCausalLM"]},
            limit_mm_per_prompt={"image": 1},
            mm_processor_cache_gb=0,
        )
        if is_whole
        else dict(model=text_folder(folder), skip_tokenizer_init=True)
    )
    llm = LLM(
        **of_part,
        load_format="dummy",
        dtype="bfloat16",
        enable_prefix_caching=False,
        max_model_len=int(sys.argv[2]),
        max_num_seqs=16,
    )
    start_s = time.perf_counter() - started_s
    text_ids = llm.llm_engine.model_config.get_vocab_size()
    if is_whole:
        image_id = llm.get_tokenizer().convert_tokens_to_ids("<image>")
        text_ids = min(text_ids, image_id)  # those above are marks too

    def answer(command: dict) -> dict:
        dice = random.Random(command["seed"])

        def prompt() -> dict:
            ids = [dice.randrange(10, text_ids) for _ in range(command["prompt_tokens"])]
            if command["kind"] == "text":
                return {"prompt_token_ids": ids}
            picture = Image.frombytes("RGB", (SIDE, SIDE), dice.randbytes(SIDE * SIDE * 3))
            return {"prompt_token_ids": [image_id, *ids], "multi_modal_data": {"image": picture}}

        prompts = [prompt() for _ in range(command["streams"])]
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
