"""The judge of bench/gpu_checks.sh: reads the runs it left in a folder, prints one JSON.

Exit code 0 where every check was run and holds, else 1.
"""
import datetime
import json
import os
import statistics
import sys


def metrics(folder, run):
    """The lines of a run's metrics.jsonl; None where the run did not come to its end."""
    path = os.path.join(folder, run, "metrics.jsonl")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def curves(folder, run, judge, limit, after=0):
    """Largest relative difference of two runs' losses, over all steps after a checkpoint's."""
    mine, other = metrics(folder, run), metrics(folder, judge)
    if mine is None or other is None:
        return {"result": "not run"}
    other = other[after:]
    if len(mine) != len(other):
        return {"result": "fails", "steps": [len(mine), len(other)]}
    worst = max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(mine, other))
    return {"result": "holds" if worst <= limit else "fails", "distance": worst, "limit": limit,
            "steps": len(mine)}


def same_bits(folder, run, judge, after=0):
    mine, other = metrics(folder, run), metrics(folder, judge)
    if mine is None or other is None:
        return {"result": "not run"}
    pick = [[(m["step"], m["loss"], m["grad_norm"]) for m in run] for run in (mine, other[after:])]
    return {"result": "holds" if pick[0] == pick[1] else "fails", "steps": len(mine)}


def pytorch(folder):
    """The same steps of bench/pytorch_step.py, with what it reserved; None where it was not run."""
    path = os.path.join(folder, "pytorch.jsonl")
    answers = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            answers = [json.loads(line) for line in file]
    if not answers or "seconds" not in answers[-1]:
        return None
    return {"tokens_per_second": 4 * 2048 / statistics.median(answers[-1]["seconds"]),
            "memory_bytes": answers[-1]["memory_bytes"]}


def speed(folder):
    steps = metrics(folder, "speed")
    if steps is None:
        return {"result": "not run"}
    steady = steps[5:]
    mfu = [m["mfu"] for m in steady if m["mfu"] is not None]
    possible = not mfu or 0 < max(mfu) < 1
    return {"result": "holds" if possible else "fails", "pytorch": pytorch(folder),
            "tokens_per_second": statistics.median(m["tokens_per_second"] for m in steady),
            "mfu": statistics.median(mfu) if mfu else None,
            "memory_bytes": max(m["memory_bytes"] for m in steady),
            "loss": [steps[0]["loss"], steps[-1]["loss"]]}


def unit(folder):
    path = os.path.join(folder, "unit.json")
    if not os.path.exists(path):
        return {"result": "not run"}
    with open(path, encoding="utf-8") as file:
        cases = [case for suite in json.load(file)["testsuites"] for case in suite["testsuite"]]
    skipped = [c["name"] for c in cases if c["result"] == "SKIPPED"]
    failed = [f"{c['classname']}.{c['name']}" for c in cases if "failures" in c]
    on_gpu = [c for c in cases if c["name"].endswith("OnAGpu") and c["result"] == "COMPLETED"]
    result = "fails" if failed else "holds" if on_gpu else "not run"
    return {"result": result, "tests": len(cases), "on_gpu": len(on_gpu), "failed": failed,
            "skipped": skipped}


def main():
    folder, gpu, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    checks = {
        "unit": unit(folder),
        "float32": curves(folder, "gpu-float32", "cpu-float32", 1e-4),
        "bfloat16": curves(folder, "gpu-bfloat16", "cpu-bfloat16", 2e-2),
        **{f"bits_{dtype}": same_bits(folder, f"again-{dtype}", f"gpu-{dtype}")
           for dtype in ("float32", "bfloat16")},
        "masked": curves(folder, "gpu-masked", "cpu-masked", 1e-4),
        "masked_cp": curves(folder, "masked-cp", "cpu-masked", 1e-4),
        **{f"resumed_{run.replace('-', '_')}": same_bits(folder, f"resumed-{run}", f"gpu-{dtype}", after=10)
           for run, dtype in (("float32", "float32"), ("bfloat16", "bfloat16"), ("async-float32", "float32"))},
        "resumed_on_cpu": curves(folder, "resumed-cpu-float32", "gpu-float32", 1e-4, after=10),
        "resumed_on_gpu": curves(folder, "resumed-gpu-float32", "cpu-float32", 1e-4, after=10),
        **{f"shared_{axis}": curves(folder, f"shared-{axis}", "gpu-float32", 1e-4)
           for axis in ("dp", "tp", "pp", "cp")},
        "speed": speed(folder),
    }
    holds = all(check["result"] == "holds" for check in checks.values())
    print(json.dumps({"gpu": gpu, "date": datetime.date.today().isoformat(), "seconds": seconds,
                      "result": "holds" if holds else "does not hold", "checks": checks}, indent=2))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
