"""How far transformers + PEFT in bf16 are from their own f32 results: the floor that tanren's bf16 kernels are held against.

Repeats every case beside this file with the base model in bf16, the adapter in f32 and autocast to bf16 (as trainers run it), and
writes the distance from expected.safetensors and case.json to bf16.json in the folder of the case.

    python bf16_floor.py [CASE ...]        needs torch, transformers, peft, safetensors, as in README.md

The weights of minilm_hidden are those in the folder that TANREN_TEST_MINILM names.
"""

import json
import math
import os
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

HERE = Path(__file__).parent


def distance(got, expected):
    """Largest and mean absolute difference, and the largest value."""
    error = (got.double() - expected.double()).abs()
    return {"max": error.max().item(), "mean": error.mean().item(), "largest": expected.abs().max().item()}


def relative(got, expected):
    """Euclidean distance over the norm of what is expected, over all tensors together."""
    error = sum(((g.double() - e.double()) ** 2).sum().item() for g, e in zip(got, expected))
    return math.sqrt(error / sum((e.double() ** 2).sum().item() for e in expected))


def name_in_file(name):
    """Name of a parameter in adapter_model.safetensors."""
    return name.replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def logits_of(model, sequences):
    """Logits of all sequences, one after another, and the log-probabilities of their labels."""
    logits, logprobs = [], []
    for sequence in sequences:
        ids = torch.tensor([sequence["input_ids"]])
        with torch.autocast("cpu", torch.bfloat16):
            own = model(input_ids=ids).logits[0].float()
        logits.append(own)
        for t, label in enumerate(sequence["labels"][1:]):
            if label != -100:
                logprobs.append(torch.log_softmax(own[t], -1)[label])
    return torch.cat(logits), torch.stack(logprobs)


def label_loss(info, logits, sequence):
    """The loss of a sequence with a label, as case.json has it."""
    if info["task"] == "seq_cls":
        return torch.nn.functional.cross_entropy(logits.float(), torch.tensor([sequence["label"]]), reduction="sum")
    return ((torch.sigmoid(logits.float()) - sequence["label"]) ** 2).sum()


def update(adamw, trained, step, options):
    """One step of the optimizer, with the step's learning rate; how far the norm of the gradient is from the expected one."""
    norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), options["max_grad_norm"]).item()
    for group in adamw.param_groups:
        group["lr"] = step["lr"]
    adamw.step()
    return abs(norm / step["grad_norm"] - 1)


def trained_to(result, dir, trained, losses, norms):
    """Adds to the result what a training gave: its losses, its norms, and the adapter at its end."""
    result["loss"] = {"max": max(losses), "mean": sum(losses) / len(losses)}
    result["grad_norm"] = max(norms)
    final = load_file(dir / "adapter_final" / "adapter_model.safetensors")
    got = [trained[n].detach() for n in final]
    result["adapter_final"] = relative(got, [final[n].reshape(trained[n].shape) for n in final])


