"""Our training against transformers' LlamaForCausalLM and torch.optim.AdamW: same weights, same tokens, same curve.

Each case saves a small model with transformers, trains it here by autograd and there by `model.init_from`, and compares
losses, gradient norms and gradients. docs/parity.md says what was broken on purpose to see each tolerance fail.
"""

import contextlib
import math

import pytest
import runs
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

# Their schedulers warn when they are stepped before the optimizer, as theirs_schedule needs it.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

STEPS = 20
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
SMALL = dict(
    vocab_size=211, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, rms_norm_eps=1e-5
)

# name: (architecture, training)
CASES = {
    "one key/value head": (dict(num_key_value_heads=1), {}),
    # With a small eps AdamW would not see a clipping that is wrong by a factor.
    "two key/value heads, clipped": (dict(num_key_value_heads=2), dict(grad_clip=0.5, adam_eps=1e-3)),
    "all key/value heads, tied, cosine": (
        dict(num_key_value_heads=4, tie_word_embeddings=True),
        dict(lr_schedule="cosine", warmup_steps=5, min_lr_ratio=0.1),
    ),
    "tied, weight decay on matrices": (
        dict(num_key_value_heads=1, tie_word_embeddings=True),
        dict(weight_decay=0.5, weight_decay_on="matrices"),
    ),
    "weight decay on all, other betas": (
        dict(num_key_value_heads=2),
        dict(weight_decay=0.5, adam_beta1=0.8, adam_beta2=0.95, adam_eps=1e-6),
    ),
    "llama3 rope": (dict(num_key_value_heads=2, rope_parameters=LLAMA3), {}),
    "head_dim": (dict(num_key_value_heads=2, head_dim=20), {}),
    "odd sizes, wsd": (
        dict(vocab_size=509, hidden_size=72, intermediate_size=101, num_hidden_layers=5, num_attention_heads=6,
             num_key_value_heads=3),
        dict(lr_schedule="wsd", warmup_steps=3, lr_decay_ratio=0.4, seq_length=23),
    ),
    "biases": (
        dict(num_key_value_heads=2, attention_bias=True, mlp_bias=True),
        dict(weight_decay=0.5, weight_decay_on="matrices"),
    ),
    "accumulation": (
        dict(num_key_value_heads=2),
        dict(micro_batch_size=1, gradient_accumulation_steps=4, grad_clip=1.0),
    ),
}  # fmt: skip
TRAINING = dict(
    learning_rate=3e-3, seq_length=32, micro_batch_size=4, gradient_accumulation_steps=1, weight_decay=0.01,
    weight_decay_on="all", adam_beta1=0.9, adam_beta2=0.999, adam_eps=1e-8, grad_clip=0, lr_schedule="constant",
    warmup_steps=0, min_lr_ratio=0.0, lr_decay_ratio=0.1,
)  # fmt: skip


def small_model(architecture, dtype):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, **architecture}))
    with torch.no_grad():  # norms of 1 and biases of 0 would hide a tensor in another's place
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.to(dtype)


def step_batches(tokens, training, steps):
    """(inputs, targets) of each step's global batch: row i is tokens [i·seq, i·seq + seq + 1)."""
    seq = training["seq_length"]
    rows = training["micro_batch_size"] * training["gradient_accumulation_steps"]
    tokens = torch.tensor(tokens)
    for step in range(steps):
        batch = torch.stack([tokens[i * seq : i * seq + seq + 1] for i in range(step * rows, (step + 1) * rows)])
        yield batch[:, :-1], batch[:, 1:]


def loss_of(model, inputs, targets):
    logits = model(inputs).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
                                             targets.flatten())


