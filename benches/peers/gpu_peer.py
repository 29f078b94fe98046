#!/usr/bin/env python3
"""One implementation on one job, in a process of its own (gpu.py starts it).

    python gpu_peer.py --impl hf|trl|liger|unsloth|reference --model DIR
        --rows ROWS.jsonl --samples 32 --init-adapter DIR --mode time|gate
        [--warmup 10] [--steps 20] [--quant nf4] [--checkpointing]
        [--compile] [--compile-blocks] [--no-fused-loss] [--group]
        [--cap-gib X] [--grads OUT]

`time` measures the steps after the warm-up and profiles three more. `gate`
takes the rows in file order, writes the adapter gradients of step 0 and the
losses of all steps. `reference` is `hf` in f32. Prints one JSON line last.
Only public interfaces of the peers are called.
"""
import argparse
import contextlib
import json
import os
import re
import sys
import time

START = time.perf_counter()
parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--impl", required=True,
                    choices=["hf", "trl", "liger", "unsloth", "reference"])
parser.add_argument("--mode", choices=["time", "gate"], required=True)
parser.add_argument("--model", required=True)
parser.add_argument("--rows", required=True)
parser.add_argument("--init-adapter", required=True)
parser.add_argument("--samples", type=int, required=True)
parser.add_argument("--warmup", type=int, default=10)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--quant", choices=["none", "nf4"], default="none")
parser.add_argument("--checkpointing", action="store_true")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--compile-blocks", action="store_true",
                    help="each block by itself: all share one graph, so it "
                         "takes seconds instead of a minute")
parser.add_argument("--no-fused-loss", action="store_true")
parser.add_argument("--group", action="store_true",
                    help="rows of similar length in one step")
parser.add_argument("--cap-gib", type=float)
parser.add_argument("--grads")
parser.add_argument("--learning-rate", type=float, default=1e-4)
parser.add_argument("--device", default="cuda")
args = parser.parse_args()
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1",
                  TOKENIZERS_PARALLELISM="false", WANDB_DISABLED="true",
                  UNSLOTH_DISABLE_STATISTICS="1")
# For all sides, as Unsloth sets it for itself: less memory, and no stalls
# when widths change.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

from workloads import group_by_length, read_rows, supervised_tokens  # noqa: E402

if args.impl == "unsloth":
    import unsloth  # noqa: F401  must come before transformers
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

GPU = args.device == "cuda"
GATE = args.mode == "gate"
FULL = args.impl == "reference"
DTYPE = torch.float32 if FULL or not GPU else torch.bfloat16
with open(os.path.join(args.init_adapter, "adapter_config.json")) as file:
    ADAPTER = json.load(file)
SETTINGS = dict(r=ADAPTER["r"], lora_alpha=ADAPTER["lora_alpha"],
                lora_dropout=0.0, bias="none",
                target_modules=sorted(ADAPTER["target_modules"]))


def load_unsloth():
    from peft import set_peft_model_state_dict
    from unsloth import FastLanguageModel
    model, tokenizer = FastLanguageModel.from_pretrained(
        args.model, max_seq_length=4096, dtype=DTYPE,
        load_in_4bit=args.quant == "nf4", local_files_only=True)
    model = FastLanguageModel.get_peft_model(
        model, use_gradient_checkpointing="unsloth" if args.checkpointing
        else False, **SETTINGS)
    state = load_file(os.path.join(args.init_adapter,
                                   "adapter_model.safetensors"))
    set_peft_model_state_dict(model, state)
    return model, tokenizer


def load_transformers():
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    options = {}
    if args.quant == "nf4":
        from transformers import BitsAndBytesConfig
        options["device_map"] = {"": 0} if GPU else None
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16)
    if args.impl == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3
        apply_liger_kernel_to_qwen3(
            cross_entropy=args.no_fused_loss,
            fused_linear_cross_entropy=not args.no_fused_loss)
    # A quantised reference has the same weights: 4-bit ones, unpacked.
    dtype = torch.bfloat16 if args.quant == "nf4" else DTYPE
    base = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=dtype, attn_implementation="sdpa", **options)
    # Weights of 4 bits are there already, and cannot be moved.
    if GPU and args.quant == "none":
        base = base.to("cuda")
    if FULL:
        if args.quant == "nf4":
            base = base.dequantize()
        base = base.float()
    if args.checkpointing:
        base.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    model = PeftModel.from_pretrained(base, args.init_adapter,
                                      is_trainable=True)
    return model, AutoTokenizer.from_pretrained(args.model)


def synchronize():
    if GPU:
        torch.cuda.synchronize()


