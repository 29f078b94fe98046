#!/usr/bin/env python3
"""Write golden reference fixtures for LoRA / QLoRA fine-tuning.

Every case is computed with Hugging Face transformers, PEFT, bitsandbytes and
scikit-learn on the CPU in fp32, on tiny models with random weights, so that
another engine can be compared with them without Python.  README.md beside
this file describes the folders and the tensors.

    python generate.py --out DIR --profile public
"""
import argparse
import hashlib
import json
import math
import os
import random
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bitsandbytes.functional as bnb  # noqa: E402
import numpy as np  # noqa: E402
import peft  # noqa: E402
import sklearn.metrics as skm  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers as tf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

HERE = Path(__file__).resolve().parent
PAD_LABEL = -100
N_STEPS = 6
WARMUP = 2
OPTIM = {"name": "adamw", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
         "weight_decay": 0.01, "max_grad_norm": 1.0}
LOSS = {
    "causal_lm": "sum over the accumulation window of -log_softmax(logits[t])"
                 "[labels[t+1]] for every t with labels[t+1] != -100, divided"
                 " by the number of such labels in the whole window",
    "seq_cls": "sum over the window of -log_softmax(logits)[label], divided "
               "by the number of sequences in the whole window",
    "regression": "sum over the window of (sigmoid(logit) - label)^2, divided"
                  " by the number of sequences in the whole window",
}


@dataclass
class Spec:
    """One model case: architecture, adapter and training data shape."""

    name: str
    family: str                  # class name prefix in transformers
    dims: dict                   # arguments of the transformers config
    lora: dict                   # arguments of peft.LoraConfig
    task: str = "causal_lm"
    micro: tuple = (3,)          # sequences per micro-batch of a window
    lengths: tuple = (3, 9)
    lr: float = 5e-3
    full_labels: bool = False    # supervise everything but position 0
    edge: bool = False           # add an all-masked and a length-1 sequence
    model_of: str = ""           # reuse the model of this case
    nf4: bool = False


def qwen(vocab, hidden, inter, layers, heads, kv, theta, **extra):
    return dict(vocab_size=vocab, hidden_size=hidden, intermediate_size=inter,
                num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=kv, rope_theta=theta, **extra)


def encoder(vocab, hidden, inter, layers, heads, **extra):
    return dict(vocab_size=vocab, hidden_size=hidden, intermediate_size=inter,
                num_hidden_layers=layers, num_attention_heads=heads,
                num_labels=1, **extra)