def theirs_adamw(model, training):
    parameters = list(model.parameters())
    on_matrices = training["weight_decay_on"] == "matrices"
    groups = [
        dict(params=[p for p in parameters if p.dim() > 1], weight_decay=training["weight_decay"]),
        dict(params=[p for p in parameters if p.dim() < 2],
             weight_decay=0.0 if on_matrices else training["weight_decay"]),
    ]
    return torch.optim.AdamW(groups, lr=training["learning_rate"], eps=training["adam_eps"],
                             betas=(training["adam_beta1"], training["adam_beta2"]))


def theirs_schedule(optimizer, training, steps):
    warmup, least = training["warmup_steps"], training["min_lr_ratio"]
    if training["lr_schedule"] == "cosine":
        return transformers.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, steps, min_lr_rate=least)
    if training["lr_schedule"] == "wsd":  # theirs warms up from least, ours from 0: the same where least is 0
        decay = int(training["lr_decay_ratio"] * steps)
        return transformers.get_wsd_schedule(
            optimizer, warmup, decay, num_training_steps=steps, min_lr_ratio=least, decay_type="linear"
        )
    return transformers.get_constant_schedule_with_warmup(optimizer, warmup)


def train_theirs(model, tokens, training, steps):
    """Losses, norms before clipping, learning rates, and the first step's gradients by name."""
    optimizer = theirs_adamw(model, training)
    schedule = theirs_schedule(optimizer, training, steps)
    losses, norms, rates, gradients = [], [], [], {}
    for inputs, targets in step_batches(tokens, training, steps):
        schedule.step()  # they count steps from 0, where a warmup has rate 0; our first step is 1
        rates.append(optimizer.param_groups[0]["lr"])
        loss = loss_of(model, inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        gradients = gradients or {name: p.grad.clone() for name, p in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), training["grad_clip"] or math.inf)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms, rates, gradients


def train_both(folder, case, dtype, steps, **overrides):
    architecture, training = CASES[case]
    training = {**TRAINING, **training, **overrides}
    saved = torch.float32 if dtype == torch.bfloat16 else dtype
    model = small_model(architecture, saved)
    model.save_pretrained(folder / "model")
    rows = training["micro_batch_size"] * training["gradient_accumulation_steps"] * steps
    tokens = runs.write_tokens(folder, model.config.vocab_size, rows * training["seq_length"] + 1)
    ours = runs.train(
        folder / "ours",
        {
            "model": {"name": None, "init_from": str(folder / "model"), "dtype": str(dtype).removeprefix("torch.")},
            "training": {**training, "total_train_steps": steps},
            "dataset": {"name": str(folder / "tokens.npy")},
        },
        gradients=[1],
    )
    return ours, model, tokens, training


@pytest.mark.parametrize("case", CASES)
def test_float32_has_the_same_curve(case, tmp_path):
    ours, model, tokens, training = train_both(tmp_path, case, torch.float32, STEPS)
    losses, norms, rates, _ = train_theirs(model, tokens, training, STEPS)
    assert losses[-1] < 0.95 * losses[0], "the model learns, so the updates are compared too"
    assert [step["learning_rate"] for step in ours.metrics] == pytest.approx(rates, rel=1e-12, abs=1e-15)
    assert runs.relative(ours.losses, losses) < 1e-5
    assert runs.relative(ours.norms, norms) < 1e-4
    if training["grad_clip"]:
        assert min(norms) > training["grad_clip"], "clipping was on"

    # What the run saved is what it trained, and has our logits in transformers.
    saved = tmp_path / "ours" / "ckpt" / str(STEPS) / "model"
    exported = LlamaForCausalLM.from_pretrained(saved, dtype=torch.float32)
    for name, weight in ours.weights.items():
        assert torch.equal(exported.state_dict()[name], weight), name
    ids = torch.randint(0, model.config.vocab_size, (2, 29))
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    out = tmp_path / "logits.safetensors"
    runs.start([runs.PROBE, "logits", saved, tmp_path / "ids.safetensors", out, "float32"], tmp_path)
    with torch.no_grad():
        assert (load_file(out)["logits"] - exported(ids).logits).abs().max() < 1e-4