class Clock:
    """Seconds of each step by events of the GPU, and of all by the wall."""

    def __init__(self):
        self.marks = []

    def mark(self):
        if GPU:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        else:
            event = time.perf_counter()
        self.marks.append(event)

    def seconds(self):
        pairs = list(zip(self.marks, self.marks[1:]))
        if GPU:
            return [a.elapsed_time(b) / 1e3 for a, b in pairs]
        return [b - a for a, b in pairs]


def trained(model):
    return [(name, p) for name, p in model.named_parameters()
            if p.requires_grad]


def write_grads(model):
    """Adapter gradients under the names of the adapter file."""
    save_file({name.replace(".default", "").replace("_orig_mod.", ""):
               p.grad.detach().float().cpu().contiguous()
               for name, p in trained(model)}, args.grads)


def plan():
    """The steps, as lists of rows: warm-up, measured, profiled."""
    rows = read_rows(args.rows)
    cut, end = (n * args.samples for n in (args.warmup,
                                           args.warmup + args.steps))
    if len(rows) < end:
        sys.exit(f"{args.rows} has {len(rows)} rows, {end} are needed")
    parts = rows[:cut], rows[cut:end]
    if args.group and not GATE:
        parts = [group_by_length(part, args.samples) for part in parts]
    rows = [row for part in parts for row in part]
    steps = [rows[i:i + args.samples] for i in range(0, end, args.samples)]
    return steps, [] if GATE else steps[-3:]


def width(step):
    """Columns of a padded step: multiples of 8 suit the tensor cores."""
    return -(-max(len(row["input_ids"]) for row in step) // 8) * 8


def facts(step):
    return {"samples": len(step),
            "tokens": sum(len(row["input_ids"]) for row in step),
            "padded": width(step) * len(step),
            "supervised": sum(map(supervised_tokens, step))}


def batch(step):
    """The step as tensors on the device, padded on the right.

    A mask would only cost time: what a row sees lies before its padding, and
    padding has no labels. transformers would build one all the same, or look
    at the positions and wait for the GPU; a mapping of masks that is ready is
    taken as it is, and no mask in it means causal attention by the kernel.
    """
    columns = width(step)

    def pad(values, fill):
        return torch.tensor([v + [fill] * (columns - len(v)) for v in values],
                            device=args.device)
    masks = {} if args.impl == "unsloth" \
        else {"attention_mask": {"full_attention": None}}
    return {"input_ids": pad([row["input_ids"] for row in step], 1),
            "labels": pad([row["labels"] for row in step], -100), **masks}


class Busy:
    """What the GPU does in some steps more: torch.profiler counts kernels.

    Its share is the seconds of kernels over those of the same steps without
    the profiler, which slows launches down.
    """

    def start(self):
        from torch.profiler import ProfilerActivity, profile
        synchronize()
        self.found = profile(activities=[ProfilerActivity.CUDA])
        try:
            self.found.__enter__()
        except RuntimeError as error:  # the driver lets nobody look
            print(f"no profile: {error}")
            self.found = None

    def stop(self, seconds):
        """`seconds`: of the same steps, without the profiler."""
        from torch.autograd import DeviceType
        synchronize()
        if self.found is None:
            return {}
        self.found.__exit__(None, None, None)
        events = [e for e in self.found.events()
                  if e.device_type == DeviceType.CUDA
                  and not e.is_user_annotation]
        if not events:
            return {}
        busy = sum(e.time_range.elapsed_us() for e in events) / 1e6
        return {"busy": busy / sum(seconds),
                "kernels_per_step": len(events) / len(seconds),
                "attention": attention_kernels(e.name for e in events)}


def attention_kernels(names):
    """Which kernels do the attention, or None if no name tells."""
    found = {match[0] for match in map(
        re.compile(r"[\w:]*(flash|fmha|attn|attention|sdpa)[\w:]*").search,
        names) if match}
    return ", ".join(sorted(found)) or None


def without_casts(model):
    """Adapters are in f32: PEFT casts their input to f32, autocast back."""
    if args.impl not in ("hf", "liger"):
        return contextlib.nullcontext()
    from peft.helpers import disable_input_dtype_casting
    return disable_input_dtype_casting(model)


def run_loop(model):
    """A plain loop: what a careful user of the library writes."""
    parameters = [p for _, p in trained(model)]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate,
                                  weight_decay=0.0, fused=GPU)
    called = torch.compile(model) if args.compile else model
    cast = torch.autocast("cuda", dtype=torch.bfloat16) if GPU and not FULL \
        else contextlib.nullcontext()
    steps, extra = plan()
    batches = [batch(step) for step in steps]
    widths = len({width(step) for step in steps})
    if args.compile_blocks:
        for module in model.modules():
            if type(module).__name__.endswith("DecoderLayer"):
                module.compile(dynamic=widths > 1 or None)
    if args.compile and widths > 1:
        # One graph for all widths at once, instead of one for the first and
        # another one when the second comes.
        for inputs in batches:
            for name in ("input_ids", "labels"):
                torch._dynamo.maybe_mark_dynamic(inputs[name], 1)
    model.train()
    result, losses, clock = {}, [], Clock()

    def one(inputs, number):
        with cast:
            loss = called(**inputs, use_cache=False).loss
        loss.backward()
        if GATE and number == 0:
            write_grads(model)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    began = None
    for number, inputs in enumerate(batches):
        if number == args.warmup:
            synchronize()
            began = time.perf_counter()
            clock.mark()
        loss = one(inputs, number)
        if number == 0:
            synchronize()
            result["first_step_seconds"] = time.perf_counter() - START
        if number >= args.warmup:
            clock.mark()
        losses.append(loss)
    synchronize()
    result["wall_seconds"] = time.perf_counter() - began
    result["losses"] = [float(x) for x in losses]
    result["steps"] = [{**facts(s), "seconds": x} for s, x in
                       zip(steps[args.warmup:], clock.seconds())]
    result.update(memory())
    if GPU and extra:
        busy, inputs = Busy(), [batch(step) for step in extra]
        busy.start()
        for each in inputs:
            one(each, -1)
        result.update(busy.stop(clock.seconds()[-len(inputs):]))
    return result


