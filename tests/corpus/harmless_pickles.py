"""Pickles that make values and no more: what people keep beside their tensors."""

from __future__ import annotations

import argparse
import array
import collections
import datetime as dt
import decimal
import fractions
import pathlib
import pickle
import random
import re
import types
import uuid
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import weight_norm

from tests.support.opcodes import Op, build, call, name, new, path_in, put


def trained() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """A model, its optimizer and a schedule, after one step."""
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.LSTM(3, 2, batch_first=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=5)
    sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    schedule.step()
    return model, optimizer, schedule


MODEL, OPTIMIZER, SCHEDULE = trained()


def normalized() -> nn.Module:
    """A layer with a hook for its weight, and attributes that are functions and classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = weight_norm(nn.Linear(2, 2))
    vars(layer).update(
        activation=torch.nn.functional.relu, norm=partial(nn.LayerNorm, eps=1e-6), kind=nn.GELU
    )
    return layer


#: Objects, as `torch.save` pickles them.
OBJECTS: dict[str, object] = {
    "plain values": [1, 2.5, 1 << 80, "é", b"x", None, True, (1, (2,)), {"a": [1]}, 1j],
    "sets": [{1, 2}, frozenset({1}), {"a", ("b", 1)}],
    "mutable bytes": bytearray(b"x"),
    "ranges": [range(3), slice(1, 2, 3), ...],
    "types": [int, float, str, dict, list, type(None)],
    "namespace": argparse.Namespace(a=1, b=argparse.Namespace(c=[2])),
    "simple namespace": types.SimpleNamespace(a=1),
    "ordered dict": collections.OrderedDict(a=1),
    "default dict": collections.defaultdict(list, {"a": [1]}),
    "default dict of default dicts": collections.defaultdict(partial(collections.defaultdict, int)),
    "counter and deque": [collections.Counter("aab"), collections.deque([1, 2], 5)],
    "paths": [pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("c:/x"), pathlib.Path("x")],
    "times": [
        dt.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
        dt.date(2024, 1, 2),
        dt.timedelta(1, 2),
    ],
    "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 3), 1j],
    "identifier": uuid.UUID(int=1),
    "pattern": re.compile("a+"),
    "array": array.array("d", [1.0]),
    "random state": random.getstate(),
    "random state of numpy": np.random.RandomState(0).get_state(),
    "random state of torch": torch.get_rng_state(),
    "numpy scalars": [np.float32(1), np.float64(2), np.int64(3), np.bool_(True)],  # noqa: FBT003
    "numpy arrays": [np.zeros(2), np.zeros((2, 3), order="F"), np.array(["a"]), np.array([None])],
    "numpy dtype": [np.dtype("float32"), np.dtype([("a", "i4")])],
    "dtypes and devices": [torch.float32, torch.bfloat16, torch.device("cpu"), torch.Size([1, 2])],
    "layouts": [torch.strided, torch.per_tensor_affine],
    "tensors": [torch.ones(2), nn.Parameter(torch.ones(2)), torch.ones(2, dtype=torch.uint16)],
    "sparse tensor": torch.eye(2).to_sparse(),
    "module": MODEL,
    "module with hooks and functions": normalized(),
    "gradient scaler": torch.amp.GradScaler("cpu"),
    "random generators": [np.random.RandomState(0), np.random.default_rng(0), random.Random(0)],  # noqa: S311
    "masked array": np.ma.masked_array([1, 2], [True, False]),
    "distribution": torch.distributions.Normal(0.0, 1.0),
    "modules": [nn.LayerNorm(2), nn.Embedding(2, 2), nn.MultiheadAttention(4, 2)],
    "optimizer": OPTIMIZER,
    "state of an optimizer": OPTIMIZER.state_dict(),
    "state of a schedule": torch.optim.lr_scheduler.StepLR(OPTIMIZER, 2).state_dict(),
    "loss": nn.CrossEntropyLoss(weight=torch.ones(2)),
}

#: Objects of what is not installed, or was pickled by Python 2.
OPCODES: dict[str, bytes] = {
    "object of no known class": build(new("my.pkg.Config"), {"a": 1}),
    "object of no known class, of Python 2": build(
        call(
            "copy_reg._reconstructor", name("models.AttrDict"), name("__builtin__.dict"), {"a": 1}
        ),
        {"b": 2},
    ),
    "object of no known class, called": call("my.pkg.Config", 1, "x"),
    "object of an old class": pickle.MARK + pickle.INST + b"models\nConfig\n",
    "object of a class in a class": call(path_in("my.pkg", "Config.Inner"), 1),
    "omegaconf": build(
        new("omegaconf.dictconfig.DictConfig"),
        {
            "_metadata": build(
                new("omegaconf.base.ContainerMetadata"), {"ref_type": name("typing.Any")}
            ),
            "_content": {"lr": build(new("omegaconf.nodes.AnyNode"), {"_val": 1})},
        },
    ),
    "enumeration": call("fairseq.dataclass.constants.Choice", "cosine"),
    "pandas": call("pandas._libs.internals._unpickle_block", 1, 2, 3),
    "sets of Python 2": call("__builtin__.set", [1]),
    "range of Python 2": call("__builtin__.xrange", 0, 3, 1),
    "object of Python 2": call(
        "copy_reg._reconstructor", name("argparse.Namespace"), name("__builtin__.object"), None
    ),
    "bytes of protocol 2": call("_codecs.encode", "\xff", "latin1"),
    "scalar of numpy 1": call(
        "numpy.core.multiarray.scalar", call("numpy.dtype", "f4", 0, 1), b"\0\0\0\0"
    ),
    "path of Python 3.13": call("pathlib._local.PosixPath", "a", "b"),
    "reference to a class": name("my.pkg.Config"),
    "reference to a function of a package": name("my.pkg.collate"),
    "reference to an activation": name("torch.nn.functional.relu"),
    "text that reads like a call": put("cos\nsystem\n(S'id'\ntR."),
    "name of a builtin function": put({"builtins.eval": "os.system('id')"}),
}
HARMLESS: dict[str, object] = {**OBJECTS, **{key: Op(value) for key, value in OPCODES.items()}}
