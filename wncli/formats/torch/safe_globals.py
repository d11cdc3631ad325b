"""The globals of the standard library, numpy and torch that a pickle may use, and how.

What is not here would run: these packages are wherever `torch.load` is, and have hundreds of
classes and functions that run what they are handed. An entry means that whoever read the code of
this one found nothing in it, on the way of an unpickler, that goes beyond what it is handed; each
group says what its entries do with that. Names are exact, those of today's Python.
"""

from __future__ import annotations

import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from enum import Enum, auto
from typing import NamedTuple

from wncli.formats.pickles.nodes import Global
from wncli.formats.torch.tensors import STORAGE_MODULES, STORAGES
from wncli.formats.torch.weights_only import ACCEPTED


class Handed(Enum):
    """What becomes of what is handed to a call, or as a state."""

    NOTHING = auto()  #: it may not be handed anything, so that it is not called, or has no state
    PLAIN = auto()  #: it is looked into; nothing of it may be code, or an object of unknown code
    ITEMS = auto()  #: it is iterated over, and its items are kept as they are
    PAIRS = auto()  #: it is iterated over as a mapping, or as pairs
    KEPT = auto()  #: it is kept as it is; of a state, the items of a dict are
    MODULE = auto()  #: a state's items are kept as the attributes of a `torch.nn.Module`
    PARTIAL = auto()  #: a state's function, arguments and attributes are kept
    JUDGED = auto()  #: what is made, and whether anything runs, is up to it (`would_run`)


class Use(NamedTuple):
    """What a pickle may do with a global.

    `args` is what its calls do with their arguments, and `state` what BUILD does with one;
    `takes_items`: items may be appended, added, or set. `only_new`: it is never called, but made by
    the `__new__` that it inherits from `object`.
    """

    args: Handed = Handed.PLAIN
    state: Handed = Handed.NOTHING
    takes_items: bool = False
    only_new: bool = False


#: Makes a value, or one that others have as well (`logging.getLogger`), which is left as it is.
_VALUE = Use()
#: Makes a value that takes its content as a state.
_STATED = Use(state=Handed.PLAIN)
#: Attributes are kept, whatever they are; no code of the class looks at them as it is unpickled.
ATTRIBUTES = Use(state=Handed.KEPT)
#: Unpickled by its `__setstate__`, which looks at what is in the state and calls its methods.
_LOOKING = Use(state=Handed.PLAIN, only_new=True)
#: `torch.nn.Module.__setstate__` keeps all attributes, and the classes that add what they lack.
_MODULE = Use(state=Handed.MODULE, only_new=True)
#: May be kept, as any function may, but not called, nor handed to what may call it.
_NAMED = Use(Handed.NOTHING)
#: Whatever the class: nobody can tell from a file what that of another package does.
FOREIGN = Use(Handed.KEPT, Handed.KEPT, takes_items=True)

