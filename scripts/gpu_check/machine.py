"""What this machine has: our programs, the CUDA driver's library, a Python with PyTorch, and the libraries that come with it.

Nothing here is required but the programs themselves. What is missing is said, and the parts that need it are skipped.
"""
import glob
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile

# Where drivers are found that the loader does not know of: containers, distributions, Windows.
DRIVER_FOLDERS = ["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64",
                  "/usr/lib/wsl/lib", "/usr/lib/nvidia", "/usr/lib/x86_64-linux-gnu/nvidia/current", "/usr/lib64/nvidia",
                  "/opt/nvidia/lib64", "/run/opengl-driver/lib", "/usr/local/cuda/compat", "/usr/local/cuda/compat/lib"]
PYTHONS = ["/opt/torch/.venv/bin/python3", "/opt/venv/bin/python3", "/opt/conda/bin/python3", "/usr/local/bin/python3",
           "/usr/bin/python3"]
TOOLKIT = ["/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib"]

# Asked of other interpreters; none of it imports PyTorch, which takes seconds.
ASK = """
import glob, importlib.util, json, os
from importlib import metadata
found = {}
for name in ("torch", "transformers", "peft", "triton"):
    try:
        found[name] = metadata.version(name) if importlib.util.find_spec(name) else None
    except Exception:
        found[name] = None
libs = []
spec = importlib.util.find_spec("nvidia")
for place in (spec.submodule_search_locations if spec else []):
    libs += sorted(glob.glob(os.path.join(place, "*", "lib")))
spec = importlib.util.find_spec("torch")
if spec and spec.origin:
    libs.append(os.path.join(os.path.dirname(spec.origin), "lib"))
print(json.dumps({"versions": found, "libs": libs}))
"""
LOAD = """
import ctypes, sys
ctypes.CDLL(sys.argv[1])
print([line.split()[-1] for line in open("/proc/self/maps") if "libcuda.so" in line][0])
"""


