"""Names that are dangerous to call: what makes a marker, and what is only named.

Nothing here is worse than `touch`: what is live makes the file whose path it is given, and what is
dormant names functions of other systems, other versions, or packages that are not there.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

from tests.support.opcodes import call, name


def shell(marker: str) -> str:
    return f"touch {marker}"


def code(marker: str) -> str:
    return f"open({marker!r}, 'w').close()"


def argv(marker: str) -> list[str]:
    return ["touch", marker]


#: What makes the marker if it is called with these.
LIVE: dict[str, Callable[[str], tuple[object, ...]]] = {
    "os.system": lambda m: (shell(m),),
    "posix.system": lambda m: (shell(m),),
    "os.popen": lambda m: (shell(m),),
    "os.mkdir": lambda m: (m,),
    "os.spawnlp": lambda m: (0, "touch", "touch", m),
    "os.posix_spawnp": lambda m: ("touch", argv(m), {}),
    "builtins.eval": lambda m: (code(m),),
    "builtins.exec": lambda m: (code(m),),
    "builtins.open": lambda m: (m, "w"),
    "__builtin__.eval": lambda m: (code(m),),
    "__builtin__.open": lambda m: (m, "w"),
    "io.open": lambda m: (m, "w"),
    "_io.FileIO": lambda m: (m, "w"),
    "codecs.open": lambda m: (m, "w"),
    "zipfile.ZipFile": lambda m: (m, "w"),
    "logging.FileHandler": lambda m: (m,),
    "subprocess.Popen": lambda m: (argv(m),),
    "subprocess.run": lambda m: (argv(m),),
    "subprocess.check_output": lambda m: (argv(m),),
    "subprocess.getoutput": lambda m: (shell(m),),
    "commands.getoutput": lambda m: (shell(m),),
    "timeit.main": lambda m: (["-n", "1", "-r", "1", code(m)],),
    "thread.start_new_thread": lambda m: (name("os.system"), (shell(m),)),
    "runpy._run_code": lambda m: (call("builtins.compile", code(m), "x", "exec"), {}),
    "functools.reduce": lambda m: (name("io.open"), [m, "w"]),
    "pickle.loads": lambda m: (call("os.system", shell(m)) + pickle.STOP,),
    "_pickle.loads": lambda m: (call("os.system", shell(m)) + pickle.STOP,),
    "importlib.import_module": lambda _: ("wn_canary",),
    "builtins.__import__": lambda _: ("wn_canary",),
    "pkgutil.resolve_name": lambda _: ("wn_canary",),
    "wn_stranger.start": lambda m: (m,),
}

#: Called with one text, none of which makes the marker.
_DORMANT = """
nt.system os.execvp os._exit os.kill os.remove os.putenv os.popen2 posix.popen nt.startfile
builtins.compile builtins.getattr builtins.setattr builtins.delattr builtins.vars builtins.input
builtins.breakpoint builtins.type.mro builtins.super builtins.property builtins.classmethod
__builtin__.execfile __builtin__.file __builtin__.apply __builtin__.reload __builtin__.getattr
exceptions.Exception.with_traceback builtins.map builtins.filter builtins.zip builtins.iter
builtins.sorted builtins.max builtins.help builtins.exit
runpy.run_path runpy.run_module imp.load_source importlib.reload importlib._bootstrap._gcd_import
zipimport.zipimporter pkgutil.get_loader pydoc.locate pydoc.pipepager site.addsitedir
code.interact code.InteractiveInterpreter pty.spawn pdb.run bdb.Bdb cProfile.run profile.run
trace.Trace doctest.testfile unittest.main venv.create ensurepip.bootstrap compileall.compile_dir
pickle.load pickle.Unpickler _pickle.load cPickle.loads marshal.loads marshal.load shelve.open
dbm.open sqlite3.connect types.FunctionType types.CodeType types.MethodType types.new_class
operator.attrgetter operator.methodcaller operator.itemgetter operator.call _operator.methodcaller
functools.partialmethod functools.singledispatch itertools.starmap itertools.accumulate
copy._reconstruct copyreg.pickle collections.namedtuple dataclasses.make_dataclass enum.global_enum
typing.get_type_hints contextlib.ExitStack weakref.finalize atexit.register gc.get_objects
inspect.getattr_static ast.literal_eval string.Formatter threading.Timer _thread.start_new_thread
multiprocessing.Process multiprocessing.context.Process concurrent.futures.ThreadPoolExecutor
asyncio.run sched.scheduler signal.signal sys.settrace sys.exit
ctypes.CDLL _ctypes.dlopen ctypes.util.find_library mmap.mmap tempfile.mkdtemp shutil.rmtree
shutil.which glob.glob fileinput.input tarfile.open gzip.open linecache.getline pathlib.glob
socket.socket _socket.socket socket.create_connection urllib.request.urlopen urllib2.urlopen
urllib.urlopen http.client.HTTPConnection ftplib.FTP smtplib.SMTP socketserver.TCPServer
SocketServer.TCPServer xmlrpc.client.ServerProxy webbrowser.open antigravity.fly telnetlib.Telnet
logging.config.fileConfig logging.config.dictConfig xml.sax.parse commands.getstatusoutput
popen2.Popen3 distutils.spawn.spawn lib2to3.main.main
torch.load torch.save torch.hub.load torch.hub.load_state_dict_from_url torch.jit.load
torch.jit.script torch.serialization.load torch.serialization._load torch.utils.model_zoo.load_url
torch.utils.cpp_extension.load torch.utils.cpp_extension.load_inline torch.ops.load_library
torch._ops.load_library torch.classes.load_library torch.package.PackageImporter
torch.fx.graph_module.reduce_graph_module torch.fx.graph_module._exec_with_source
torch.fx.Interpreter torch.multiprocessing.spawn torch.distributed.run.main torch.compile
torch.from_file torch.utils._pytree.tree_map torch._utils._import_dotted_name torch._utils._flatten
torch.storage._load_from_bytes torch.nn.functional.relu torch.zeros torch.manual_seed
torch.nn.modules.module.register_module_forward_hook torch.set_default_device torch.os
numpy.load numpy.save numpy.fromfile numpy.memmap numpy.loadtxt numpy.genfromtxt numpy.DataSource
numpy.vectorize numpy.frompyfunc numpy.fromfunction numpy.apply_along_axis numpy.lib.npyio.load
numpy.lib._npyio_impl.load numpy.lib.format.read_array numpy.core.multiarray.fromfile
numpy.testing._private.utils.runstring numpy.testing.rundocs numpy.ctypeslib.load_library
numpy.distutils.exec_command.exec_command numpy.f2py.compile numpy.f2py.run_main
dill.loads dill._dill._create_function dill._dill._import_module cloudpickle.loads
cloudpickle.cloudpickle._make_function cloudpickle.cloudpickle.subimport joblib.load
joblib.numpy_pickle.load pandas.read_pickle pandas.io.pickle.read_pickle pandas.eval yaml.load
jsonpickle.decode sympy.sympify pip._internal.cli.main.main pexpect.spawn psutil.Popen sh.touch
setuptools._distutils.spawn.spawn fairseq.utils.import_user_module my.models.build_model
wn_tripwire.touch
"""
DORMANT = _DORMANT.split()

#: What is refused though it is mentioned and not called.
MENTIONED = (
    "os.system",
    "posix.system",
    "builtins.eval",
    "__builtin__.eval",
    "subprocess.Popen",
    "torch.hub.load",
    "numpy.load",
    "pickle.loads",
    "webbrowser.open",
    "pty.spawn",
    "io.open",
    "timeit.main",
)