def specs(profile):
    """The model cases; the two profiles differ in dims, ranks and GQA."""
    def pick(public, heldout):
        return public if profile == "public" else heldout

    def lora(targets, r, alpha, **extra):
        return dict(target_modules=targets, r=pick(*r),
                    lora_alpha=pick(*alpha), **extra)

    q3 = pick(qwen(311, 64, 160, 3, 4, 2, 1e6, head_dim=32),
              qwen(203, 96, 136, 2, 3, 1, 1e4, head_dim=64))
    q3_128 = pick(qwen(257, 32, 48, 2, 2, 1, 1e6, head_dim=128),
                  qwen(263, 64, 80, 2, 3, 1, 5e5, head_dim=128))
    q2 = pick(qwen(101, 32, 48, 2, 2, 1, 1e6),
              qwen(157, 96, 72, 2, 3, 1, 1e4))
    q3_cls = pick(
        qwen(67, 32, 48, 2, 2, 1, 1e6, head_dim=32, num_labels=5),
        qwen(101, 48, 72, 2, 4, 2, 1e4, head_dim=64, num_labels=7))
    gpt2 = pick(dict(vocab_size=97, n_embd=32, n_layer=2, n_head=2),
                dict(vocab_size=139, n_embd=48, n_layer=3, n_head=3))
    bert = pick(encoder(61, 32, 48, 2, 2), encoder(127, 48, 72, 2, 3))
    modern = pick(encoder(61, 32, 32, 3, 2, local_attention=8,
                          global_attn_every_n_layers=2),
                  encoder(127, 48, 40, 4, 3, local_attention=6,
                          global_attn_every_n_layers=3))
    attn = ["q_proj", "k_proj", "v_proj", "o_proj"]
    dense = ["query", "key", "value", "dense"]
    reg = dict(task="regression", lengths=(5, 14))
    return [
        Spec("qwen3_lora", "Qwen3", q3,
             lora("all-linear", (4, 7), (8, 14)), micro=(3, 2),
             lengths=(3, 8)),
        Spec("qwen3_headdim128", "Qwen3", q3_128,
             lora(attn, (8, 7), (16, 21)), edge=True, lengths=(3, 8)),
        Spec("qwen2_lora", "Qwen2", q2,
             lora(attn + ["gate_proj", "up_proj", "down_proj"], (4, 7),
                  (16, 7)), micro=(1, 3), edge=True, lengths=(3, 10)),
        Spec("qwen2_rslora", "Qwen2", q2,
             lora(["q_proj", "v_proj"], (6, 7), (6, 10), use_rslora=True),
             model_of="qwen2_lora"),
        Spec("qwen3_dora", "Qwen3", q3_128,
             lora(["v_proj", "down_proj"], (4, 7), (8, 14), use_dora=True),
             micro=(2,), model_of="qwen3_headdim128"),
        Spec("gpt2_lora", "GPT2", gpt2,
             lora(["c_attn", "c_proj", "c_fc"], (4, 7), (8, 14),
                  fan_in_fan_out=True), full_labels=True, micro=(2, 1)),
        Spec("qwen3_seqcls", "Qwen3", q3_cls, lora(attn, (4, 7), (8, 14)),
             task="seq_cls", micro=(4, 3), lengths=(3, 12)),
        Spec("bert_regress", "Bert", bert, lora(dense, (8, 7), (16, 14)),
             micro=(4,), **reg),
        Spec("xlmr_regress", "XLMRoberta", bert,
             lora(dense, (4, 7), (8, 14)), micro=(3, 2), **reg),
        Spec("modernbert_regress", "ModernBert", modern,
             lora(["Wqkv", "Wi", "Wo"], (4, 7), (8, 14)), micro=(4,),
             task="regression", lengths=(8, 22)),
        Spec("qwen3_qlora_nf4", "Qwen3", q3_128,
             lora(["q_proj", "v_proj"], (4, 7), (8, 14)), micro=(2, 2),
             lengths=(3, 8), model_of="qwen3_headdim128", nf4=True),
    ]


# ---------------------------------------------------------------- models

NO_TOKENS = dict(bos_token_id=None, eos_token_id=None)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
CONFIG = {
    "Qwen3": dict(tie_word_embeddings=True, max_position_embeddings=128,
                  use_cache=False, **NO_TOKENS),
    "Qwen2": dict(tie_word_embeddings=False, max_position_embeddings=128,
                  use_cache=False, **NO_TOKENS),
    "GPT2": dict(n_positions=40, resid_pdrop=0.0, embd_pdrop=0.0,
                 attn_pdrop=0.0, use_cache=False, **NO_TOKENS),
    "Bert": dict(max_position_embeddings=40, **NO_DROPOUT),
    "XLMRoberta": dict(max_position_embeddings=42, layer_norm_eps=1e-5,
                       type_vocab_size=1, **NO_DROPOUT),
    "ModernBert": dict(max_position_embeddings=128, reference_compile=False,
                       classifier_pooling="mean", pad_token_id=0,
                       bos_token_id=1, eos_token_id=2, cls_token_id=1,
                       sep_token_id=2),
}


def make_model(spec):
    """Build the HF model of a case with eager attention and no dropout."""
    config = getattr(tf, spec.family + "Config")(**CONFIG[spec.family],
                                                 **spec.dims)
    if spec.task != "causal_lm":
        suffix = "ForSequenceClassification"
        if config.pad_token_id is None:
            config.pad_token_id = config.vocab_size - 1
    else:
        suffix = "LMHeadModel" if spec.family == "GPT2" else "ForCausalLM"
    config._attn_implementation = "eager"
    return getattr(tf, spec.family + suffix)(config)


@torch.no_grad()
def randomise(model, gen):
    """Informative weights: norms near 1, biases non-zero, no dead paths."""
    done = set()
    for _, module in sorted(model.named_modules()):
        kind = type(module).__name__
        for name, p in module.named_parameters(recurse=False):
            if id(p) in done:
                continue
            done.add(id(p))
            noise = torch.randn(p.shape, generator=gen)
            if "Norm" in kind and name == "weight":
                p.copy_(1 + 0.1 * noise)
            elif p.ndim == 1 or kind == "Embedding":
                p.copy_(0.1 * noise)
            else:
                fan_in = p.shape[0] if kind == "Conv1D" else p.shape[1]
                p.copy_(noise * 0.9 / math.sqrt(fan_in))