def ask(command, env=None, seconds=20):
    """What a short command prints, or (None, why not)."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                              timeout=seconds, env=env, text=True, errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        return None, said[-1]
    return done.stdout.strip(), None


def join_paths(*folders):
    seen = [x for part in folders for x in (part.split(":") if isinstance(part, str) else part) if x]
    return ":".join(dict.fromkeys(seen))


def loads(name, path):
    """Whether a library loads, in a process of its own; the file it comes from, and why not."""
    env = {**os.environ, "LD_LIBRARY_PATH": path}
    return ask([sys.executable, "-c", LOAD, name], env, 40)


class Machine:
    """What was found. `env` is for our programs, `python_env` for Python."""

    def __init__(self, here, work):
        self.here, self.work = here, work
        self.bin = os.path.join(here, "bin")
        self.broken = None
        self.facts = []
        path = os.environ.get("LD_LIBRARY_PATH", "")
        self.python_env = {"LD_LIBRARY_PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
        self.env = {"LD_LIBRARY_PATH": path, "CARGO_MANIFEST_DIR": here, "RUST_BACKTRACE": "0"}
        self.python, self.versions, self.libs = None, {}, []

    def look(self):
        """Finds everything; what matters for reading the results is a line of `facts`."""
        self.find_card()
        self.find_driver()
        self.find_torch()
        self.unpack()

    # ---- the driver ----

    def find_card(self):
        text, _ = ask(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"], seconds=45)
        self.card = text.splitlines()[0] if text else None
        self.facts.append(f"nvidia-smi: {self.card}" if self.card else "nvidia-smi names no GPU")
        self.facts.append(f"{os.cpu_count()} processors, kernel {platform.release()}, Python {platform.python_version()}")

    def find_driver(self):
        """libcuda.so.1, by the loader or where it hides; its folder then goes into the environment."""
        path = self.python_env["LD_LIBRARY_PATH"]
        found, why = loads("libcuda.so.1", path)
        if found:
            self.facts.append(f"libcuda.so.1: {found}, found by the loader")
            return
        tried = []
        for file in self.driver_files():
            folder = os.path.dirname(file)
            found, why = loads(file, join_paths(folder, path))
            if found:
                self.facts.append(f"libcuda.so.1: {file}, which the loader does not know of")
                self.python_env["LD_LIBRARY_PATH"] = self.env["LD_LIBRARY_PATH"] = join_paths(folder, path)
                return
            tried.append(f"{file} does not load: {why}")
        self.facts.append("libcuda.so.1: not found" + (f"; {'; '.join(tried)}" if tried else ""))

    def driver_files(self):
        listed = []
        for tool in ("ldconfig", "/sbin/ldconfig", "/usr/sbin/ldconfig"):
            text, _ = ask([tool, "-p"])
            if text:
                listed = [line.split("=>")[1].strip() for line in text.splitlines()
                          if "libcuda.so.1" in line and "=>" in line]
                break
        guesses = [os.path.join(folder, "libcuda.so.1") for folder in DRIVER_FOLDERS]
        more = glob.glob("/usr/lib/nvidia-*/libcuda.so.1") + glob.glob("/opt/*/lib*/libcuda.so.1")
        return [file for file in dict.fromkeys(listed + guesses + more) if os.path.exists(file)]

    # ---- Python and CUDA's libraries ----

    def find_torch(self):
        """The first Python that has PyTorch, and the folders of the libraries that came with it."""
        first = [os.environ.get("PYTHON"), sys.executable, shutil.which("python3"), *PYTHONS]
        for python in dict.fromkeys(x for x in first if x and os.path.exists(x)):
            text, _ = ask([python, "-c", ASK], seconds=60)
            answer = json.loads(text) if text else {"versions": {}, "libs": []}
            if self.python is None or (answer["versions"].get("torch") and not self.versions.get("torch")):
                self.python, self.versions, self.libs = python, answer["versions"], answer["libs"]
            if self.versions.get("torch"):
                break
        named = ", ".join(f"{k} {v}" for k, v in self.versions.items() if v)
        self.facts.append(f"{self.python}: {named}" if named else "no Python here has PyTorch")
        folders = [x for x in self.libs + TOOLKIT if os.path.isdir(x)]
        self.env["LD_LIBRARY_PATH"] = join_paths(self.env["LD_LIBRARY_PATH"], folders)
        blas = next((x for folder in join_paths(self.env["LD_LIBRARY_PATH"]).split(":") if folder
                     for x in sorted(glob.glob(os.path.join(folder, "libcublasLt.so*")))), None)
        self.facts.append(f"cuBLASLt: {blas}" if blas else "cuBLASLt: not found beside PyTorch or the CUDA toolkit, "
                          "the benchmarks have no bar of their own")

    def lacks(self, *modules):
        """Why a part that needs these modules is skipped, or None."""
        missing = [name for name in modules if not self.versions.get(name)]
        return f"not installed: {', '.join(missing)}" if missing else None

    # ---- our programs ----

    def unpack(self):
        """The binaries, and a look at whether they start here."""
        archive = os.path.join(self.here, "binaries.tar.xz")
        if not os.path.isdir(self.bin):
            files = os.path.join(self.work, "files")
            why = extract(archive, files)
            if why:
                self.broken = f"the programs cannot be unpacked: {why}"
                return
            self.bin = os.path.join(files, "bin")
            self.rows = os.path.join(files, "rows")
        else:
            self.rows = os.path.join(self.here, "rows")
        packed = os.path.join(os.path.dirname(self.bin), "lib")
        for library in (None, packed):
            # The packed libstdc++ is for machines that have none, or an older one; other programs keep their own.
            if library:
                self.env["LD_LIBRARY_PATH"] = join_paths(library, self.env["LD_LIBRARY_PATH"])
            _, why = ask([os.path.join(self.bin, "lib-tests"), "--list"], {**os.environ, **self.env}, 60)
            if why is None or "GLIBCXX" not in why and "libstdc++" not in why and "CXXABI" not in why:
                break
        if why:
            self.broken = f"the test programs do not start: {why}"


def extract(archive, folder):
    """Unpacks by Python, or by xz where this Python was built without it; why not, or None."""
    stamp = folder + ".stamp"
    try:
        mark = f"{os.path.getsize(archive)} {os.path.getmtime(archive)}"
    except OSError as error:
        return str(error)
    if os.path.exists(stamp) and open(stamp).read() == mark:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder)
    except (tarfile.CompressionError, ImportError):
        _, why = ask(["tar", "xJf", archive, "-C", folder], seconds=120)
        if why:
            return f"this Python has no lzma, and tar says: {why}"
    except (OSError, tarfile.TarError, EOFError) as error:
        return str(error)
    with open(stamp, "w") as file:
        file.write(mark)
    return None