_USES: dict[Use, dict[str, str]] = {
    _VALUE: {
        "_codecs": "encode",
        "array": "array _array_reconstructor",
        "builtins": "Ellipsis NotImplemented bool bytearray bytes complex float int object range"
        " slice str",
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Context Decimal Clamped DivisionByZero FloatOperation Inexact InvalidOperation"
        " Overflow Rounded Subnormal Underflow",
        "fractions": "Fraction",
        "ipaddress": "IPv4Address IPv4Network IPv6Address IPv6Network",
        "logging": "getLogger",
        "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "re": "_compile RegexFlag",
        "time": "struct_time",
        "uuid": "SafeUUID",
        # arrays and scalars; numpy 1 and 2 call the package inside by two names
        "numpy": "bool bool_ bytes_ complex128 complex64 float16 float32 float64 int16 int32 int64"
        " int8 matrix ndarray recarray record str_ uint16 uint32 uint64 uint8",
        "numpy.core.multiarray": "scalar",
        "numpy._core.multiarray": "scalar",
        "numpy.core.numeric": "_frombuffer",
        "numpy._core.numeric": "_frombuffer",
        "numpy.ma": "MaskedArray",
        "numpy.ma.core": "MaskedArray",
        "numpy.rec": "recarray",
        # the classes of random generators, which are handed to what makes one
        "numpy.random._mt19937": "MT19937",
        "numpy.random._pcg64": "PCG64 PCG64DXSM",
        "numpy.random._philox": "Philox",
        "numpy.random._sfc64": "SFC64",
        "numpy.random.bit_generator": "SeedSequence",
        "torch": "contiguous_format channels_last channels_last_3d preserve_format strided",
        # what TorchScript's pickles say of the types of their values
        "torch.jit._pickle": "build_boollist build_doublelist build_intlist build_tensorlist"
        " restore_type_tag",
        # an Enum in the metadata of distributed checkpoints
        "torch.distributed.checkpoint.metadata": "_MEM_FORMAT_ENCODING",
        "torch.distributed._shard.sharded_tensor.metadata": "MEM_FORMAT_ENCODING",
        # in every module that PyTorch up to 1.3 saved; it is gone since
        "torch.nn.backends.thnn": "_get_thnn_function_backend",
        # the factory of what a GradScaler keeps for each optimizer, and what it makes
        "torch.amp.grad_scaler": "OptState _refresh_per_optimizer_state",
        "torch.cuda.amp.grad_scaler": "OptState _refresh_per_optimizer_state",
    },
    _STATED: {
        "collections": "UserString",
        "io": "BytesIO StringIO",
        "_io": "BytesIO StringIO",
        "random": "Random",
        "string": "Template",
        "uuid": "UUID",
        "numpy": "dtype",
        "numpy.core.multiarray": "_reconstruct",
        "numpy._core.multiarray": "_reconstruct",
        "numpy.ma.core": "_mareconstruct",
        "numpy.random": "__RandomState_ctor",
        "numpy.random._pickle": "__bit_generator_ctor __generator_ctor __randomstate_ctor",
        "numpy.random.bit_generator": "__pyx_unpickle_SeedSequence",
        "torch": "Generator",
        "torch._C": "Generator",
        "torch.autograd.variable": "Variable",
        "torch.backends.cudnn.rnn": "Unserializable",
        "torch.nn.parameter": "Buffer UninitializedBuffer UninitializedParameter",
        "torch.torch_version": "TorchVersion",
        # DTensors, with where each rank's part belongs
        "torch.distributed._mesh_layout": "_FlatLayout _MeshLayout",
        "torch.distributed._tensor": "DTensor",
        "torch.distributed._tensor.api": "DTensor",
        "torch.distributed._tensor.placement_types": "DTensorSpec Partial Replicate Shard"
        " TensorMeta _Partial",
        "torch.distributed.device_mesh": "DeviceMesh",
        "torch.distributed.tensor": "DTensor",
        "torch.distributed.tensor._dtensor_spec": "DTensorSpec ShardOrderEntry TensorMeta",
        "torch.distributed.tensor.placement_types": "Partial Replicate Shard _StridedShard",
    },
    # C code that iterates over one argument, or takes items one after another
    Use(Handed.ITEMS, takes_items=True): {
        "builtins": "frozenset list set tuple",
        "collections": "deque",
    },
    Use(Handed.PAIRS, takes_items=True): {"builtins": "dict", "collections": "defaultdict"},
    Use(Handed.PAIRS, Handed.KEPT, takes_items=True): {"collections": "Counter OrderedDict"},
    # what keeps what it is handed, without a look at it; pandas makes a block of a data frame so
    Use(Handed.KEPT): {"types": "GenericAlias", "pandas._libs.internals": "_unpickle_block"},
    Use(Handed.KEPT, Handed.PARTIAL): {"functools": "partial"},
    ATTRIBUTES: {
        "argparse": "Namespace",
        "collections": "ChainMap UserDict UserList",
        "optparse": "Values",
        "types": "SimpleNamespace",
        "torch.amp.grad_scaler": "GradScaler",
        "torch.cuda.amp.grad_scaler": "GradScaler",
    },
    Use(state=Handed.KEPT, only_new=True): {
        # dataclasses of distributed checkpoints
        "torch.distributed.checkpoint.filesystem": "_StorageInfo",
        "torch.distributed.checkpoint.metadata": "BytesStorageMetadata ChunkStorageMetadata"
        " Metadata StorageMeta TensorStorageMetadata",
        "torch.distributions.bernoulli": "Bernoulli",
        "torch.distributions.beta": "Beta",
        "torch.distributions.categorical": "Categorical",
        "torch.distributions.dirichlet": "Dirichlet",
        "torch.distributions.exponential": "Exponential",
        "torch.distributions.gamma": "Gamma",
        "torch.distributions.independent": "Independent",
        "torch.distributions.laplace": "Laplace",
        "torch.distributions.log_normal": "LogNormal",
        "torch.distributions.mixture_same_family": "MixtureSameFamily",
        "torch.distributions.multivariate_normal": "MultivariateNormal",
        "torch.distributions.normal": "Normal",
        "torch.distributions.uniform": "Uniform",
        "torch.nn.utils.spectral_norm": "SpectralNorm SpectralNormLoadStateDictPreHook"
        " SpectralNormStateDictHook",
        "torch.nn.utils.weight_norm": "WeightNorm",
        "torch.optim.lr_scheduler": "ChainedScheduler ConstantLR CosineAnnealingLR"
        " CosineAnnealingWarmRestarts CyclicLR ExponentialLR LRScheduler LambdaLR LinearLR"
        " MultiStepLR MultiplicativeLR OneCycleLR PolynomialLR ReduceLROnPlateau SequentialLR"
        " StepLR _LRScheduler",
        "torch.optim.swa_utils": "SWALR",
    },
    # all that `torch.nn` exports, and what its weight normalization puts into modules
    _MODULE: {
        "torch.nn.modules.activation": "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh"
        " LeakyReLU LogSigmoid LogSoftmax Mish MultiheadAttention PReLU RReLU ReLU ReLU6 SELU SiLU"
        " Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign Tanh Tanhshrink Threshold",
        "torch.nn.modules.adaptive": "AdaptiveLogSoftmaxWithLoss",
        "torch.nn.modules.batchnorm": "BatchNorm1d BatchNorm2d BatchNorm3d LazyBatchNorm1d"
        " LazyBatchNorm2d LazyBatchNorm3d SyncBatchNorm",
        "torch.nn.modules.channelshuffle": "ChannelShuffle",
        "torch.nn.modules.container": "Container ModuleDict ModuleList ParameterDict ParameterList"
        " Sequential",
        "torch.nn.modules.conv": "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d"
        " ConvTranspose3d LazyConv1d LazyConv2d LazyConv3d LazyConvTranspose1d LazyConvTranspose2d"
        " LazyConvTranspose3d",
        "torch.nn.modules.distance": "CosineSimilarity PairwiseDistance",
        "torch.nn.modules.dropout": "AlphaDropout Dropout Dropout1d Dropout2d Dropout3d"
        " FeatureAlphaDropout",
        "torch.nn.modules.flatten": "Flatten Unflatten",
        "torch.nn.modules.fold": "Fold Unfold",
        "torch.nn.modules.instancenorm": "InstanceNorm1d InstanceNorm2d InstanceNorm3d"
        " LazyInstanceNorm1d LazyInstanceNorm2d LazyInstanceNorm3d",
        "torch.nn.modules.linear": "Bilinear Identity LazyLinear Linear"
        " NonDynamicallyQuantizableLinear _LinearWithBias",
        "torch.nn.modules.loss": "BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss"
        " CrossEntropyLoss GaussianNLLLoss HingeEmbeddingLoss HuberLoss KLDivLoss L1Loss"
        " LinearCrossEntropyLoss MSELoss MarginRankingLoss MultiLabelMarginLoss"
        " MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss NLLLoss2d PoissonNLLLoss SmoothL1Loss"
        " SoftMarginLoss TripletMarginLoss TripletMarginWithDistanceLoss",
        "torch.nn.modules.module": "Module",
        "torch.nn.modules.normalization": "CrossMapLRN2d GroupNorm LayerNorm LocalResponseNorm"
        " RMSNorm",
        "torch.nn.modules.padding": "CircularPad1d CircularPad2d CircularPad3d ConstantPad1d"
        " ConstantPad2d ConstantPad3d ReflectionPad1d ReflectionPad2d ReflectionPad3d"
        " ReplicationPad1d ReplicationPad2d ReplicationPad3d ZeroPad1d ZeroPad2d ZeroPad3d",
        "torch.nn.modules.pixelshuffle": "PixelShuffle PixelUnshuffle",
        "torch.nn.modules.pooling": "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d"
        " AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d AvgPool1d AvgPool2d AvgPool3d"
        " FractionalMaxPool2d FractionalMaxPool3d LPPool1d LPPool2d LPPool3d MaxPool1d MaxPool2d"
        " MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d",
        "torch.nn.modules.rnn": "GRUCell LSTMCell RNNCell RNNCellBase",
        "torch.nn.modules.sparse": "Embedding EmbeddingBag",
        "torch.nn.modules.transformer": "Transformer TransformerDecoder TransformerDecoderLayer"
        " TransformerEncoder TransformerEncoderLayer",
        "torch.nn.modules.upsampling": "Upsample UpsamplingBilinear2d UpsamplingNearest2d",
        "torch.nn.parallel.data_parallel": "DataParallel",
        "torch.nn.utils.parametrizations": "_Orthogonal _SpectralNorm _WeightNorm",
        "torch.nn.utils.parametrize": "ParametrizationList",
        "torch.optim.swa_utils": "AveragedModel",
    },
    _LOOKING: {
        # a key, which is hashed with all that is in it; and what sets its attributes by itself
        "torch.distributed.checkpoint.metadata": "MetadataIndex TensorProperties",
        "torch.distributed._shard.sharded_tensor.metadata": "TensorProperties",
        "torch.nn.modules.rnn": "GRU LSTM RNN RNNBase",
        "torch.optim": "Adafactor Muon",
        "torch.optim.adadelta": "Adadelta",
        "torch.optim.adagrad": "Adagrad",
        "torch.optim.adam": "Adam",
        "torch.optim.adamax": "Adamax",
        "torch.optim.adamw": "AdamW",
        "torch.optim.asgd": "ASGD",
        "torch.optim.lbfgs": "LBFGS",
        "torch.optim.nadam": "NAdam",
        "torch.optim.optimizer": "Optimizer",
        "torch.optim.radam": "RAdam",
        "torch.optim.rmsprop": "RMSprop",
        "torch.optim.rprop": "Rprop",
        "torch.optim.sgd": "SGD",
        "torch.optim.sparse_adam": "SparseAdam",
    },
    Use(Handed.JUDGED): {
        "_operator": "getitem",
        "operator": "getitem",
        "builtins": "type",
        "copyreg": "_reconstructor __newobj__ __newobj_ex__",
        "torch._tensor": "_rebuild_from_type _rebuild_from_type_v2",
    },
    _NAMED: {
        "builtins": "abs all any callable divmod enumerate filter hash id isinstance issubclass"
        " iter len map max min next pow repr reversed round sorted sum zip",
        "typing": "Any Callable ClassVar Dict Final FrozenSet Generic Iterable Iterator List"
        " Literal Mapping MutableMapping Optional Sequence Set Tuple Type Union",
    },
}
#: Modules of nothing but functions of tensors or numbers, which layers keep as activations.
_OF_FUNCTIONS = frozenset(
    {"math", "torch._C._nn", "torch.nn.functional", "torch.nn.init", "_operator", "operator"}
)

