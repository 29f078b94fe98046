"""Files that torch.save writes, for the reader that does not run them. Needs torch 2.9.1:

    python generate.py
"""

import collections
import os
from pathlib import Path

import torch

HERE = Path(__file__).parent


def numbers(count, scale, dtype):
    return (torch.arange(count) * scale - 1).to(dtype)


class Attack:
    def __reduce__(self):
        return (os.system, ("touch /tmp/tanren_was_run",))


layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
with torch.no_grad():
    for index, parameter in enumerate(layer.parameters()):
        parameter.copy_(numbers(parameter.numel(), 0.25 * (index + 1), torch.float32).view_as(parameter))
state = layer.state_dict()
whole = numbers(12, 0.5, torch.float16)
state["half"] = whole[4:10].view(2, 3)
state["tied"] = whole[:4]
state["bfloat"] = numbers(5, 0.125, torch.bfloat16)
state["double"] = numbers(2, 3.0, torch.float64)
state["ids"] = torch.arange(4).view(1, 4)
state["mask"] = torch.tensor([True, False])
state["one"] = torch.tensor(2.5)
state["empty"] = torch.zeros(0, 3)
state["parameter"] = torch.nn.Parameter(numbers(2, 1.0, torch.float32))
assert "_metadata" in dir(state)

torch.save(state, HERE / "zip.bin")
torch.save(state, HERE / "legacy.bin", _use_new_zipfile_serialization=False)
torch.save(dict(state), HERE / "dict.bin", pickle_protocol=4)
torch.save({"a": numbers(6, 1.0, torch.float32).view(2, 3).t()}, HERE / "transposed.bin")
torch.save({"a": numbers(2, 1.0, torch.float32), "b": Attack()}, HERE / "attack.bin")
torch.save({"a": numbers(2, 1.0, torch.float32), "b": Attack()}, HERE / "attack_legacy.bin", _use_new_zipfile_serialization=False)
torch.save({"model": {"a": numbers(2, 1.0, torch.float32)}}, HERE / "nested.bin")
torch.save(collections.OrderedDict(a=torch.zeros(2), epoch=3), HERE / "epoch.bin")
