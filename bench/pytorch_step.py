"""The same training step in plain PyTorch: what `picotron bench --pytorch PYTHON` takes turns with, and what
bench/gpu_checks.sh runs beside ours.

A LlamaForCausalLM of transformers as people run it: bf16 weights and computation, PyTorch's own attention
(sdpa), autograd, fused AdamW on the bf16 weights (so without the fp32 master weights and fp32 gradient sums that
picotron keeps). It answers what picotron's own process answers (src/train/step_bench.h), one JSON line a request:

    "steps 5"  ->  {"seconds": [0.91, ...], "memory_bytes": ...}
"""
import argparse
import json
import resource
import sys
import time


def say(answer):
    print(json.dumps(answer), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the model's config.json, as text")
    parser.add_argument("--rows", type=int, required=True, help="sequences of a step")
    parser.add_argument("--columns", type=int, required=True, help="tokens of each")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", required=True, choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu", help="cpu or cuda; memory is then what is reserved on the GPU")
    arguments = parser.parse_args()
    try:
        import torch
        import transformers
    except ImportError as error:
        say({"skipped": str(error)})
        return

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    keys = json.loads(arguments.config)
    keys["use_cache"] = False
    config = transformers.LlamaConfig(**{k: v for k, v in keys.items() if k not in ("model_type", "architectures")})
    with torch.device(arguments.device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=getattr(torch, arguments.dtype))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids = torch.randint(config.vocab_size, (arguments.rows, arguments.columns), device=arguments.device)

    def step():
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        loss.item()
        return time.perf_counter() - begin

    say({"version": torch.__version__})
    for line in sys.stdin:
        _, count = line.split()
        seconds = [step() for _ in range(int(count))]
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if arguments.device == "cpu"
                  else torch.cuda.max_memory_reserved())
        say({"seconds": seconds, "memory_bytes": memory})


if __name__ == "__main__":
    main()