def run_labels(case, dir, info, expected):
    """A training with a head for labels. The head is trained in f32, and computes in bf16 as the rest does."""
    model = AutoModelForSequenceClassification.from_pretrained(dir / info["model_dir"], dtype=torch.bfloat16)
    step0 = [s for batch in info["steps"][0]["micro_batches"] for s in batch]

    def logits_of(sequence):
        inputs = {key: torch.tensor([sequence[key]]) for key in ["input_ids", "token_type_ids"] if sequence.get(key)}
        with torch.autocast("cpu", torch.bfloat16):
            return model(**inputs).logits

    def all_logits():
        with torch.no_grad():
            return torch.cat([logits_of(sequence).float() for sequence in step0])

    result = {"logits_base": distance(all_logits(), expected["logits_base"])}
    model = PeftModel.from_pretrained(model, dir / "adapter_init", is_trainable=True)
    in_file = lambda name: name_in_file(name).replace("modules_to_save.", "")
    trained = {in_file(n): p for n, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        parameter.data = parameter.data.float()
    result["logits_adapter"] = distance(all_logits(), expected["logits_adapter"])
    o = info["optimizer"]
    no_decay = set(info["no_weight_decay"])
    groups = [
        {"params": [p for n, p in trained.items() if n not in no_decay], "weight_decay": o["weight_decay"]},
        {"params": [p for n, p in trained.items() if n in no_decay], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], betas=(o["beta1"], o["beta2"]), eps=o["eps"])
    losses, norms = [], []
    for number, step in enumerate(info["steps"]):
        adamw.zero_grad()
        total = 0.0
        for sequence in [s for batch in step["micro_batches"] for s in batch]:
            loss = label_loss(info, logits_of(sequence), sequence)
            (loss / step["num_items"]).backward()
            total += loss.item()
        losses.append(abs(total / step["num_items"] - step["loss"]))
        if number == 0:
            names = [n for n in trained if "grad." + n in expected]
            assert len(names) == len(trained), sorted(set(trained) - set(names))
            got = [trained[n].grad for n in names]
            result["grad"] = relative(got, [expected["grad." + n].reshape(trained[n].shape) for n in names])
        norms.append(update(adamw, trained, step, o))
    trained_to(result, dir, trained, losses, norms)
    result["logits_final"] = distance(all_logits(), expected["logits_final"])
    (dir / "bf16.json").write_text(json.dumps(result, indent=1) + "\n")
    print(case, json.dumps(result))


def run_losses(case, dir, info, expected):
    """One pass for every loss of labels."""
    result = {"losses": {}}
    for one in info["losses"]:
        outputs = one["outputs"]
        model = AutoModelForSequenceClassification.from_pretrained(
            dir / info["model_dir"], num_labels=outputs, ignore_mismatched_sizes=True, dtype=torch.bfloat16
        )
        model = PeftModel.from_pretrained(model, dir / one["adapter_dir"], is_trainable=True)
        in_file = lambda name: name_in_file(name).replace("modules_to_save.", "")
        trained = {in_file(n): p for n, p in model.named_parameters() if p.requires_grad}
        for parameter in trained.values():
            parameter.data = parameter.data.float()
        rows = []
        for sequence in info["batch"]:
            inputs = {key: torch.tensor([sequence[key]]) for key in ["input_ids", "token_type_ids"] if sequence.get(key)}
            with torch.autocast("cpu", torch.bfloat16):
                rows.append(model(**inputs).logits)
        logits = torch.cat(rows).float()
        weights = lambda key: None if one.get(key) is None else torch.tensor(one[key])
        if one["labels_kind"] in ["class", "class_or_ignored"]:
            labels = torch.tensor([-100 if label is None else label for label in one["labels"]])
            smoothing = one.get("label_smoothing") or 0.0
            loss = torch.nn.functional.cross_entropy(logits, labels, weights("class_weights"), label_smoothing=smoothing)
        elif one["labels_kind"] == "multi_label":
            labels = torch.tensor(one["labels"], dtype=torch.float32)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights("pos_weight"))
        else:
            labels = torch.tensor(one["labels"], dtype=torch.float32).view(logits.shape)
            loss = torch.nn.functional.mse_loss(logits, labels)
        loss.backward()
        norm = math.sqrt(sum((p.grad.double() ** 2).sum().item() for p in trained.values()))
        names = [n for n in trained if f"{one['name']}.grad.{n}" in expected]
        own = [expected[f"{one['name']}.grad.{n}"].reshape(trained[n].shape) for n in names]
        result["losses"][one["name"]] = {
            "loss": abs(loss.item() / one["loss"] - 1),
            "grad_norm": abs(norm / one["grad_norm"] - 1),
            "grad": relative([trained[n].grad for n in names], own),
        }
        result[f"logits_{outputs}"] = distance(logits, expected[f"logits_{outputs}"].view(logits.shape))
    (dir / "bf16.json").write_text(json.dumps(result, indent=1) + "\n")
    print(case, json.dumps(result))