USES: dict[str, Use] = {
    **dict.fromkeys(ACCEPTED, _STATED),
    **{f"{module}.{storage}": _VALUE for module in STORAGE_MODULES for storage in STORAGES},
    **{
        f"{module}.{name}": use
        for use, modules in _USES.items()
        for module, names in modules.items()
        for name in names.split()
    },
}

#: Modules that Python had once.
_FORMER = (
    "aifc asynchat asyncore audioop cgi cgitb chunk commands compiler crypt distutils dl imghdr imp"
    " lib2to3 mailcap msilib nis nntplib ossaudiodev pipes popen2 posixfile rexec smtpd sndhdr spwd"
    " sunau telnetlib uu xdrlib"
)
#: What comes with PyTorch, and what installs it; and packages that are made to run things.
_BESIDE = (
    "torch functorch torchgen triton numpy filelock fsspec isympy jinja2 markupsafe mpmath networkx"
    " sympy typing_extensions _distutils_hack pip pkg_resources setuptools"
    " cloudpickle dill joblib multiprocess pexpect psutil sh"
)
#: Packages of which no name is safe but those above.
_KNOWN = sys.stdlib_module_names | {*_FORMER.split(), *_BESIDE.split()}
#: Classes that start something as they are made, wherever they are imported from.
_STARTING = frozenset({"PackageImporter", "Popen", "Process"})