@torch.no_grad()
def perturb_adapter(model, gen):
    """Make lora_B, DoRA magnitudes and trained heads differ from init."""
    for name, p in sorted(model.named_parameters()):
        if not p.requires_grad:
            continue
        noise = torch.randn(p.shape, generator=gen)
        if "lora_B" in name:
            p.copy_(0.08 * noise)
        elif "lora_magnitude_vector" in name:
            p.mul_(1 + 0.05 * noise)
        elif "modules_to_save" in name:
            p.add_(0.05 * noise)


def named_for_peft(model, tensors):
    """Rename {parameter name: tensor} to the keys PEFT writes to disk."""
    out = peft.get_peft_model_state_dict(model, state_dict=tensors,
                                         save_embedding_layers=False)
    return {k: v.detach().clone().contiguous() for k, v in out.items()}


def save_adapter(model, folder, model_dir):
    """PEFT save_pretrained, with a config that is the same on every run."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = {k: sorted(v) if isinstance(v, list) else v
              for k, v in json.loads(path.read_text()).items()}
    config["base_model_name_or_path"] = "../" + model_dir
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


# ------------------------------------------------------------------ data

def make_sequence(spec, rng, pad_id, special=""):
    """One unpadded training sequence of the case's task."""
    length = 1 if special == "single" else rng.randint(*spec.lengths)
    floor = 5 if spec.task == "regression" else 1
    ids = [rng.randrange(floor, spec.dims["vocab_size"] - 1)
           for _ in range(length)]
    if spec.task == "causal_lm":
        prompt = 1 if spec.full_labels else rng.randint(1, length - 1 or 1)
        prompt = length if special else prompt
        return {"input_ids": ids,
                "labels": [PAD_LABEL] * prompt + ids[prompt:]}
    if spec.task == "seq_cls":
        return {"input_ids": ids,
                "label": rng.randrange(spec.dims["num_labels"])}
    # a sentence pair: CLS a.. SEP b.. SEP (XLM-R has two SEP in the middle)
    cls, sep = {"Bert": (3, [4]), "XLMRoberta": (0, [2, 2]),
                "ModernBert": (1, [2])}[spec.family]
    cut = rng.randint(2, length - 3)
    ids[0], ids[-1] = cls, sep[0]
    ids[cut:cut + len(sep)] = sep
    seq = {"input_ids": ids, "label": round(rng.random(), 3)}
    if spec.family == "Bert":
        seq["token_type_ids"] = [int(i > cut) for i in range(length)]
    if spec.family == "XLMRoberta":
        seq["position_ids"] = [pad_id + 1 + i for i in range(length)]
    return seq


def make_windows(spec, rng, pad_id):
    """N_STEPS accumulation windows, each a list of micro-batches."""
    windows = [[[make_sequence(spec, rng, pad_id) for _ in range(n)]
                for n in spec.micro] for _ in range(N_STEPS)]
    if spec.edge:
        windows[0][-1] += [make_sequence(spec, rng, pad_id, "masked"),
                           make_sequence(spec, rng, pad_id, "single")]
    return windows


def collate(batch, pad_id):
    """Right-pad a micro-batch; return model inputs and the labels."""
    def pad(rows, value):
        width = max(map(len, rows))
        return torch.tensor([r + [value] * (width - len(r)) for r in rows])

    ids = [s["input_ids"] for s in batch]
    inputs = {"input_ids": pad(ids, pad_id),
              "attention_mask": pad([[1] * len(r) for r in ids], 0)}
    if "token_type_ids" in batch[0]:
        inputs["token_type_ids"] = pad([s["token_type_ids"] for s in batch],
                                       0)
    if "labels" in batch[0]:
        return inputs, pad([s["labels"] for s in batch], PAD_LABEL)
    return inputs, torch.tensor([s["label"] for s in batch])


def count_items(task, window):
    """The divisor of the loss, taken over the whole window."""
    seqs = [s for batch in window for s in batch]
    if task != "causal_lm":
        return len(seqs)
    return sum(x != PAD_LABEL for s in seqs for x in s["labels"][1:])