@contextlib.contextmanager
def no_float32_islands(monkeypatch):
    """transformers computes RMSNorm, the rotary tables and their frequencies in float32 whatever the model's dtype.
    Here all three are float64, and attention is plain products instead of the kernel that we call too."""

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def frequencies(config):
        rope = config.rope_parameters
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        plain = 1 / rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        if rope["rope_type"] == "default":
            return plain
        # Llama 3: waves that turn less than low_freq_factor times in the original context are stretched by
        # `factor`, those that turn more than high_freq_factor times are kept, and those between are blended.
        turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return kept * plain + (1 - kept) * plain / rope["factor"]

    def rotary(self, x, position_ids):
        angles = position_ids[:, :, None].double() * frequencies(self.config)
        both = torch.cat((angles, angles), dim=-1)
        return both.cos(), both.sin()

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", rotary)
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.mark.parametrize("case", CASES)
def test_float64_has_the_same_gradients(case, tmp_path, monkeypatch):
    ours, model, tokens, training = train_both(tmp_path, case, torch.float64, 1, warmup_steps=0)
    with no_float32_islands(monkeypatch):
        losses, norms, _, gradients = train_theirs(model, tokens, training, 1)
    assert all(gradient.dtype == torch.float64 for gradient in gradients.values())
    found = ours.gradients(1)
    assert all(gradient.dtype == torch.float64 for gradient in found.values())
    assert runs.worst(found, gradients) < (1e-10, "")
    assert runs.relative(ours.losses, losses) < 1e-10
    assert runs.relative(ours.norms, norms) < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_follows_the_float32_curve(case, tmp_path):
    # A third of the learning rate: over 20 steps AdamW amplifies bf16's rounding, theirs as ours.
    ours, model, tokens, training = train_both(tmp_path, case, torch.bfloat16, STEPS, learning_rate=1e-3)
    if "computing in float32" in ours.output:
        pytest.skip("this CPU has no fast bfloat16")
    losses, norms, _, gradients = train_theirs(model, tokens, training, STEPS)
    assert runs.relative(ours.losses, losses) < 1e-3
    assert runs.relative(ours.norms, norms) < 2e-2
    found = ours.gradients(1)
    difference = torch.stack([(found[name] - gradient).norm() for name, gradient in gradients.items()]).norm()
    assert difference / norms[0] < 2e-2, "of all gradients, as one vector: a small tensor alone is rounded more"


FINE_TUNING = {
    "replicas": dict(dp_size=2),
    "tensor and pipeline": dict(tp_size=2, pp_size=2),
    "context, sequence parallel": dict(cp_size=2, tp_size=2, sequence_parallel=True),
}


def test_fine_tuning_a_folder_of_another_program_is_one_curve(tmp_path):
    """A model that transformers wrote, in bf16 and in several files, trained on in three layouts."""
    small_model(dict(num_key_value_heads=2), torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    training = {**TRAINING, "grad_clip": 1.0}
    tokens = runs.write_tokens(tmp_path, SMALL["vocab_size"], 4 * 10 * 32 + 1)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    losses, norms, *_ = train_theirs(model, tokens, training, 10)
    assert losses[-1] < losses[0]
    for number, layout in enumerate(FINE_TUNING.values()):
        rows = dict(micro_batch_size=2, gradient_accumulation_steps=2 // layout.get("dp_size", 1))
        ours = runs.train(
            tmp_path / str(number),
            {
                "distributed": {**layout, "ranks": "threads"},
                "model": {"name": None, "init_from": str(tmp_path / "model"), "dtype": "float32"},
                "training": {**training, **rows, "total_train_steps": 10},
                "dataset": {"name": str(tmp_path / "tokens.npy")},
            },
        )
        assert runs.relative(ours.losses, losses) < 1e-5, layout
        assert runs.relative(ours.norms, norms) < 1e-4, layout
