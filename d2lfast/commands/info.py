"""`d2lfast info`: facts for a bug report or a measurement."""

import platform
from importlib import import_module

import torch
from rich.table import Table

import d2lfast
from d2lfast._extension import build_info
from d2lfast.commands.console import console


def facts() -> dict[str, str]:
    """What d2lfast runs on, and what it was built with."""
    extension = import_module("d2lfast._C")
    build = build_info()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "d2lfast": d2lfast.__version__,
        "torch": f"{torch.__version__} (built against {build['torch']})",
        "python": f"{platform.python_version()} (built with {build['python']})",
        "instruction set": f"{extension.current_isa()} (the processor has {extension.detected_isa()})",
        "threads": str(torch.get_num_threads()),
        "OpenMP": "yes" if extension.has_openmp else "no: operators run on one thread",
        "CUDA": build["cuda"] or "not built in",
        "CUDA architectures": build["cuda_archs"] or "none",
        "GPUs": ", ".join(gpus) or "none",
        "compiler": extension.compiler(),
        "build flags": " ".join(build["cxx_flags"]),
        "debug build": "yes" if build["debug"] else "no",
        "sanitizers": build["sanitize"] or "none",
    }


def command() -> None:
    """Print versions, instruction set, threads, CUDA and build flags."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts().items():
        table.add_row(name, value)
    console.print(table, highlight=False)