def micro_loss(model, task, batch, pad_id, n_items):
    inputs, labels = collate(batch, pad_id)
    if task == "causal_lm":
        return model(**inputs, labels=labels,
                     num_items_in_batch=n_items).loss
    logits = model(**inputs).logits
    if task == "seq_cls":
        return F.cross_entropy(logits, labels, reduction="sum") / n_items
    return (torch.sigmoid(logits[:, 0]) - labels).square().sum() / n_items


@torch.no_grad()
def window_logits(model, task, window, pad_id):
    """Logits of a window: real tokens only, or one row per sequence."""
    rows = []
    for batch in window:
        logits = model(**collate(batch, pad_id)[0]).logits
        for i, seq in enumerate(batch):
            rows.append(logits[i, :len(seq["input_ids"])]
                        if task == "causal_lm" else logits[i:i + 1])
    return torch.cat(rows).contiguous()


def label_rows(window):
    """(row that predicts, label id) of each supervised token, in order."""
    rows, ids, base = [], [], 0
    for seq in (s for batch in window for s in batch):
        for t, label in enumerate(seq["labels"][1:]):
            if label != PAD_LABEL:
                rows.append(base + t)
                ids.append(label)
        base += len(seq["input_ids"])
    return torch.tensor(rows), torch.tensor(ids)


def map_at_3(scores, labels):
    """Mean of 1/rank of the label among the 3 best scores, else 0."""
    total = 0.0
    for row, label in zip(np.asarray(scores), labels):
        best = np.argsort(-row, kind="stable")[:3].tolist()
        if label in best:
            total += 1.0 / (best.index(label) + 1)
    return total / len(labels)


# ----------------------------------------------------------- quantisation