def full_name(node: Global) -> str:
    """Return the name of a global as Python 3 and today's torch have it.

    Protocols 0 to 2 spell what Python 2 had as it did (`pickle`'s `_compat_pickle`); torch renames
    one module (`torch/serialization.py`, `load_module_mapping`).
    """
    key = node.module, node.name
    module, name = NAME_MAPPING.get(key) or (
        IMPORT_MAPPING.get(node.module, node.module),
        node.name,
    )
    return f"{'torch._tensor' if module == 'torch.tensor' else module}.{name}"


def use_of(node: Global) -> Use | None:
    """Return what a pickle may do with a global; None where it would run in any case."""
    full = full_name(node)
    use = USES.get(full)
    if use is None and full.partition(".")[0] not in _KNOWN:
        return FOREIGN
    module, _, name = full.rpartition(".")
    if use is None and module in _OF_FUNCTIONS and name == node.name:
        return _NAMED
    return use


def is_plain(use: Use | None) -> bool:
    """Whether a global can be handed to anybody: who calls it makes a value."""
    if use is None or use is FOREIGN:
        return False
    return use.args not in (Handed.NOTHING, Handed.JUDGED)


def is_class(name: str, *, is_new: bool) -> bool:
    """Whether this is a class's name, or of a class inside classes: `Config`, `_Config.Inner`.

    `is_new`: `__new__` is called, which functions do not have; so that it may be written in any
    way, where it is not looked up in something else.
    """
    parts = name.split(".")
    if parts[-1] in _STARTING:
        return False
    if is_new and len(parts) == 1:
        return not name.startswith("__")
    return all(part.lstrip("_")[:1].isupper() for part in parts)