def run_trl(model, tokenizer):
    """TRL's trainer with its own defaults, on rows in our order."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer
    steps, extra = plan()
    result, losses, clock, busy = {}, [], Clock(), Busy()
    total = len(steps)
    extra = extra if GPU else []

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, train_dataset=None):
            return SequentialSampler(train_dataset or self.train_dataset)

    class Watch(TrainerCallback):
        began = None

        def on_step_begin(self, arguments, state, control, **_):
            if state.global_step == args.warmup and self.began is None:
                synchronize()
                self.began = time.perf_counter()
                clock.mark()
            if extra and state.global_step == total:
                busy.start()

        def on_pre_optimizer_step(self, arguments, state, control, **kwargs):
            if GATE and state.global_step == 0:
                write_grads(kwargs["model"])

        def on_step_end(self, arguments, state, control, **_):
            if state.global_step == 1:
                synchronize()
                result["first_step_seconds"] = time.perf_counter() - START
            if args.warmup < state.global_step <= total:
                clock.mark()
            if state.global_step == total:
                synchronize()
                result["wall_seconds"] = time.perf_counter() - self.began
                result.update(memory())
            if extra and state.global_step == total + len(extra):
                result.update(busy.stop(clock.seconds()[-len(extra):]))

        def on_log(self, arguments, state, control, logs=None, **_):
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    # A log line of each step would make the host wait for the GPU, so only
    # the gate asks for them; the first step is logged in any case.
    config = SFTConfig(
        output_dir=os.path.join(os.path.dirname(os.path.abspath(args.rows)),
                                "trl"),
        per_device_train_batch_size=args.samples,
        max_steps=total + len(extra),
        learning_rate=args.learning_rate, lr_scheduler_type="constant",
        weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch_fused"
        if GPU else "adamw_torch", bf16=GPU, use_cpu=not GPU, max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True}, report_to=[],
        gradient_checkpointing=args.checkpointing, logging_first_step=True,
        logging_steps=1 if GATE else 10 * total, save_strategy="no",
        dataloader_pin_memory=GPU, disable_tqdm=True, pad_to_multiple_of=8,
        # The plain loop has its tensors ready before the clock starts.
        dataloader_num_workers=2, dataloader_persistent_workers=True)

    work = InOrder(
        model=model, args=config, processing_class=tokenizer,
        train_dataset=Dataset.from_list(
            [row for step in steps + extra for row in step]))
    work.add_callback(Watch())
    work.train()
    result["losses"] = losses
    result["steps"] = [{**facts(s), "seconds": x} for s, x in
                       zip(steps[args.warmup:], clock.seconds())]
    return result


def memory():
    if not GPU:
        return {}
    return {"peak_allocated": torch.cuda.max_memory_allocated(),
            "peak_reserved": torch.cuda.max_memory_reserved()}


def versions():
    from importlib import metadata
    found = {}
    for name in ("torch", "transformers", "peft", "trl", "unsloth",
                 "liger-kernel", "bitsandbytes", "triton"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def main():
    torch.manual_seed(0)
    if args.cap_gib and GPU:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, args.cap_gib * 2 ** 30 / total))
    load = load_unsloth if args.impl == "unsloth" else load_transformers
    model, tokenizer = load()
    if args.impl == "trl":
        result = run_trl(model, tokenizer)
    else:
        with without_casts(model):
            result = run_loop(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    result["attention"] = result.get("attention") \
        or getattr(base.config, "_attn_implementation", None)
    print(json.dumps({**result, "versions": versions()}))


if __name__ == "__main__":
    main()