def stress_matrix():
    """66 x 250, scale varying per 64-block, one zero block, exact in fp32."""
    state, values = 12345, np.zeros(66 * 250, dtype=np.float32)
    for i in range(values.size):
        state = (1664525 * state + 1013904223) % 2 ** 32
        if i // 64 != 3:
            values[i] = ((state >> 8) / 2.0 ** 24 - 0.5) / 2.0 ** (i // 64 % 7)
    return torch.from_numpy(values.reshape(66, 250))


def quantise(tensors, key, weight, quant_type="nf4", nested=True, keep=False):
    """Add bitsandbytes' own serialised layout; return the dequantised.

    Two fp32 CPU paths of bitsandbytes differ from its CUDA kernels and are
    avoided: absmax codes come from the float64 path, since the fp32 one uses
    a 65536-entry table and can miss the nearest code; and the weight is
    dequantised flat, since the 2-D AVX512 path takes a wrong absmax when
    rows are not a multiple of the block size.
    """
    packed, state = bnb.quantize_4bit(weight.contiguous(), blocksize=64,
                                      quant_type=quant_type)
    if nested:
        offset = state.absmax.mean()
        _, state2 = bnb.quantize_blockwise(state.absmax - offset,
                                           blocksize=256)
        codes, state2.absmax = torch.ops.bitsandbytes.quantize_blockwise(
            (state.absmax - offset).double(), state2.code, 256)
        state = bnb.QuantState(
            absmax=codes, shape=weight.shape, dtype=weight.dtype,
            blocksize=64, code=state.code, quant_type=quant_type,
            offset=offset, state2=state2)
        tensors[f"{key}.nested_offset"] = offset.reshape(1)
    state.shape = torch.Size([weight.numel()])
    dequant = bnb.dequantize_4bit(packed, state).reshape(weight.shape)
    state.shape = weight.shape
    tensors[key] = packed
    for name, value in state.as_dict(packed=True).items():
        tensors[f"{key}.{name}"] = value.clone().contiguous()
    if keep:
        tensors[f"{key}.dequant"] = dequant.clone()
    return dequant


@torch.no_grad()
def quantise_model(model, folder):
    """Replace each decoder linear weight by dequantise(quantise(weight))."""
    tensors = {}
    keep = ("layers.0.self_attn.k_proj", "layers.1.mlp.down_proj")
    for name, module in sorted(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        if name.endswith(keep[0]):
            quantise(tensors, f"fp4.{name}.weight", module.weight.data,
                     "fp4", nested=False, keep=True)
        module.weight.copy_(quantise(tensors, name + ".weight",
                                     module.weight.data,
                                     keep=name.endswith(keep)))
    stress = quantise(tensors, "stress", stress_matrix())
    tensors["stress.dequant_tail"] = stress.reshape(-1)[-1024:].clone()
    quantise(tensors, "odd",
             stress_matrix().reshape(-1)[1000:1259].reshape(7, 37), keep=True)
    save_file(tensors, folder / "quant.safetensors", {"format": "pt"})


# ------------------------------------------------------------- one case

def write_json(path, data):
    """One line per top-level key and per entry of a list of records."""
    def text(x):
        return json.dumps(x, ensure_ascii=False)

    lines = []
    for key, value in data.items():
        out = text(value)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            out = "[\n  " + ",\n  ".join(map(text, value)) + "\n ]"
        lines.append(f" {text(key)}: {out}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def case_seed(args, name):
    return args.seed + zlib.crc32(f"{args.profile}/{name}".encode()) % 10 ** 6


def make_optimizer(spec, trainable):
    """AdamW as the HF Trainer groups it: no weight decay on biases."""
    groups = [{"params": [p for n, p in trainable.items()
                          if ("bias" in n) == is_bias],
               "weight_decay": 0.0 if is_bias else OPTIM["weight_decay"]}
              for is_bias in (False, True)]
    optimizer = torch.optim.AdamW(
        groups, lr=spec.lr, eps=OPTIM["eps"],
        betas=(OPTIM["beta1"], OPTIM["beta2"]))
    return optimizer, tf.get_cosine_schedule_with_warmup(optimizer, WARMUP,
                                                         N_STEPS)


def train(model, spec, windows, pad_id):
    """Run all windows; return the log and the raw gradients of step 0."""
    trainable = {n: p for n, p in model.named_parameters()
                 if p.requires_grad}
    optimizer, schedule = make_optimizer(spec, trainable)
    steps, grads = [], {}
    model.train()
    for index, window in enumerate(windows):
        n_items, total = count_items(spec.task, window), 0.0
        for batch in window:
            loss = micro_loss(model, spec.task, batch, pad_id, n_items)
            loss.backward()
            total += loss.item()
        if index == 0:
            grads = named_for_peft(model, {n: p.grad for n, p
                                           in trainable.items()})
        norm = torch.nn.utils.clip_grad_norm_(trainable.values(),
                                              OPTIM["max_grad_norm"])
        steps.append({"step": index, "lr": schedule.get_last_lr()[0],
                      "loss": total, "grad_norm": norm.item(),
                      "num_items": n_items, "micro_batches": window})
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    return steps, grads


def run_model_case(spec, args, folder):
    """Train one case with HF + PEFT and write every expected value."""
    base = make_model(spec)
    randomise(base, torch.Generator().manual_seed(
        case_seed(args, spec.model_of or spec.name)))
    folder.mkdir(parents=True)
    model_dir = f"../{spec.model_of}/model" if spec.model_of else "model"
    if not spec.model_of:
        base.save_pretrained(folder / "model")
        (folder / "model/generation_config.json").unlink(missing_ok=True)
    if spec.nf4:
        quantise_model(base, folder)
    seed = case_seed(args, spec.name)
    torch.manual_seed(seed)
    model = peft.get_peft_model(base, peft.LoraConfig(
        task_type="CAUSAL_LM" if spec.task == "causal_lm" else "SEQ_CLS",
        lora_dropout=0.0, bias="none", **spec.lora)).eval()
    perturb_adapter(model, torch.Generator().manual_seed(seed + 1))
    save_adapter(model, folder / "adapter_init", model_dir)

    pad_id = base.config.pad_token_id or 0
    windows = make_windows(spec, random.Random(seed + 2), pad_id)
    first = windows[0]

    def logits():
        return window_logits(model, spec.task, first, pad_id)

    with model.disable_adapter():
        out = {"logits_base": logits()}
    out["logits_adapter"] = logits()
    if spec.family == "ModernBert":
        base.config.classifier_pooling = "cls"
        out["logits_adapter_cls_pooling"] = logits()
        base.config.classifier_pooling = "mean"
    steps, grads = train(model, spec, windows, pad_id)
    save_adapter(model, folder / "adapter_final", model_dir)

    stages = {"base": out["logits_base"], "adapter": out["logits_adapter"],
              "final": logits()}
    info = {}
    if spec.task == "causal_lm":
        rows, ids = label_rows(first)
        out.update(label_rows=rows, label_ids=ids)
        for key, value in stages.items():
            out[f"label_logprobs_{key}"] = value.log_softmax(-1)[rows, ids]
    else:
        out["logits_final"] = stages["final"]
    if spec.task == "seq_cls":
        labels = [s["label"] for batch in first for s in batch]
        info["map_at_3_step0"] = {k: map_at_3(v, labels)
                                  for k, v in stages.items()}
    lengths = [len(s["input_ids"]) for batch in first for s in batch]
    out["cu_seqlens"] = torch.tensor([0] + lengths).cumsum(0)
    out.update({"grad." + k: v for k, v in grads.items()})
    save_file({k: (v if v.is_floating_point() else v.int()).contiguous()
               for k, v in out.items()},
              folder / "expected.safetensors", {"format": "pt"})

    config = model.peft_config["default"]
    divisor = math.sqrt(config.r) if config.use_rslora else config.r
    after = sum(micro_loss(model, spec.task, batch, pad_id,
                           steps[0]["num_items"]).item() for batch in first)
    write_json(folder / "case.json", {
        "case": spec.name, "profile": args.profile, "seed": seed,
        "versions": {m.__name__: m.__version__ for m in (torch, tf, peft)},
        "task": spec.task, "architecture": type(base).__name__,
        "model_dir": model_dir, "adapter_init": "adapter_init",
        "adapter_final": "adapter_final", "pad_token_id": pad_id,
        "lora": {"r": config.r, "alpha": config.lora_alpha,
                 "scaling": config.lora_alpha / divisor,
                 "use_rslora": config.use_rslora,
                 "use_dora": config.use_dora,
                 "fan_in_fan_out": config.fan_in_fan_out,
                 "modules_to_save": config.modules_to_save},
        "targeted_modules": model.base_model.targeted_module_names,
        "no_weight_decay": sorted(k for k in grads if k.endswith(".bias")),
        "optimizer": OPTIM,
        "schedule": {"name": "cosine_with_warmup", "peak_lr": spec.lr,
                     "warmup_steps": WARMUP, "total_steps": N_STEPS},
        "gradient_accumulation": len(spec.micro),
        "loss_formula": LOSS[spec.task],
        "loss_step0_window_after_training": after, **info, "steps": steps})


# --------------------------------------------------------------- metrics

def classification(rng, name, n, k, digits):
    scores = np.round(rng.normal(size=(n, k)) * 1.5, digits) + 0.0
    labels = rng.integers(0, k - 2 if name == "absent_class" else k, n)
    if name == "absent_class":
        scores[:, -1] -= 50
    pred = np.argsort(-scores, axis=1, kind="stable")[:, 0]
    return {"name": name, "scores": scores.tolist(),
            "labels": labels.tolist(), "predictions": pred.tolist(),
            "map_at_3": map_at_3(scores, labels.tolist()),
            "accuracy": float(skm.accuracy_score(labels, pred)),
            "macro_f1": float(skm.f1_score(labels, pred, average="macro",
                                           zero_division=0))}


def regression(rng, name, n):
    target = np.round(rng.normal(size=n), 4)
    pred = np.round(target * (-0.5 if name == "bad_fit" else 0.8)
                    + 0.3 * rng.normal(size=n), 4)
    if name.startswith("constant"):
        target = np.full(n, 0.5)
    if name == "constant_exact":
        pred = target
    mse = float(skm.mean_squared_error(target, pred))
    return {"name": name, "target": target.tolist(),
            "prediction": pred.tolist(), "mse": mse, "rmse": math.sqrt(mse),
            "r2": float(skm.r2_score(target, pred))}


def ranking(rng, name, digits):
    gain = rng.integers(0, 4, 11) * int(name != "all_zero")
    score = np.round(rng.normal(size=11), digits) * int(name != "all_tied")
    score = score + 0.0
    return {"name": name, "relevance": gain.tolist(),
            "scores": score.tolist(),
            "ndcg": {str(k): float(skm.ndcg_score([gain], [score], k=k))
                     for k in (None, 1, 3, 10)}}


def run_metrics(args, folder):
    """Inputs and scikit-learn answers for the evaluation metrics."""
    rng = np.random.default_rng(case_seed(args, "metrics"))
    n = 24 if args.profile == "public" else 37
    write_json(folder / "case.json", {
        "case": "metrics", "profile": args.profile,
        "classification": [
            classification(rng, name, n, k, digits)
            for name, k, digits in (("plain", 6, 4), ("ties", 5, 0),
                                    ("absent_class", 8, 3),
                                    ("binary", 2, 3))],
        "regression": [regression(rng, name, n) for name in (
            "plain", "bad_fit", "constant", "constant_exact")],
        "ranking": [ranking(rng, *x) for x in (
            ("plain", 4), ("score_ties", 0), ("all_zero", 3),
            ("all_tied", 3))]})


# -------------------------------------------------------------- tokenizer

ROLES = {"s": "system", "u": "user", "a": "assistant"}
SHAPES = ["u+", "u", "su+", "su", "ua", "sua", "uau+", "suau+", "uaua",
          "suauau+", "au+", "usua"]      # + asks for a generation prompt


def encode_record(encode, tok, source, target):
    """Ids and labels of one record in the plain and the chat format."""
    turn = [{"role": "user", "content": source}]
    chat = tok.apply_chat_template(turn, tokenize=False,
                                   add_generation_prompt=True)
    out = {}
    for name, prompt, end in (("plain", source + "\n", tok.eos_token),
                              ("chat", chat, "<|im_end|>")):
        head = encode(prompt)
        tail = encode(target) + [tok.convert_tokens_to_ids(end)]
        out[name] = {"ids": head + tail,
                     "labels": [PAD_LABEL] * len(head) + tail,
                     "joint_ids": encode(prompt + target + end)}
    return out


def run_tokenize(args, folder):
    """Ids of texts, chats and training records from a real tokenizer."""
    tok = tf.AutoTokenizer.from_pretrained(args.tokenizer)
    rng = random.Random(case_seed(args, "tokenize"))
    pool = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))
    texts, records = pool["fragments"], pool["records"]
    if args.profile != "public":
        def mix(n):
            gaps = ["", "", " ", "\n", "\n\n  ", "\t", "\u3000", "\r\n"]
            return "".join(rng.choice(pool["fragments"]) + rng.choice(gaps)
                           for _ in range(n))
        texts = [mix(rng.randint(2, 4)) for _ in range(40)]
        records = [(mix(2), mix(1)) for _ in range(8)]

    def encode(text):
        return tok(text, add_special_tokens=False)["input_ids"]

    chats = []
    for shape in SHAPES:
        messages = [{"role": ROLES[c], "content": rng.choice(
            pool["systems"] if c == "s" else texts)}
            for c in shape.rstrip("+")]
        kw = {"add_generation_prompt": shape.endswith("+")}
        chats.append({
            "messages": messages, **kw,
            "rendered": tok.apply_chat_template(messages, tokenize=False,
                                                **kw),
            "ids": tok.apply_chat_template(messages, **kw)})
    digest = hashlib.sha256(
        (Path(args.tokenizer) / "tokenizer.json").read_bytes()).hexdigest()
    write_json(folder / "case.json", {
        "case": "tokenize", "profile": args.profile,
        "tokenizer": "tokenizers/qwen2.5", "tokenizer_json_sha256": digest,
        "eos_token": tok.eos_token, "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
        "texts": [{"text": t, "ids": encode(t)} for t in texts],
        "chats": chats,
        "records": [{"record": {"input": a, "output": b,
                                "meta": {"id": f"r{i}"}},
                     **encode_record(encode, tok, a, b)}
                    for i, (a, b) in enumerate(records)]})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--seed", type=int, default=20250)
    parser.add_argument("--profile", choices=["public", "heldout"],
                        default="public")
    parser.add_argument("--case", action="append",
                        help="only this case (may be repeated)")
    parser.add_argument("--tokenizer", type=Path,
                        default=HERE / "tokenizers/qwen2.5")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    jobs = {s.name: (lambda folder, s=s: run_model_case(s, args, folder))
            for s in specs(args.profile)}
    jobs["metrics"] = lambda folder: run_metrics(args, folder)
    jobs["tokenize"] = lambda folder: run_tokenize(args, folder)
    for name in args.case or jobs:
        shutil.rmtree(args.out / name, ignore_errors=True)
        jobs[name](args.out / name)
        print("wrote", name, flush=True)


if __name__ == "__main__":
    main()
