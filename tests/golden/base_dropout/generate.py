"""Where transformers applies the dropout of a model in training: its loss and gradients under known masks.

Takes models and adapters of the cases beside this folder, sets their dropout to what SETTINGS says, and replaces every Dropout module by
one whose mask is that of tanren (Philox 4x32-10 by seed, step, place, sample, position and feature; see src/model/base_masks.rs). A
module that is not given a place makes the script fail, so that none is forgotten. Sequences go through the model one by one.

    python generate.py          needs torch 2.9.1, transformers 4.57.6, peft 0.18.1, safetensors
"""

import json
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

HERE = Path(__file__).parent
SEED, STEP = 1234567890123, 5
PURPOSE = 6
ATTENTION = {"attention_probs_dropout_prob": 0.0, "attn_pdrop": 0.0, "attention_dropout": 0.0}
SETTINGS = {
    "bert_regress": {"hidden_dropout_prob": 0.2, "classifier_dropout": 0.3},
    "xlmr_regress": {"hidden_dropout_prob": 0.15, "classifier_dropout": None},
    "modernbert_regress": {"embedding_dropout": 0.2, "classifier_dropout": 0.3, "mlp_dropout": 0.0},
    "gpt2_lora": {"embd_pdrop": 0.25, "resid_pdrop": 0.1},
}


def philox(key, counter):
    """Four words for arrays of counters, as in Random123."""
    k0, k1 = (np.uint64(word) for word in key)
    c = [np.asarray(word, dtype=np.uint64) for word in counter]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ k0, p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ k1, p0 & low]
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c


def mask(p, place, sample, positions, features):
    """Factors of the elements of some rows: 0, or 1 / (1 - p)."""
    threshold = min(max(round(p * 65536), 0), 65535)
    key = philox([SEED & 0xFFFFFFFF, SEED >> 32], [STEP & 0xFFFFFFFF, STEP >> 32, place, PURPOSE])
    calls = np.arange(-(-features // 8))
    factors = np.zeros((len(positions), len(calls) * 8))
    for row, position in enumerate(positions):
        # The 16 calls that go together are those of 128 features: of each word the low halves, then the high ones.
        for start in range(0, len(calls), 16):
            group = np.arange(start, start + 16)
            words = philox([int(key[0]), int(key[1])], [group, np.full(16, position), np.full(16, sample), np.zeros(16)])
            halves = [half for word in words for half in (word & np.uint64(0xFFFF), word >> np.uint64(16))]
            values = np.concatenate(halves)
            end = min(factors.shape[1], start * 8 + 128)
            factors[row, start * 8 : end] = (values >= threshold)[: end - start * 8] / (1 - threshold / 65536)
    return torch.tensor(factors[:, :features], dtype=torch.float32)


class Masked(torch.nn.Module):
    """The dropout of one place; `now` has the sequence that is on its way."""

    def __init__(self, p, place, now, uses=1):
        super().__init__()
        self.p, self.place, self.now, self.uses, self.calls = p, place, now, uses, 0

    def forward(self, x):
        # A head that has one module for the inputs of two layers.
        place = self.place + self.calls % self.uses
        self.calls += 1
        if self.p == 0:
            return x
        flat = x.reshape(-1, x.shape[-1])
        positions = range(flat.shape[0]) if flat.shape[0] == self.now["length"] else [0]
        return (flat * mask(self.p, place, self.now["sample"], list(positions), flat.shape[-1])).reshape(x.shape)


def place_of(name, blocks):
    """The number of a module's place, and how many places it stands for; none for the one of attention weights."""
    parts = name.split(".")
    if "attention.self" in name or name.endswith(("attn_dropout", "attn.out_drop", "mlp.drop")):
        return None
    numbers = [int(part) for part in parts if part.isdigit()]
    if numbers:
        first = "attention" in name or "attn" in name
        return 2 * numbers[-1] + (1 if first else 2), 1
    if "embeddings" in name or name.endswith("transformer.drop"):
        return 0, 1
    if name.endswith(("classifier.dropout", "classifier.modules_to_save.default.dropout", "classifier.original_module.dropout")):
        return 2 * blocks + 1, 2
    if parts[-1] in ("dropout", "drop"):
        return 2 * blocks + 1, 1
    raise SystemExit(f"a module without a place: {name}")


def run(case, settings):
    folder = HERE.parent / case
    info = json.loads((folder / "case.json").read_text())
    config = AutoConfig.from_pretrained(folder / info["model_dir"], **settings, **ATTENTION)
    labels = info["architecture"].endswith("SequenceClassification")
    kind = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    base = kind.from_pretrained(folder / info["model_dir"], config=config, attn_implementation="eager", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder / info["adapter_init"], is_trainable=True).train()
    now = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Dropout) or "lora_dropout" in name:
            continue
        at = place_of(name, config.num_hidden_layers)
        if at is None:
            assert module.p == 0, name
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], Masked(module.p, at[0], now, at[1]))
    # B is zero in a new adapter: moved, so that the gradients of A are something.
    generator = torch.Generator().manual_seed(3)
    moved = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        if parameter.requires_grad:
            moved[name] = parameter.detach().clone()
    step = info["steps"][1]
    sequences = [sequence for batch in step["micro_batches"] for sequence in batch]
    losses = []
    for sample, sequence in enumerate(sequences):
        now.update(sample=sample, length=len(sequence["input_ids"]))
        inputs = {key: torch.tensor([sequence[key]]) for key in ["input_ids", "token_type_ids"] if sequence.get(key)}
        logits = model(**inputs).logits
        if labels:
            loss = ((torch.sigmoid(logits) - sequence["label"]) ** 2).sum()
        else:
            targets = torch.tensor(sequence["labels"][1:])
            loss = torch.nn.functional.cross_entropy(logits[0, :-1], targets, ignore_index=-100, reduction="sum")
        (loss / step["num_items"]).backward()
        losses.append(loss.item())
    short = lambda name: name.replace(".default", "").replace("modules_to_save.", "")
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[f"adapter.{short(name)}"] = moved[name].contiguous()
            tensors[f"grad.{short(name)}"] = parameter.grad.contiguous()
    tensors["losses"] = torch.tensor(losses)
    save_file(tensors, HERE / f"{case}.safetensors")
    (HERE / f"{case}.json").write_text(
        json.dumps({"case": case, "seed": SEED, "step": STEP, "data_of_step": 1, "config": {**settings, **ATTENTION}}, indent=1) + "\n"
    )
    print(case, losses)


for case, settings in SETTINGS.items():
    run(case, settings)
