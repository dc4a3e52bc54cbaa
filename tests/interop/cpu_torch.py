"""Lets torch's CUDA build be imported without the CUDA libraries it is linked to.

The Linux wheel of torch on PyPI is linked to about a dozen NVIDIA libraries (3 GB) that the
dynamic loader wants to see even when no GPU exists. On a machine that only computes on its CPU
none of their functions is ever called for work, so this puts stand-ins beside torch's own
libraries: one library in which every missing function returns 100 (CUDA's error "no device", so
torch finds no GPU and carries on; those that return text return an empty one), and one empty
library per missing name that pulls it in. The functions sit in a library of their own because the
loader insists on symbol versions only for a library that bears the very name a versioned
reference asks for.

Does nothing when torch can be imported as it is: a CPU build, or the NVIDIA packages are there.
Needs `cc`, `nm` and `readelf`, which a machine that compiles Rust has.
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ABSENT = "libretort_no_cuda.so"
# Not libcuda: that is the driver's, torch opens it only when needed and copes without.
NVIDIA_LIBRARY = re.compile(r"lib(?!cuda\.so)(cu|nccl|nv)\w*\.so\.\d+")
NVIDIA_FUNCTION = re.compile(r"(__)?(cu|nccl|nv)\w+")
# cudaGetErrorString and its kin.
RETURNS_TEXT = re.compile(r"\w+Get\w*(String|Name)")


def torch_imports() -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", "import torch; torch.ones(2) + 1; torch.cuda.is_available()"],
        capture_output=True,
        text=True,
    )


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def definition(name: str) -> str:
    if RETURNS_TEXT.fullmatch(name):
        return f'const char *{name}(void) {{ return ""; }}\n'
    return f"int {name}(void) {{ return 100; }}\n"


def link(target: Path, source: Path, *more: str) -> None:
    subprocess.run(
        ["cc", "-shared", "-nostdlib", "-fPIC", "-w", "-fno-builtin", "-x", "c", str(source)]
        + ["-x", "none", "-o", str(target), f"-Wl,-soname,{target.name}", *more],
        check=True,
    )


def put_stand_ins(libraries: Path) -> int:
    needed: set[str] = set()
    missing: set[str] = set()
    defined: set[str] = set()
    for library in libraries.glob("lib*.so*"):
        needed.update(re.findall(r"NEEDED.*\[(.+)\]", output_of("readelf", "-d", str(library))))
        for line in output_of("nm", "-D", "--format=posix", str(library)).splitlines():
            name, kind = line.split()[:2]
            (missing if kind in "Uvw" else defined).add(name.split("@")[0])
    functions = sorted(filter(NVIDIA_FUNCTION.fullmatch, missing - defined))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "functions.c"
        source.write_text("".join(map(definition, functions)))
        link(libraries / ABSENT, source)
        source.write_text("")
        names = sorted(filter(NVIDIA_LIBRARY.fullmatch, needed))
        for name in names:
            if not (libraries / name).exists():
                pull_in = [f"-L{libraries}", "-Wl,--no-as-needed", f"-l:{ABSENT}"]
                link(libraries / name, source, *pull_in, "-Wl,-rpath,$ORIGIN")
    return len(names)


def main() -> int:
    first = torch_imports()
    if first.returncode == 0:
        return 0
    spec = importlib.util.find_spec("torch")
    libraries = Path(spec.origin).parent / "lib" if spec and spec.origin else None
    if libraries is None or not (libraries / "libtorch_cuda.so").exists():
        print(f"torch does not import:\n{first.stderr}", file=sys.stderr)
        return 1
    count = put_stand_ins(libraries)
    second = torch_imports()
    if second.returncode != 0:
        print(f"torch does not import with stand-ins for CUDA:\n{second.stderr}", file=sys.stderr)
        return 1
    print(f"torch runs on the CPU alone: {count} stand-ins for NVIDIA libraries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