def run_hidden(case, dir, info, expected):
    """Final hidden states of an encoder."""
    model = AutoModel.from_pretrained(os.environ["TANREN_TEST_MINILM"], dtype=torch.bfloat16).eval()
    states = []
    for sentence in info["sentences"]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            states.append(model(input_ids=torch.tensor([sentence["input_ids"]])).last_hidden_state[0].float())
    hidden = torch.cat(states)
    pooled = torch.stack([state.mean(0) for state in states])
    result = {
        "hidden_first4": distance(hidden[:, :4].flatten(), expected["hidden_first4"].flatten()),
        "hidden_norm": distance(hidden.norm(dim=-1), expected["hidden_norm"].flatten()),
        "mean_pooled": distance(pooled.flatten(), expected["mean_pooled"].flatten()),
    }
    (dir / "bf16.json").write_text(json.dumps(result, indent=1) + "\n")
    print(case, json.dumps(result))


def run(case):
    dir = HERE / case
    info = json.loads((dir / "case.json").read_text())
    if info.get("losses"):
        return run_losses(case, dir, info, load_file(dir / "expected.safetensors"))
    if info.get("sentences") and "TANREN_TEST_MINILM" in os.environ:
        return run_hidden(case, dir, info, load_file(dir / "expected.safetensors"))
    if not isinstance(info.get("steps"), list):
        return
    expected = load_file(dir / "expected.safetensors")
    if info["task"] in ["seq_cls", "regression"]:
        return run_labels(case, dir, info, expected)
    model = AutoModelForCausalLM.from_pretrained(dir / info["model_dir"], dtype=torch.bfloat16)
    step0 = [s for batch in info["steps"][0]["micro_batches"] for s in batch]
    result = {}
    with torch.no_grad():
        logits, logprobs = logits_of(model, step0)
    result["logits_base"] = distance(logits, expected["logits_base"])
    result["label_logprobs_base"] = distance(logprobs, expected["label_logprobs_base"])

    model = PeftModel.from_pretrained(model, dir / "adapter_init", is_trainable=True)
    trained = {name_in_file(n): p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in trained.values())
    with torch.no_grad():
        logits, logprobs = logits_of(model, step0)
    result["logits_adapter"] = distance(logits, expected["logits_adapter"])
    result["label_logprobs_adapter"] = distance(logprobs, expected["label_logprobs_adapter"])

    o = info["optimizer"]
    adamw = torch.optim.AdamW(
        trained.values(), betas=(o["beta1"], o["beta2"]), eps=o["eps"], weight_decay=o["weight_decay"]
    )
    losses, norms = [], []
    for number, step in enumerate(info["steps"]):
        adamw.zero_grad()
        total = 0.0
        for sequence in [s for batch in step["micro_batches"] for s in batch]:
            labels = torch.tensor(sequence["labels"][1:])
            if not (labels != -100).any():
                continue
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(input_ids=torch.tensor([sequence["input_ids"]])).logits[0, :-1]
            nll = torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
            (nll / step["num_items"]).backward()
            total += nll.item()
        losses.append(abs(total / step["num_items"] - step["loss"]))
        if number == 0:
            names = [n for n in trained if "grad." + n in expected]
            got = [trained[n].grad for n in names]
            result["grad"] = relative(got, [expected["grad." + n].reshape(trained[n].shape) for n in names])
        norms.append(update(adamw, trained, step, o))
    trained_to(result, dir, trained, losses, norms)
    with torch.no_grad():
        _, logprobs = logits_of(model, step0)
    result["label_logprobs_final"] = distance(logprobs, expected["label_logprobs_final"])
    (dir / "bf16.json").write_text(json.dumps(result, indent=1) + "\n")
    print(case, json.dumps(result))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    for case in sys.argv[1:] or sorted(p.parent.name for p in HERE.glob("*/expected.safetensors")):
        run(case)
